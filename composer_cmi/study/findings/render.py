"""A report as a list of blocks, written as Markdown and as one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import NamedTuple

from composer_cmi.text import for_html, for_markdown

__all__ = ['Block', 'Heading', 'Lines', 'Paragraph', 'Picture', 'Rows', 'to_html', 'to_markdown']


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


class Rows(NamedTuple):
    """A table; the first `words` columns are words, the others are numbers and stand to the right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1


class Picture(NamedTuple):
    """A PNG picture; `path` is relative to the report."""

    path: str
    caption: str
    png: bytes


Block = Heading | Paragraph | Lines | Rows | Picture


def to_markdown(blocks: Sequence[Block]) -> str:
    """The blocks as Markdown; pictures are linked by their relative path."""
    return '\n\n'.join(_markdown(block) for block in blocks) + '\n'


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f'{"#" * level} {for_markdown(text)}'
        case Paragraph(text):
            return for_markdown(text)
        case Lines(lines):
            return '\n'.join(f'* {for_markdown(line)}' for line in lines)
        case Rows(header, rows, words):
            marks = ['---' if i < words else '---:' for i in range(len(header))]
            cells = [[for_markdown(cell, start=False) for cell in row] for row in (header, marks, *rows)]
            return '\n'.join(f'| {" | ".join(row)} |' for row in cells)
        case Picture(path, caption, _):
            text = for_markdown(caption, start=False).replace('[', '\\[').replace(' ]', ' \\]')
            return f'![{text}]({path})\n\n*{text}*'


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 14px; display: block; overflow-x: auto; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; white-space: nowrap; }
th { text-align: left; border-bottom: 2px solid #888; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
figure { margin: 1.5rem 0; } img { max-width: 100%; } figcaption { color: #555; }
"""


def to_html(blocks: Sequence[Block], title: str) -> str:
    """The blocks as one HTML file with the pictures inside."""
    body = '\n'.join(_html(block) for block in blocks)
    head = f'<meta charset="utf-8"><title>{for_html(title)}</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def _html(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f'<h{level}>{for_html(text)}</h{level}>'
        case Paragraph(text):
            return f'<p>{for_html(text)}</p>'
        case Lines(lines):
            return '<ul>' + ''.join(f'<li>{for_html(line)}</li>' for line in lines) + '</ul>'
        case Rows(header, rows, words):
            head = _html_row(header, 'th', words)
            return (
                f'<table><thead>{head}</thead><tbody>{"".join(_html_row(r, "td", words) for r in rows)}</tbody></table>'
            )
        case Picture(_, caption, png):
            data = base64.b64encode(png).decode()
            text = for_html(caption)
            return (
                f'<figure><img src="data:image/png;base64,{data}" alt="{text}"><figcaption>{text}</figcaption></figure>'
            )


def _html_row(cells: Sequence[str], tag: str, words: int) -> str:
    marked = [f'<{tag}{"" if i < words else " class=number"}>{for_html(cell)}</{tag}>' for i, cell in enumerate(cells)]
    return f'<tr>{"".join(marked)}</tr>'
