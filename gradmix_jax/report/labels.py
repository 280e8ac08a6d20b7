"""Names of classes and methods, which may be anything, cut to a length and as text that matplotlib draws."""

from gradmix_jax.fields import one_line


def plain(text: str) -> str:
    """Text that matplotlib shows as it is: a dollar would start a formula, and a lone surrogate is an error."""
    return one_line(str(text)).replace("$", r"\$")


def cut(name: str, most: int = 24) -> str:
    """At most this many letters: a longer name, which would push a plot or table off its page, loses its middle."""
    if len(name) > most:
        tail = most // 3
        name = f"{name[: most - tail - 1]}…{name[-tail:]}"
    return name


def short(name: str, most: int = 24) -> str:
    """`plain` of `cut`."""
    return plain(cut(one_line(name), most))
