"""Converts the package's docstrings, which read like Markdown, to reStructuredText."""

import re
import textwrap


def restructured(lines: list[str]) -> list[str]:
    """A docstring of this package, plain text with `code` and indented blocks, as reStructuredText."""
    text = _with_commands_indented("\n".join(lines))
    lines = text.split("\n")
    parts = re.split(r"(`[^`]+`|\*\*[^*`\n]+\*\*)", text)
    parts[::2] = [_escaped(part) for part in parts[::2]]
    parts[1::2] = [f"`{part}`" if part[0] == "`" else part for part in parts[1::2]]
    result = "".join(parts).split("\n")
    blocks = _blocks(lines)
    for number in (number for block in blocks for number in block):
        result[number] = lines[number]  # code is shown as it is written
    for block in reversed(blocks):
        indent = " " * (len(lines[block.start]) - len(lines[block.start].lstrip()))
        result[block.start : block.start] = [f"{indent[:-4]}::", ""]
    return result


def _with_commands_indented(text):
    """Lines that one types, with which the text of a command module begins, indented as other code is."""
    return re.sub(r"^python -m .+(\n.+)*", lambda block: textwrap.indent(block[0], " " * 4), text, flags=re.MULTILINE)


def _escaped(text):
    """Plain text with everything escaped that would be markup: emphasis, substitutions, references, and "K." as a list.

    Names that share a description are joined, because the builder would take the first as the type of the second.
    """
    text = re.sub(r"^ +\w+(?:, \w+)+(?=: )", lambda names: names[0].replace(", ", ","), text, flags=re.MULTILINE)
    text = re.sub(r"(\w)_(?!\w)", r"\1\\_", re.sub(r"([*|])", r"\\\1", text))
    return re.sub(r"^( *(?:\w+: )?[A-Za-z])\.(?=\s|$)", r"\1\\.", text, flags=re.MULTILINE)


def _blocks(lines):
    """Ranges of lines indented by 4 more than the paragraph before the blank line above them."""
    blocks, number = [], 1
    indent = lambda line: len(line) - len(line.lstrip())
    while number < len(lines):
        before = next((line for line in reversed(lines[:number]) if line.strip()), "")
        starts = lines[number].strip() and not lines[number - 1].strip()
        if starts and indent(lines[number]) == indent(before) + 4:
            end = number
            while end < len(lines) and (not lines[end].strip() or indent(lines[end]) >= indent(lines[number])):
                end += 1
            while not lines[end - 1].strip():
                end -= 1
            blocks.append(range(number, end))
            number = end
        number += 1
    return blocks
