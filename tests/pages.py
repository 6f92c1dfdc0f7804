"""The documentation's pages and their fenced blocks."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("README*.md")), *sorted((ROOT / "docs").glob("*.md"))]
SHELL = ("sh", "bash", "shell")
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block of a page.

    Attributes:
        language: The info string after the fence, or "".
        line: Number of the block's first line in the page.
        text: The lines, without the indentation of a list item.
    """

    language: str
    line: int
    text: str


def blocks(page):
    """The fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    result = []
    for match in FENCE.finditer(text):
        indent, language, body = match.groups()
        body = re.sub(f"^{indent}", "", body, flags=re.MULTILINE)
        result.append(Block(language, text[: match.start(3)].count("\n") + 1, body))
    return result


def lines(text):
    """The commands of a shell block, with backslash continuations joined and without comments."""
    joined = re.sub(r"\\\n\s*", "", text)
    stripped = (re.sub(r"(^|\s)#\s.*", "", line).rstrip() for line in joined.split("\n"))
    return [line for line in stripped if line]
