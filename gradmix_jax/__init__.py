"""GradMix in JAX: attribution-based mixing for open set recognition."""

__version__ = "0.1.0"
