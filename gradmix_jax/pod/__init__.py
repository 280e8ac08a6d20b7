"""The processes of a pod: joining, comparing their runs, watching each other, stopping and failing together."""

from gradmix_jax.pod.agreement import Gathering, Stopping, agree, get
from gradmix_jax.pod.joining import initialize
from gradmix_jax.pod.watching import OTHER_FAILED, joined, leave, store, wait_for_verdict

__all__ = [
    "OTHER_FAILED",
    "Gathering",
    "Stopping",
    "agree",
    "get",
    "initialize",
    "joined",
    "leave",
    "store",
    "wait_for_verdict",
]
