"""A page as a list of blocks, and its Markdown, in which all text of a user is text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from composer_cmi.text import for_html, for_markdown, visible

__all__ = ['Block', 'Bold', 'Code', 'Details', 'Heading', 'Lines', 'Paragraph', 'Picture', 'Rows', 'to_markdown']


class Heading(NamedTuple):
    """A heading; level 1 is the title."""

    text: str
    level: int = 2


class Paragraph(NamedTuple):
    """Running text."""

    text: str


class Lines(NamedTuple):
    """A list, one line each."""

    lines: Sequence[str]


class Bold(str):
    """A line or a cell that stands out."""


class Rows(NamedTuple):
    """A table; the first `words` columns are words, the others are numbers and stand to the right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1


class Picture(NamedTuple):
    """A PNG picture; `path` is relative to the page, and of letters that need no escape."""

    path: str
    caption: str
    png: bytes


class Code(NamedTuple):
    """Text as it stands, such as a YAML file."""

    text: str
    language: str = ''


class Details(NamedTuple):
    """Blocks behind one line, which unfolds them (in HTML, and where Markdown is shown as GitHub shows it)."""

    summary: str
    blocks: Sequence[Block]


Block = Heading | Paragraph | Lines | Rows | Picture | Code | Details


def to_markdown(blocks: Sequence[Block]) -> str:
    """The blocks as Markdown; pictures are linked by their relative path."""
    return '\n\n'.join(_markdown(block) for block in blocks) + '\n'


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f'{"#" * level} {for_markdown(text)}'
        case Paragraph(text):
            return _text(text)
        case Lines(lines):
            return '\n'.join(f'* {_text(line)}' for line in lines)
        case Rows(header, rows, words):
            marks = ['---' if i < words else '---:' for i in range(len(header))]
            cells = [[_text(cell, start=False) for cell in row] for row in (header, marks, *rows)]
            return '\n'.join(f'| {" | ".join(row)} |' for row in cells)
        case Picture(path, caption, _):
            text = for_markdown(caption, start=False)
            inside = re.sub(r'\\.|[\[\]]', lambda found: f'\\{found[0][-1]}', text)
            return f'![{inside}]({path})\n\n*{text}*'
        case Code(text, language):
            lines = [visible(line) for line in text.rstrip().splitlines()]
            fence = '`' * max([3, *(1 + len(run) for run in re.findall('`+', text))])
            return '\n'.join([f'{fence}{language}', *lines, fence])
        case Details(summary, inner):
            return f'<details>\n<summary>{for_html(summary)}</summary>\n\n{to_markdown(inner)}\n</details>'


def _text(text: str, *, start: bool = True) -> str:
    plain = for_markdown(text, start=start)
    return f'**{plain}**' if isinstance(text, Bold) and plain.strip() else plain
