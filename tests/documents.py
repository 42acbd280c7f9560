"""The code blocks of a page of documentation."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt


@dataclass(frozen=True)
class Block:
    """A block of code: its first line in the page, its language, "" where it is indented, and its text."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: Path, name: str) -> list[Block]:
    """All blocks of code, fenced and indented, wherever they stand."""
    return [
        Block(name, token.map[0] + (2 if token.type == "fence" else 1), token.info, token.content)
        for token in MarkdownIt("commonmark").parse(page.read_text())
        if token.type in ("fence", "code_block") and token.map
    ]


def commands_of(block: Block) -> list[list[str]]:
    """The commands of a shell block, split into words as a shell would split them, without its comments."""
    lines = block.text.replace("\\\n", " ").splitlines()
    commands = [shlex.split(line, comments=True) for line in lines]
    return [command for command in commands if command]


def one_script(blocks: Sequence[Block]) -> str:
    """The Python blocks of a page as one script, each on its lines of the page, as tracebacks will name them."""
    lines: list[str] = []
    for block in blocks:
        lines += [""] * (block.line - 1 - len(lines))
        lines += block.text.splitlines()
    return "\n".join(lines) + "\n"
