"""Two PyTorch versions of the train step of recipe `layer` (self-supervised phase), to compare ours with.

`Eager` is how such a step is usually written: hooks on the stages, a separate forward and backward pass for the maps,
activations copied to the host, and a Python loop over images for the boxes and the mixing.
`Shared` is our algorithm at its best in PyTorch: one clean forward pass serves map and training, and everything
is batched and stays on the device. `Shared.compile` turns the whole step except the optimizer into one graph.

Model, losses, batch choice and augmentation are the same code for both, batched and on the device, so `Eager`
is slower only because of maps and boxes. Settings come from the same `config.Experiment` as ours; the maps are those of
`attribution.norm = "image"` and `attribution.sign = 1`.

Letters: B rows (two views of b images, view-major), C image channels, F feature channels, H W image, h w feature map,
D embedding, S output and T input positions of a resizing.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

TIE = 1e-6  # as `masks.TIE`
CROP_ATTEMPTS = 10  # as `augment.CROP_ATTEMPTS`


class BatchNorm(nn.Module):
    """Batch norm in train mode; running statistics are left alone where `update` is False.

    With `visible`, their update consists of operations that appear in a captured graph; `F.batch_norm` updates them
    invisibly. The running variance is then biased, like ours and unlike PyTorch's.
    """

    visible = False

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x, update: bool):
        running, affine = (self.running_mean, self.running_var), (self.weight, self.bias)
        if not self.visible:
            return F.batch_norm(x, *(running if update else (None, None)), *affine, training=True)
        # The defaults of `F.batch_norm`: momentum 0.1, epsilon 1e-5.
        y, mean, inverse_deviation = torch.native_batch_norm(x, *affine, None, None, True, 0.1, 1e-5)
        if update:
            for average, value in zip(running, (mean, inverse_deviation**-2 - 1e-5)):
                # Not lerp_, because in a captured bfloat16 CPU graph the values differ in type from the average.
                average.mul_(0.9).add_(value.detach(), alpha=0.1)
        return y


def conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


class Block(nn.Module):
    """`models.resnet.BasicBlock`."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, outputs, 3, stride), BatchNorm(outputs)
        self.conv2, self.bn2 = conv(outputs, outputs, 3), BatchNorm(outputs)
        self.projects = stride != 1 or inputs != outputs
        if self.projects:
            self.shortcut_conv, self.shortcut_bn = conv(inputs, outputs, 1, stride), BatchNorm(outputs)

    def forward(self, x, update: bool):
        y = F.relu(self.bn1(self.conv1(x), update))
        y = self.bn2(self.conv2(y), update)
        return F.relu(y + (self.shortcut_bn(self.shortcut_conv(x), update) if self.projects else x))


class Stage(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.block1, self.block2 = Block(inputs, outputs, stride), Block(outputs, outputs, 1)

    def forward(self, x, update: bool):
        return self.block2(self.block1(x, update), update)


class Encoder(nn.Module):
    """ResNet-18 with the stem for small images."""

    def __init__(self, width: int, channels: int):
        super().__init__()
        self.stem_conv, self.stem_bn = conv(channels, width, 3), BatchNorm(width)
        self.stage1 = Stage(width, width, 1)
        self.stage2 = Stage(width, 2 * width, 2)
        self.stage3 = Stage(2 * width, 4 * width, 2)
        self.stage4 = Stage(4 * width, 8 * width, 2)

    def forward(self, x, update: bool):
        x = F.relu(self.stem_bn(self.stem_conv(x), update))
        activations = {}
        for name in ("stage1", "stage2", "stage3", "stage4"):
            x = activations[name] = getattr(self, name)(x, update)
        return activations


class Projection(nn.Module):
    def __init__(self, features: int, hidden: int, projection: int):
        super().__init__()
        self.hidden, self.projection = nn.Linear(features, hidden), nn.Linear(hidden, projection)

    def forward(self, features_BxF):
        return F.normalize(self.projection(F.relu(self.hidden(features_BxF))), eps=1e-6)


class Network(nn.Module):
    """images_BxCxHxW in [0, 1] -> (z_BxD, activations by stage), in train mode.

    As ours: the encoder computes in the config's `model.dtype`, the head in float32, and parameters stay float32.
    """

    def __init__(self, specs):
        super().__init__()
        model, normalization = specs.model, specs.normalization
        width = model.width or 64
        self.bfloat16 = model.dtype == "bfloat16"
        self.encoder = Encoder(width, specs.dataset.channels)
        self.projection = Projection(8 * width, model.hidden, model.projection)
        for name in ("mean", "std"):
            values = torch.tensor(getattr(normalization, name)).reshape(1, -1, 1, 1)
            self.register_buffer(name, values, persistent=False)

    def forward(self, images_BxCxHxW, update: bool = True):
        normalized = (images_BxCxHxW - self.mean) / self.std
        with torch.autocast(images_BxCxHxW.device.type, dtype=torch.bfloat16, enabled=self.bfloat16):
            activations = self.encoder(normalized, update)
        return self.projection(activations["stage4"].float().mean((2, 3))), activations


def from_jax(params: dict, batch_stats: dict | None = None) -> dict[str, torch.Tensor]:
    """The state dict of `Network` from our parameters, or from anything with their structure (gradients)."""
    names = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    state = {}

    def visit(path, tree):
        for name, value in tree.items():
            if isinstance(value, dict):
                visit([*path, name.replace("_block", ".block")], value)
                continue
            # HWIO to OIHW, and a dense kernel to its transpose.
            axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(np.ndim(value), (0,))
            value = np.ascontiguousarray(np.transpose(np.asarray(value), axes))
            state[".".join([*path, names[name]])] = torch.tensor(value)

    visit([], params)
    visit([], batch_stats or {})
    return state


def network(specs, params: dict, batch_stats: dict, *, device: str, channels_last: bool = False) -> Network:
    """A `Network` with our parameters."""
    model = Network(specs)
    model.load_state_dict(from_jax(params, batch_stats))
    return model.to(device, memory_format=torch.channels_last if channels_last else torch.preserve_format)


def _log_probability(z_BxD, positives_BxD, temperature):
    """log of NT-Xent's softmax for one positive per anchor; denominators over all of z but the anchor itself."""
    is_self_BxB = torch.eye(z_BxD.shape[0], dtype=torch.bool, device=z_BxD.device)
    denominator_B = torch.logsumexp((z_BxD @ z_BxD.T / temperature).masked_fill(is_self_BxB, -math.inf), dim=1)
    return (z_BxD * positives_BxD).sum(1) / temperature - denominator_B


def simclr(z_BxD, spec):
    """`objectives.simclr`: the positive of a view is the image's other view."""
    other_view_BxD = z_BxD.roll(z_BxD.shape[0] // 2, 0)
    scale = spec.temperature / spec.base_temperature
    return -scale * _log_probability(z_BxD, other_view_BxD, spec.temperature).mean()


def mixed_simclr(z_BxD, mixed_BxD, weight_B, spec):
    """`objectives.mixed_simclr`: the positive is the mixed version of the other view, weighted by what was kept."""
    half, scale = z_BxD.shape[0] // 2, spec.temperature / spec.base_temperature
    log_probability_B = _log_probability(z_BxD, mixed_BxD.roll(half, 0), spec.temperature)
    return -scale * (weight_B.roll(half, 0) * log_probability_B).mean()


def choose_batch(images_NxCxHxW, order_N, batch_size: int):
    """A batch of the resident uint8 images, at a random position in the epoch's order."""
    device = images_NxCxHxW.device
    start = torch.randint(len(order_N) - batch_size + 1, (1,), device=device)
    return images_NxCxHxW[order_N[start + torch.arange(batch_size, device=device)]]


def crop_boxes(uniform_Bx22, size: int, spec):
    """`augment.crop_box`: (top, left, height, width) as [B, 4]; the last two draws place the box."""
    area_BxA = size**2 * (spec.crop_scale[0] + (spec.crop_scale[1] - spec.crop_scale[0]) * uniform_Bx22[:, :10])
    low, high = math.log(spec.crop_ratio[0]), math.log(spec.crop_ratio[1])
    ratio_BxA = torch.exp(low + (high - low) * uniform_Bx22[:, CROP_ATTEMPTS:-2])
    height_BxA, width_BxA = torch.round(torch.sqrt(area_BxA / ratio_BxA)), torch.round(torch.sqrt(area_BxA * ratio_BxA))
    fits_BxA = (height_BxA >= 1) & (height_BxA <= size) & (width_BxA >= 1) & (width_BxA <= size)
    # argmax of integers gives the first largest; not every device has it for bool.
    first_Bx1 = fits_BxA.int().argmax(1, keepdim=True)
    height_B, width_B = height_BxA.gather(1, first_Bx1)[:, 0], width_BxA.gather(1, first_Bx1)[:, 0]
    top_B = torch.floor(uniform_Bx22[:, -2] * (size - height_B + 1))
    left_B = torch.floor(uniform_Bx22[:, -1] * (size - width_B + 1))
    whole_B = torch.full_like(top_B, size)
    whole_Bx4 = torch.stack([torch.zeros_like(top_B), torch.zeros_like(top_B), whole_B, whole_B], 1)
    drawn_Bx4 = torch.stack([top_B, left_B, height_B, width_B], 1)
    # The fallback is the whole image if it is square (1 is an allowed ratio).
    return torch.where(fits_BxA.any(1, keepdim=True), drawn_Bx4, whole_Bx4)


def _resize_matrix(size: int, scale_B, translation_B):
    """Antialiased bilinear resizing along an axis as weights_BxSxT: position t goes to scale * t + translation."""
    position = torch.arange(size, device=scale_B.device, dtype=torch.float32)
    source_BxS = ((position + 0.5)[None] - translation_B[:, None]) / scale_B[:, None] - 0.5
    reach_Bx1x1 = (1 / scale_B).clamp(min=1)[:, None, None]
    weights_BxSxT = (1 - (source_BxS[:, :, None] - position).abs() / reach_Bx1x1).clamp(min=0)
    return weights_BxSxT / weights_BxSxT.sum(2, keepdim=True).clamp(min=1e-6)


def _resize(images_BxCxHxW, rows_BxSxT, columns_BxSxT):
    resized = rows_BxSxT[:, None] @ images_BxCxHxW @ columns_BxSxT[:, None].transpose(2, 3)
    return resized.clamp(0, 1)


def resized_crop(images_BxCxHxW, box_Bx4):
    """`augment.resized_crop` of every image, of square images."""
    size = images_BxCxHxW.shape[2]
    scale_Bx2 = size / box_Bx4[:, 2:]
    shift_Bx2 = -scale_Bx2 * box_Bx4[:, :2]
    rows, columns = (_resize_matrix(size, scale_Bx2[:, axis], shift_Bx2[:, axis]) for axis in (0, 1))
    return _resize(images_BxCxHxW, rows, columns)


def make_views(images_bxCxHxW, spec):
    """Two views of uint8 images, in [0, 1] and view-major: random resized crop and horizontal flip."""
    images = torch.cat([images_bxCxHxW, images_bxCxHxW]).float() / 255
    batch, device = images.shape[0], images.device
    uniform_Bx22 = torch.rand(batch, 2 * CROP_ATTEMPTS + 2, device=device)
    views = resized_crop(images, crop_boxes(uniform_Bx22, images.shape[2], spec))
    flipped_B = torch.rand(batch, device=device) < spec.flip_prob
    return torch.where(flipped_B[:, None, None, None], views.flip(3), views)


def draw_partners(images: int, device):
    """`mix.partners` of one group: a random cycle through the images, crossed over the two views."""
    cycle_b = torch.argsort(torch.rand(images, device=device))
    partner_b = torch.zeros_like(cycle_b).scatter(0, cycle_b, cycle_b.roll(-1))
    return torch.cat([partner_b + images, partner_b])


def draw_keep(batch: int, spec, device):
    low, high = spec.keep_range
    return low + (high - low) * torch.rand(batch, device=device)


def layer_maps(activations: list, gradients: list, size: int):
    """`attribution.layer_cam` of every stage, averaged: map_BxHxW."""
    maps = []
    for activations_BxFxhxw, gradients_BxFxhxw in zip(activations, gradients):
        raw_Bx1xhxw = (activations_BxFxhxw.float() * F.relu(gradients_BxFxhxw.float())).sum(1, keepdim=True)
        low, high = raw_Bx1xhxw.amin((2, 3), keepdim=True), raw_Bx1xhxw.amax((2, 3), keepdim=True)
        scaled = torch.where(high > low, (raw_Bx1xhxw - low) / torch.where(high > low, high - low, 1.0), 0.0)
        maps.append(F.interpolate(scaled, size=(size, size), mode="bilinear", align_corners=False)[:, 0])
    return sum(maps) / len(maps)


def boxes(map_BxHxW, keep_B):
    """`masks.box` of square images: (first, end) rows and (first, end) columns, each [B], clipped at the border."""
    size = map_BxHxW.shape[1]
    high, low = map_BxHxW.amax((1, 2), keepdim=True), map_BxHxW.amin((1, 2), keepdim=True)
    ties_BxHxW = (map_BxHxW >= high - TIE * (high - low)).float()
    position_1xS = torch.arange(size, device=map_BxHxW.device, dtype=torch.float32)[None]
    side_B = torch.round(size * torch.sqrt((1 - keep_B).clamp(0, 1)))
    ends = []
    for other_axis in (2, 1):
        center_B = (ties_BxHxW.sum(other_axis) * position_1xS).sum(1) / ties_BxHxW.sum((1, 2))
        first_B = torch.round(center_B) - torch.floor(side_B / 2)
        ends += [first_B.clamp(min=0), (first_B + side_B).clamp(max=size)]
    return tuple(ends)


def box_mask(box: tuple, size: int):
    """mask_BxHxW, bool, of `boxes`."""
    top_B, bottom_B, left_B, right_B = box
    position_1xS = torch.arange(size, device=top_B.device, dtype=torch.float32)[None]
    rows_BxH = (position_1xS >= top_B[:, None]) & (position_1xS < bottom_B[:, None])
    columns_BxW = (position_1xS >= left_B[:, None]) & (position_1xS < right_B[:, None])
    return rows_BxH[:, :, None] & columns_BxW[:, None, :]


def mix(images_BxCxHxW, box: tuple, partner_B):
    """The whole partner, resized into the box: (mixed_BxCxHxW, weight_B)."""
    size = images_BxCxHxW.shape[2]
    top_B, bottom_B, left_B, right_B = box
    rows = _resize_matrix(size, (bottom_B - top_B) / size, top_B)
    columns = _resize_matrix(size, (right_B - left_B) / size, left_B)
    mask_BxHxW = box_mask(box, size)
    mixed = torch.where(mask_BxHxW[:, None], _resize(images_BxCxHxW[partner_B], rows, columns), images_BxCxHxW)
    return mixed, 1 - mask_BxHxW.float().mean((1, 2))


def _interpolation(size: int, small: int) -> np.ndarray:
    """Bilinear upsampling along an axis as a matrix [size, small], edges repeated."""
    source = np.clip((np.arange(size) + 0.5) * small / size - 0.5, 0, small - 1)
    return np.maximum(0, 1 - np.abs(source[:, None] - np.arange(small)[None])).astype(np.float32)


def map_on_host(activations: list, gradients: list, size: int) -> np.ndarray:
    """The map [H, W] of one image from its activations [F, h, w], as `layer_maps`."""
    total = np.zeros((size, size), np.float32)
    for activation, gradient in zip(activations, gradients):
        raw = np.sum(activation * np.maximum(gradient, 0), axis=0)
        low, high = raw.min(), raw.max()
        scaled = (raw - low) / (high - low) if high > low else np.zeros_like(raw)
        up = _interpolation(size, raw.shape[0])
        total += up @ scaled @ up.T
    return total / len(activations)


def box_on_host(map_HxW: np.ndarray, keep: float) -> tuple[int, int, int, int]:
    """The box of one image: first and end row, first and end column, as `boxes`."""
    size = map_HxW.shape[0]
    side = int(np.round(np.float32(size) * np.sqrt(np.float32(1) - np.float32(keep))))
    high = map_HxW.max()
    ties = np.nonzero(map_HxW >= high - TIE * (high - map_HxW.min()))
    first_row, first_column = (int(np.round(places.mean())) - side // 2 for places in ties)
    return max(first_row, 0), min(first_row + side, size), max(first_column, 0), min(first_column + side, size)


class _Step:
    """What both steps share: model, resident images, settings and the optimizer (Adam, as the config's default)."""

    def __init__(self, model: Network, images_NxHxWxC: np.ndarray, specs, *, channels_last: bool = False):
        if specs.optimizer.name != "adam" or specs.optimizer.weight_decay:
            raise ValueError(f"optimizer must be adam without weight decay, got {specs.optimizer}.")
        self.model, self.specs = model, specs
        self.device = model.mean.device
        # Images keep their original layout: NCHW, or NHWC viewed as NCHW.
        images = torch.tensor(images_NxHxWxC.transpose(0, 3, 1, 2), device=self.device)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.images = images.contiguous(memory_format=self.memory_format)
        self.order = torch.randperm(len(images), device=self.device)

    def draw(self):
        """Clean views of a random batch, partners and keep shares."""
        batch_size = self.specs.train.batch_size
        views = make_views(choose_batch(self.images, self.order, batch_size), self.specs.augment)
        views = views.contiguous(memory_format=self.memory_format)
        partner_B = draw_partners(batch_size, self.device)
        return views, partner_B, draw_keep(2 * batch_size, self.specs.mix, self.device)


class Eager(_Step):
    """The usual implementation. All three forward passes update the running statistics, as usual."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=self.specs.optimizer.learning_rate)

    def maps(self, views_BxCxHxW) -> np.ndarray:
        """A forward and a backward pass only for the maps, observed by hooks; the maps are made on the host."""
        activations, gradients, hooks = {}, {}, []

        def watch(name):
            def hook(module, inputs, output):
                activations[name] = output
                output.register_hook(lambda gradient: gradients.update({name: gradient}))

            return getattr(self.model.encoder, name).register_forward_hook(hook)

        stages = self.specs.attribution.stages
        hooks = [watch(name) for name in stages]
        simclr(self.model(views_BxCxHxW)[0], self.specs.objective).backward()
        for hook in hooks:
            hook.remove()
        # The gradients of the parameters are by-products and must not reach the optimizer.
        self.optimizer.zero_grad()
        on_host = lambda tensors: [tensors[name].detach().float().cpu().numpy() for name in stages]
        activations, gradients, size = on_host(activations), on_host(gradients), views_BxCxHxW.shape[2]
        per_image = range(views_BxCxHxW.shape[0])
        return np.stack([map_on_host([a[i] for a in activations], [g[i] for g in gradients], size) for i in per_image])

    def mix(self, views_BxCxHxW, maps_BxHxW: np.ndarray, partner_B, keep_B):
        """Box, resized partner and weight, image by image."""
        mixed, weights = views_BxCxHxW.clone(), []
        partners, keeps, size = partner_B.tolist(), keep_B.tolist(), views_BxCxHxW.shape[2]
        for i, (partner, keep) in enumerate(zip(partners, keeps)):
            top, bottom, left, right = box_on_host(maps_BxHxW[i], keep)
            shape = (bottom - top, right - left)
            small = F.interpolate(views_BxCxHxW[partner][None], size=shape, mode="bilinear", antialias=True)
            mixed[i, :, top:bottom, left:right] = small[0]
            weights.append(1 - shape[0] * shape[1] / size**2)
        return mixed, torch.tensor(weights, device=self.device)

    def backward(self, views_BxCxHxW, partner_B, keep_B):
        """The loss; its gradient is left in the parameters."""
        mixed, weight_B = self.mix(views_BxCxHxW, self.maps(views_BxCxHxW), partner_B, keep_B)
        z_BxD, mixed_z_BxD = self.model(views_BxCxHxW)[0], self.model(mixed)[0]
        objective = self.specs.objective
        loss = simclr(z_BxD, objective) + mixed_simclr(z_BxD, mixed_z_BxD, weight_B, objective)
        loss.backward()
        return loss.detach()

    def __call__(self):
        self.optimizer.zero_grad()
        loss = self.backward(*self.draw())
        self.optimizer.step()
        return loss


class Shared(_Step):
    """Our algorithm: one clean forward pass, everything batched and on the device."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.parameters = list(self.model.parameters())
        for module in self.model.modules():
            if isinstance(module, BatchNorm):
                module.visible = True
        rate = self.specs.optimizer.learning_rate
        try:
            self.optimizer = torch.optim.Adam(self.parameters, lr=rate, fused=True)
        except (RuntimeError, TypeError):  # older versions have no fused Adam for every device
            self.optimizer = torch.optim.Adam(self.parameters, lr=rate)
        self.loss_and_gradients = self._draw_and_gradients

    def maps(self, clean_loss, activations: dict, size: int):
        """Maps from the same graph that later gives the training gradient."""
        stages = [activations[name] for name in self.specs.attribution.stages]
        gradients = torch.autograd.grad(clean_loss, stages, retain_graph=True)
        return layer_maps([stage.detach() for stage in stages], gradients, size)

    def gradients(self, views_BxCxHxW, partner_B, keep_B):
        """(loss, gradient of every parameter)."""
        objective = self.specs.objective
        z_BxD, activations = self.model(views_BxCxHxW)
        clean_loss = simclr(z_BxD, objective)
        maps_BxHxW = self.maps(clean_loss, activations, views_BxCxHxW.shape[2])
        mixed, weight_B = mix(views_BxCxHxW, boxes(maps_BxHxW, keep_B), partner_B)
        mixed_z_BxD = self.model(mixed.contiguous(memory_format=self.memory_format), update=False)[0]
        loss = clean_loss + mixed_simclr(z_BxD, mixed_z_BxD, weight_B, objective)
        return loss.detach(), torch.autograd.grad(loss, self.parameters)

    def _draw_and_gradients(self):
        return self.gradients(*self.draw())

    def compile(self, mode: str) -> "Shared":
        """Draws, both forward passes and both gradients as one graph, which computes only what is needed.

        Compiling only the forward passes is not enough: a compiled backward pass computes all of its gradients, so
        the one for the maps would also pay for those of the parameters.
        """
        graph = make_fx(lambda images: self._draw_and_gradients())(self.images)
        self._graph = torch.compile(graph, mode=mode, dynamic=False, fullgraph=True)

        def run():
            with torch.no_grad():
                return self._graph(self.images)

        self.loss_and_gradients = run
        return self

    def __call__(self):
        if hasattr(torch.compiler, "cudagraph_mark_step_begin"):
            torch.compiler.cudagraph_mark_step_begin()
        loss, gradients = self.loss_and_gradients()
        for parameter, gradient in zip(self.parameters, gradients):
            parameter.grad = gradient
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.clone()
