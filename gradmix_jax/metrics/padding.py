"""Sizes to pad arrays to, so that arrays of many sizes share few compiled programs."""


def padded_size(size: int, *, multiple: int = 32) -> int:
    """The smallest size of a short list that holds `size` rows: at most a quarter more, or `multiple` - 1 rows.

    Args:
      size: 1 or more.
      multiple: a power of 2 that the result is a multiple of.
    """
    step = max(1 << max(size.bit_length() - 3, 0), multiple)
    return -(-size // step) * step
