"""The model, the headline score and its explanation as JAX functions of named arrays.

    outputs = model(weights, images_BxHxWxC)         # uint8 -> {"features": ..., "projection": ..., "logits": ...}
    found = score(arrays, outputs)                   # {"score": B, "class": B, "class_scores": BxK}
    map_BxHxW = explain(weights, arrays, images_BxHxWxC)

Letters: B batch, H W image, C channels, K classes, M training images, D feature.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from gradmix_jax import augment, models
from gradmix_jax.evaluation.fitting import Evaluator
from gradmix_jax.evaluation.spec import Setup
from gradmix_jax.method.attribution import input_gradient
from gradmix_jax.portable.host_scores import form_of
from gradmix_jax.scores import Outputs, odin
from gradmix_jax.scores.fitted import LOGITS, PERTURBED
from gradmix_jax.scores.neighbors import PRECISION, class_similarities

# Averaging window of the explanation, pixels.
SMOOTHING = 3


@dataclasses.dataclass(frozen=True)
class Functions:
    """The functions of a run.

    Attributes:
      weights: {name: array} of the network.
      arrays: {name: array} that the score has learned.
      model, score, explain: see the module; not jitted.
      double: whether the score computes in float64: call it with `jax.enable_x64(True)`.
    """

    weights: dict[str, np.ndarray]
    arrays: dict[str, np.ndarray]
    model: Callable
    score: Callable
    explain: Callable
    double: bool


def make(evaluator: Evaluator) -> Functions:
    """The functions of a run whose headline score has been fitted.

    Raises:
      ValueError: the score cannot be traced by JAX.
    """
    model, setup = evaluator.model, evaluator.model.setup
    weights = {name: np.asarray(x) for name, x in flatten_dict(dict(model.variables), sep="/").items()}
    outputs_of = _make_model(setup, model.data.num_classes)
    arrays, score = _make_score(evaluator)

    def run_model(weights, images_BxHxWxC):
        return outputs_of(weights, _normalized(setup, images_BxHxWxC))

    def explain(weights, arrays, images_BxHxWxC):
        normalized = _normalized(setup, images_BxHxWxC)
        # Images do not interact: the gradient of the sum holds each image's own.
        total = lambda images: score(arrays, outputs_of(weights, images))["score"].sum()
        return input_gradient(jax.grad(total)(normalized), smoothing=SMOOTHING)

    double = any(array.dtype == np.float64 for array in arrays.values())
    functions = Functions(weights, arrays, run_model, score, explain, double)
    _check_traceable(functions, setup)
    return functions


def _check_traceable(functions: Functions, setup: Setup) -> None:
    shape = (1, setup.dataset.image_size, setup.dataset.image_size, setup.dataset.channels)
    image = jax.ShapeDtypeStruct(shape, jnp.uint8)
    outputs = jax.eval_shape(functions.model, functions.weights, image)
    try:
        with jax.enable_x64(functions.double):
            jax.eval_shape(functions.score, functions.arrays, outputs)
    except jax.errors.JAXTypeError as error:
        raise ValueError(
            f"evaluate.score {setup.evaluate.score!r} computes with NumPy and has no JAX form; add one to "
            "gradmix_jax.portable.host_scores.FORMS."
        ) from error


def _normalized(setup: Setup, images_BxHxWxC):
    images_BxHxWxC = images_BxHxWxC.astype(jnp.float32) / 255.0
    return augment.normalize(images_BxHxWxC, mean=setup.normalization.mean, std=setup.normalization.std)


def _make_model(setup: Setup, num_classes: int) -> Callable:
    """(weights, normalized images) -> the outputs that the evaluation has, stages only if the headline is of one."""
    network, feature = models.create(setup.model, num_classes=num_classes), setup.evaluate.feature
    perturbation = setup.evaluate.perturbation if setup.evaluate.score == "odin" else None

    def outputs_of(weights, normalized_BxHxWxC):
        variables = {"batch_stats": {}} | unflatten_dict(dict(weights), sep="/")
        z_BxD, out = network.apply(variables, normalized_BxHxWxC, train=False)
        outputs = {"features": out["features"], "projection": z_BxD}
        if feature in out and feature not in (LOGITS, *outputs):
            outputs[feature] = out[feature].astype(jnp.float32).mean(axis=(1, 2))
        if LOGITS in out:
            outputs[LOGITS] = out[LOGITS]
        if perturbation is not None:
            logits_of = lambda images: network.apply(variables, images, train=False)[1][LOGITS]
            outputs[PERTURBED] = odin.perturbed_logits(logits_of, normalized_BxHxWxC, **perturbation)
        return outputs

    return outputs_of


def _make_score(evaluator: Evaluator) -> tuple[dict[str, np.ndarray], Callable]:
    """({name: array} that the score has learned, (arrays, outputs) -> score, class and class scores)."""
    spec, fitted, linear = evaluator.model.spec, evaluator.fitted, evaluator.linear
    on_logits, form = spec.feature == LOGITS, form_of(spec.score)
    learned = {"score": fitted.states[spec.feature][spec.score]}
    if not on_logits:
        learned["gallery"] = fitted.banks[spec.feature]
    elif not evaluator.model.setup.model.has_logits:
        learned["probe"] = (linear.kernel_FxK, linear.bias_K)
    arrays, restore = split(learned)

    def of_one(arrays, outputs):
        learned = restore(arrays)
        outputs = dict(outputs)
        if "probe" in learned:
            kernel_FxK, bias_K = learned["probe"]
            outputs[LOGITS] = jnp.matmul(outputs["features"], kernel_FxK, precision=PRECISION) + bias_K[None]
        given = (
            Outputs(outputs["features"], outputs[LOGITS], outputs.get(PERTURBED))
            if on_logits
            else Outputs(outputs[spec.feature])
        )
        classes_1xK = given.logits if on_logits else class_similarities(learned["gallery"], given.features)
        score_1 = form(learned["score"], given)
        return {"score": score_1[0].astype(jnp.float32), "class_scores": classes_1xK[0].astype(jnp.float32)}

    def score(arrays, outputs):
        # One image at a time under vmap, because the scores use blocks of a fixed size, unlike a batch.
        rows = jax.tree.map(lambda x_BxD: x_BxD[:, None], dict(outputs))
        found = jax.vmap(lambda row: of_one(arrays, row))(rows)
        return found | {"class": found["class_scores"].argmax(axis=1).astype(jnp.int32)}

    return arrays, score


def split(tree: Any) -> tuple[dict[str, np.ndarray], Callable[[Mapping[str, Any]], Any]]:
    """({name: array}, function that puts such arrays back into the tree).

    Arrays that occur twice in the tree are stored once; other leaves belong to the function.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    arrays, names, seen = {}, [], {}
    for path, leaf in leaves:
        if not isinstance(leaf, (np.ndarray, np.generic, jax.Array)):
            names.append(None)
            continue
        if id(leaf) not in seen:
            seen[id(leaf)] = jax.tree_util.keystr(path, simple=True, separator="/")
            arrays[seen[id(leaf)]] = np.asarray(leaf)
        names.append(seen[id(leaf)])
    constants = [leaf for _, leaf in leaves]

    def restore(arrays):
        filled = [leaf if name is None else arrays[name] for leaf, name in zip(constants, names)]
        return jax.tree_util.tree_unflatten(structure, filled)

    return arrays, restore
