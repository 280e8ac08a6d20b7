"""Names of classes and methods, which may be anything, as text that matplotlib draws."""


def plain(text: str) -> str:
    """Text that matplotlib shows as it is: a dollar would start a formula."""
    return str(text).replace("$", r"\$")


def short(name: str, most: int = 24) -> str:
    """`plain`, of at most so many letters: a longer name loses its middle, or it would push the plot off its page."""
    if len(name) > most:
        tail = most // 3
        name = f"{name[: most - tail - 1]}…{name[-tail:]}"
    return plain(name)
