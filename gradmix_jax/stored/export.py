"""The schema of an export's metadata.json, and its reader."""

import os
from typing import Any

from gradmix_jax import workdir as workdir_lib
from gradmix_jax.stored.schema import Wrong, anything, like, listing, nullable, number, record, text, whole

_METADATA = record(
    {
        "class_names": listing(text),
        "image": record(
            {"size": whole(1, required=True), "channels": whole(1, required=True), "background": text},
            required=("size", "channels", "background"),
        ),
        "score": record(
            {"name": text, "feature": text, "arrays": listing(text), "inputs": listing(text), "float64": like(True)},
            required=("name", "feature", "arrays", "inputs", "float64"),
        ),
        "model": record({"weights": listing(text)}, required=("weights",)),
        "calibration_scores": nullable(listing(like(0.0))),
        "threshold": number(),
        "step": whole(required=True),
        "steps": whole(required=True),
        "config": anything,
        "checksums": text,
    },
    required=("class_names", "image", "score", "model", "calibration_scores", "step", "steps"),
)


def export_metadata(path: str, *, wanted: str, newest: int) -> dict[str, Any]:
    """The content of metadata.json.

    Args:
      path: path of the file.
      wanted: the name of the format.
      newest: the newest version of the format that this code reads.

    Raises:
      ValueError: the file is missing or damaged, or has another format or a newer version.
    """
    found = workdir_lib.read_json(*os.path.split(path))
    version = found.get("version")
    if found.get("format") != wanted or isinstance(version, bool) or not isinstance(version, int):
        raise ValueError(f"{path} is damaged: its format is {found.get('format')!r:.60}, version {version!r:.20}.")
    if version > newest:
        raise ValueError(f"{path} was written by a newer gradmix_jax (version {version}); update gradmix_jax.")
    try:
        _METADATA("metadata", found)
    except Wrong as error:
        raise ValueError(f"{path} is damaged: {str(error).removeprefix('metadata.')}.") from None
    return found
