"""The pages of the documentation, taken apart: fenced blocks, links, anchors, commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])

_FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_COMMAND = re.compile(r"`(ptq-eval [^`]+)`")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the words after it, its text and its first line in the page."""

    language: str
    words: tuple[str, ...]
    text: str
    line: int

    @property
    def file(self) -> str:
        """NAME of `title="NAME"`, or nothing."""
        return next((word[7:-1] for word in self.words if word.startswith('title="')), "")


def name(page: Path) -> str:
    """The page as tests are called after it."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        language, *words = match["info"].split() or [""]
        found.append(Block(language, tuple(words), match["body"], text.count("\n", 0, match.start()) + 2))
    return found


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def links(page: Path) -> list[str]:
    """The targets of links and images."""
    return _LINK.findall(prose(page))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ +(.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(page: Path) -> Iterator[list[str]]:
    """Every complete `ptq-eval …` command, in blocks and in running text, as the words after `ptq-eval`."""
    lines = [line for block in blocks(page) for line in block.text.replace("\\\n", " ").splitlines()]
    quoted = [found.replace("\n", " ") for found in _COMMAND.findall(prose(page))]
    for line in [*lines, *quoted]:
        line = line.strip().removeprefix("$ ")
        if line.startswith("ptq-eval "):
            yield shlex.split(re.sub(r"\$\{?\w+\}?", "1", line), comments=True)[1:]
