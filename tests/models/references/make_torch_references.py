"""Makes torch_outputs.npz, torch_names.json and the small checkpoint files: what PyTorch's models and torch.save give.

    python tests/models/references/make_torch_references.py

Needs torch, torchvision, timm and safetensors, none of which the tests need. The weights are those of
`drawn_weights.py`, so only outputs are stored. `HERE/torch_names.json` also keeps the names and shapes of the full
models' state dicts.
"""

import json
import pathlib

import numpy as np
import safetensors.torch
import timm
import torch
import torchvision
from drawn_weights import drawn, images, state_of
from timm.models import vision_transformer
from torch import nn

HERE = pathlib.Path(__file__).parent
CLASSES = 7


class Classifier32(nn.Module):
    """Nine 3x3 convolutions, each with batch norm and LeakyReLU(0.2), every third with stride 2; a layer bn10 that
    nothing passes; the mean over the positions; a dense layer without bias. In evaluation dropout does nothing."""

    def __init__(self, num_classes):
        super().__init__()
        channels = (3, 64, 64, 128, 128, 128, 128, 128, 128, 128)
        for i in range(1, 10):
            stride = 2 if i % 3 == 0 else 1
            setattr(self, f"conv{i}", nn.Conv2d(channels[i - 1], channels[i], 3, stride, 1, bias=False))
            setattr(self, f"bn{i}", nn.BatchNorm2d(channels[i]))
        self.bn10 = nn.BatchNorm2d(128)
        self.fc = nn.Linear(128, num_classes, bias=False)

    def stages(self, x):
        for i in range(1, 10):
            x = nn.functional.leaky_relu(getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x)), 0.2)
            if i % 3 == 0:
                yield x

    def forward(self, x):
        features = list(self.stages(x))[-1].mean((2, 3))
        return features, self.fc(features)


def resnet(name, stem):
    model = getattr(torchvision.models, name)(num_classes=CLASSES)
    if stem == "cifar":
        model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    return model


def filled(model, shapes=None, convert=None):
    """The model in evaluation mode, with drawn weights; `shapes` of a state dict to be converted first."""
    shapes = shapes or {name: tuple(x.shape) for name, x in model.state_dict().items()}
    state = {name: torch.from_numpy(x) for name, x in state_of(shapes).items()}
    state = convert(state, model) if convert else state
    missing = model.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys
    assert all(name.endswith("num_batches_tracked") for name in missing.missing_keys), missing.missing_keys
    return model.eval(), shapes


def outputs_of_resnet(model, x):
    maps = []
    for i in range(1, 5):
        getattr(model, f"layer{i}").register_forward_hook(lambda module, given, out: maps.append(out))
    logits = model(x)
    return maps, maps[-1].mean((2, 3)), logits


def outputs_of_classifier32(model, x):
    return list(model.stages(x)), *model(x)


def outputs_of_vit(model, x):
    """Of depth 12: behind blocks 3, 6 and 9, and before the last one."""
    maps, skip = [], model.num_prefix_tokens
    for i in (2, 5, 8, 10):
        model.blocks[i].register_forward_hook(lambda module, given, out: maps.append(out[:, skip:]))
    features = model.forward_head(model.forward_features(x), pre_logits=True)
    side = int(maps[0].shape[1] ** 0.5)
    maps = [tokens.transpose(1, 2).reshape(len(x), -1, side, side) for tokens in maps]
    return maps, features, model.head(features)


def small_vit(size, patch, **options):
    options = dict(embed_dim=128, depth=12, num_heads=2, num_classes=CLASSES) | options
    return vision_transformer.VisionTransformer(img_size=size, patch_size=patch, **options)


def dinov2(size, registers):
    """A small DINOv2, from a state dict as Meta publishes them: a grid of 5 x 5 positions, resized by timm."""
    options = dict(init_values=1e-5, num_classes=0)
    if registers:
        options |= dict(reg_tokens=registers, no_embed_class=True)
    model = small_vit(size, 14, **options)
    shapes = {name: tuple(x.shape) for name, x in model.state_dict().items() if name != "reg_token"}
    shapes |= {"mask_token": (1, 128), "pos_embed": (1, 26, 128)}
    shapes |= {"register_tokens": (1, registers, 128)} if registers else {}
    return filled(model, shapes, vision_transformer.checkpoint_filter_fn)


def make_outputs():
    vit = filled(small_vit(32, 4))
    models = {
        "resnet18_imagenet": (outputs_of_resnet, 64, *filled(resnet("resnet18", "imagenet"))),
        "resnet18_cifar": (outputs_of_resnet, 16, *filled(resnet("resnet18", "cifar"))),
        "resnet34_cifar": (outputs_of_resnet, 16, *filled(resnet("resnet34", "cifar"))),
        "resnet50_imagenet": (outputs_of_resnet, 64, *filled(resnet("resnet50", "imagenet"))),
        "classifier32": (outputs_of_classifier32, 32, *filled(Classifier32(CLASSES))),
        "vit": (outputs_of_vit, 32, *vit),
        "dinov2_smaller": (outputs_of_vit, 42, *dinov2(42, 0)),
        "dinov2_registers_larger": (outputs_of_vit, 98, *dinov2(98, 4)),
    }
    stored, names = {}, {}
    for name, (outputs, size, model, shapes) in models.items():
        with torch.no_grad():
            maps, features, logits = outputs(model, torch.from_numpy(images(size)).permute(0, 3, 1, 2))
        stored[f"{name}/features"], names[name] = features.numpy(), {"size": size, "shapes": shapes}
        if logits.shape[-1] == CLASSES:
            stored[f"{name}/logits"] = logits.numpy()
        for i, x in enumerate(maps, start=1):
            stored[f"{name}/stage{i}/positions"] = x.mean(1).numpy()
            stored[f"{name}/stage{i}/channels"] = x.mean((2, 3)).numpy()
        print(name, features.abs().max().item())
    np.savez_compressed(HERE / "torch_outputs.npz", **stored)
    return names


FULL = {
    "resnet18": lambda: torchvision.models.resnet18(),
    "resnet34": lambda: torchvision.models.resnet34(),
    "resnet50": lambda: torchvision.models.resnet50(),
    "vit_tiny_token": lambda: timm.create_model("vit_tiny_patch16_224"),
    "vit_small": lambda: timm.create_model("vit_small_patch16_224"),
    "vit_base": lambda: timm.create_model("vit_base_patch16_224"),
    "dinov2_small": lambda: timm.create_model("vit_small_patch14_dinov2", img_size=224),
    "dinov2_base": lambda: timm.create_model("vit_base_patch14_dinov2", img_size=224),
    "dinov2_small_registers": lambda: timm.create_model("vit_small_patch14_reg4_dinov2", img_size=224),
    "dinov2_base_registers": lambda: timm.create_model("vit_base_patch14_reg4_dinov2", img_size=224),
}


def make_names(names):
    with torch.device("meta"):
        full = {name: {key: list(x.shape) for key, x in build().state_dict().items()} for name, build in FULL.items()}
    (HERE / "torch_names.json").write_text(json.dumps({"drawn": names, "full": full}, separators=(",", ":")) + "\n")


def make_files():
    """The same contents in both formats of torch.save, and its tensors as safetensors."""
    numbers = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    state = nn.Linear(3, 2).state_dict()
    state["weight"], state["bias"] = torch.from_numpy(drawn("weight", (2, 3))), torch.from_numpy(drawn("bias", (2,)))
    content = {
        "state_dict": state,
        "epoch": 3,
        "best": 0.5,
        "name": "größe",
        "done": (True, None, [1, 2]),
        "shape": numbers.shape,
        "parameter": nn.Parameter(numbers[0]),
        "strided": numbers.permute(2, 0, 1)[1:, :, ::2],
        "half": numbers.half(),
        "bfloat16": numbers.bfloat16(),
        "double": numbers.double(),
        "integers": torch.arange(-3, 3),
        "bytes": torch.arange(3, dtype=torch.uint8),
        "flags": torch.tensor([True, False]),
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1, "params": [0, 1]}]},
    }
    torch.save(content, HERE / "small_zip.pth")
    torch.save(content, HERE / "small_legacy.pth", _use_new_zipfile_serialization=False)
    tensors = {name: x.detach().contiguous() for name, x in content.items() if isinstance(x, torch.Tensor)}
    safetensors.torch.save_file(tensors, HERE / "small.safetensors")


if __name__ == "__main__":
    make_files()
    make_names(make_outputs())
