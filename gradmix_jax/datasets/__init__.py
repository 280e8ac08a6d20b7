"""Open set data: known classes to train on, and the test images of known and unknown classes."""

from gradmix_jax.datasets.build import OpenSet, known_test, open_set
from gradmix_jax.datasets.source import Source, read_all, read_range, resident
from gradmix_jax.datasets.spec import Spec
from gradmix_jax.datasets.stream import host_batches

__all__ = ["OpenSet", "Source", "Spec", "host_batches", "known_test", "open_set", "read_all", "read_range", "resident"]
