"""GradMix in JAX: attribution-based mixing for open set recognition.

The library's names are imported on first use, so that `import gradmix_jax` costs nothing:

    from gradmix_jax import attribution, corruptions, evaluate, masks, metrics, mix, objectives, probe, scores
    from gradmix_jax import explain_and_mix, no_tap
"""

import importlib

__version__ = "0.1.0"

# Public name -> the module that it is, or "module:function".
_LIBRARY = {
    "attribution": "gradmix_jax.method.attribution",
    "corruptions": "gradmix_jax.corruptions",
    "evaluate": "gradmix_jax.run",  # evaluate.evaluate(config, workdir)
    "explain_and_mix": "gradmix_jax.method.any_model:explain_and_mix",
    "masks": "gradmix_jax.method.masks",
    "metrics": "gradmix_jax.metrics",
    "mix": "gradmix_jax.method.mix",
    "no_tap": "gradmix_jax.method.any_model:no_tap",
    "objectives": "gradmix_jax.objectives",
    "predict": "gradmix_jax.predict",
    "probe": "gradmix_jax.evaluation.probes",
    "report": "gradmix_jax.report",
    "scores": "gradmix_jax.scores",
    "splits": "gradmix_jax.data.splits",
}


def __getattr__(name: str):
    if name not in _LIBRARY:
        raise AttributeError(f"module 'gradmix_jax' has no attribute {name!r}")
    module, _, attribute = _LIBRARY[name].partition(":")
    imported = importlib.import_module(module)
    return getattr(imported, attribute) if attribute else imported


def __dir__() -> list[str]:
    return sorted({*globals(), *_LIBRARY})
