"""The model of an export as an ONNX file: images to features, projection and logits, for any number of images."""

from typing import Any

import jax
import numpy as np

from gradmix_jax.portable.classifier import Classifier

FILE = "model.onnx"
CHECKED_IMAGES, TOLERANCE = 5, 1e-4


def check_installed() -> None:
    """Raises ValueError unless the converter and the runtime that checks it are installed."""
    _packages()


def _packages() -> tuple[Any, Any, Any]:
    try:
        import jax2onnx
        import onnx
        import onnxruntime
    except ImportError as error:
        raise ValueError(
            f"--onnx needs the packages jax2onnx, onnx and onnxruntime, and {error.name} is missing; "
            "pip install jax2onnx onnx onnxruntime."
        ) from error
    return jax2onnx, onnx, onnxruntime


def write(classifier: Classifier, path: str) -> None:
    """Write the model with its weights, uint8 images [N, H, W, C] to float32 outputs [N, D] by name.

    The score is not included, because nearest neighbors of a symbolic number of images do not convert.

    Raises:
      ValueError: a package is missing, or onnxruntime gives other outputs than JAX on random images.
    """
    jax2onnx, onnx, onnxruntime = _packages()
    image = classifier.metadata["image"]
    shape = (image["size"], image["size"], image["channels"])
    weights = jax.tree.map(jax.numpy.asarray, dict(classifier.weights))
    images = np.random.default_rng(0).integers(0, 256, (CHECKED_IMAGES, *shape), np.uint8)
    expected = {name: np.asarray(x) for name, x in classifier.outputs(images).items()}
    names = list(expected)

    def outputs_of(images_BxHxWxC):
        outputs = classifier.model(weights, images_BxHxWxC)
        return tuple(outputs[name] for name in names)

    images_BxHxWxC = jax.ShapeDtypeStruct(("B", *shape), np.uint8)
    model = jax2onnx.to_onnx(outputs_of, [images_BxHxWxC], input_names=["images"], output_names=names)
    onnx.save(model, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for name, found in zip(names, session.run(names, {"images": images})):
        error = float(np.max(np.abs(found - expected[name]) / np.maximum(1, np.abs(expected[name]))))
        if not error <= TOLERANCE:
            raise ValueError(f"{FILE} differs from the model: {name} by {error:.2g} on {CHECKED_IMAGES} random images.")
