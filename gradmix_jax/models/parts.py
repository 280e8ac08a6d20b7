"""The parts of a network by their names in `model.freeze`: stem, stages, projection, classifier."""

HEADS = ("projection", "classifier")


def part_of(path: tuple[str, ...]) -> str:
    """The part that a module or an array belongs to: "stem", "stage1" ..., "projection" or "classifier".

    Args:
      path: names from the network or from the encoder on, e.g. ("encoder", "stage1_block1", "bn1", "scale").
    """
    first = path[1] if path[0] == "encoder" else path[0]
    if first in HEADS:
        return first
    if first == "norm":  # after the last block of a transformer
        return "stage4"
    return first.partition("_")[0] if first.startswith("stage") else "stem"


def expanded(names: tuple[str, ...], stages: tuple[str, ...]) -> tuple[str, ...]:
    """Parts of a network, with "encoder" expanded into its stem and stages."""
    encoder = ("stem", *stages)
    return tuple(dict.fromkeys(part for name in names for part in (encoder if name == "encoder" else (name,))))
