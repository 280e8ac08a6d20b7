"""Open set data: known classes to train on, and the test images of known and unknown classes."""

from gradmix_jax.data.build import OpenSet, listed, open_set, shared_classes, stratified
from gradmix_jax.data.facts import facts
from gradmix_jax.data.others import corrupted, labeled, out_of_distribution, shifted
from gradmix_jax.data.readers import READERS, Reader, check_name
from gradmix_jax.data.source import (
    ArrayRecords,
    DataSet,
    Source,
    check_copies,
    check_readable,
    hash_of,
    read_all,
    read_range,
    resident,
)
from gradmix_jax.data.spec import Spec, check_unknown_name, same_data
from gradmix_jax.data.stream import host_batches

__all__ = ["OpenSet", "Source", "Spec", "host_batches", "open_set", "read_all", "read_range", "resident", "stratified"]
__all__ += ["READERS", "ArrayRecords", "DataSet", "Reader", "check_copies", "check_name", "check_unknown_name"]
__all__ += ["check_readable", "facts", "hash_of"]
__all__ += ["corrupted", "labeled", "listed", "out_of_distribution", "same_data", "shared_classes", "shifted"]
