"""Reads back the files of a run: each has one schema, which is checked only here."""

from gradmix_jax.stored.arrays import Arrays, ArraySpec, read_npz
from gradmix_jax.stored.export import export_metadata
from gradmix_jax.stored.files import (
    FEATURES,
    GALLERY,
    MISSING_PARTS,
    RESULTS,
    SCORES,
    VERSION,
    arrays,
    check_results,
    check_same_run,
    config,
    results,
)
from gradmix_jax.stored.log import metrics
from gradmix_jax.stored.schema import Wrong
from gradmix_jax.stored.sums import SUMS, check_sums, digest, read_sums, write_sums

__all__ = ["FEATURES", "GALLERY", "MISSING_PARTS", "RESULTS", "SCORES", "VERSION", "ArraySpec", "Arrays", "Wrong"]
__all__ += ["arrays", "check_results", "check_same_run", "config", "export_metadata", "metrics", "read_npz", "results"]
__all__ += ["SUMS", "check_sums", "digest", "read_sums", "write_sums"]
