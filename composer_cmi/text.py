"""Text of a user (names of classes, runs, arms, tasks, files) on its way into a language that reads some of it as code.

One function an exit: what goes into a picture, a terminal, Markdown, HTML, a CSV file or a file name passes through
one of them. What cannot be shown (control characters, line breaks, lone surrogates) is shown as its Python escape.
"""

from __future__ import annotations

import hashlib
import html
import itertools
import re
import unicodedata
from collections.abc import Sequence

from rich.text import Text

__all__ = [
    'for_csv',
    'for_filename',
    'for_html',
    'for_latex',
    'for_markdown',
    'for_markdown_code',
    'for_matplotlib',
    'for_rich',
    'told_apart',
]

_LONGEST_FILENAME = 100
# Control, surrogate, private, line and paragraph separators; the marks that turn the direction of what follows.
_HIDDEN = ('Cc', 'Cs', 'Zl', 'Zp')
_TURNING = '\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069'

_MARKDOWN = re.compile(
    r'(?P<always>[\\`*|~@$])'
    r'|(?P<word>(?<![^\W_])_|_(?![^\W_]))'  # between letters or digits it is no markup
    r'|(?P<tag><(?=[A-Za-z/!?]))'
    r'|(?P<entity>&(?=[#A-Za-z]))'
    r'|(?P<link>\](?=[(\[:]))'
    r'|(?P<url>:(?=//))'
    r'|(?P<www>(?<=www)\.)'
    r'|(?P<close>(?<=\s)#(?=#*\s*$))'
)
_MARKDOWN_START = re.compile(r'^(?=[#>]|[-+](?:\s|$)|[-=]{2,}|\[[ xX]\])|^(?P<number>\d{1,9})(?=[.)](?:\s|$))')


def visible(text: object) -> str:
    """The text on one line, with what no eye can see written out: a line break becomes two characters."""
    return ''.join(
        char.encode('unicode_escape').decode('ascii')
        if unicodedata.category(char) in _HIDDEN or char in _TURNING
        else char
        for char in str(text)
    )


def for_matplotlib(text: object, *, longest: int = 60) -> str:
    """A title or a label: no mathematics between dollars, and no leading underscore, which hides a legend's line."""
    plain = visible(text)
    if len(plain) > longest:  # names often begin alike, and often end alike: both ends are kept
        plain = f'{plain[: longest // 2]}…{plain[longest // 2 + 1 - longest :]}'
    return (' ' if plain.startswith('_') else '') + plain.replace('$', r'\$')


def for_rich(text: object, style: str = '') -> Text:
    """A cell or a part of a line on the terminal: brackets and ``:names:`` stay what they are."""
    return Text(visible(text), style=style)


def for_html(text: object) -> str:
    """Text or an attribute's value between quotes."""
    return html.escape(visible(text))


def for_markdown(text: object, *, start: bool = True) -> str:
    """Running text, a heading, a list's line; with ``start=False`` a table's cell. What is no markup stays as it is."""
    plain = visible(text)
    plain = plain if plain.strip() == plain else plain.strip() or plain
    escaped = _MARKDOWN.sub(lambda found: '\\' + found[0], plain)
    if start:
        escaped = _MARKDOWN_START.sub(lambda found: (found['number'] or '') + '\\', escaped)
    return escaped


def for_markdown_code(text: object) -> str:
    """A code span; the fence is longer than every run of backticks inside."""
    plain = visible(text)
    fence = '`' * (1 + max(map(len, re.findall('`+', plain)), default=0))
    # A space is taken off at both ends where both have one.
    padded = f' {plain} ' if plain[:1] in ('`', ' ') or plain[-1:] in ('`', ' ') else plain
    return f'{fence}{padded}{fence}' if plain else ''


def told_apart(names: Sequence[str], longest: int) -> list[str]:
    """Names side by side, none longer than ``longest``: of long ones what they share gives way, not what differs."""
    plain = [visible(name) for name in names]
    long = sorted({name for name in plain if len(name) > longest})
    start = _shared_start(long)
    end = _shared_start([name[len(start) :][::-1] for name in long])[::-1]
    shown = []
    for name in plain:
        own = name[len(start) : len(name) - len(end)]
        room = longest - len(own) - 2
        if len(name) <= longest:
            shown.append(name)
        elif len(long) > 1 and room >= 0:
            head = min(len(start), max(room - len(end), room * 2 // 3))
            tail = end[len(end) - min(len(end), room - head) :]
            shown.append('…'.join([start[:head], own, tail]) if tail or end else f'{start[:head]}…{own}')
        else:
            shown.append(f'{name[: longest // 2]}…{name[longest // 2 + 1 - longest :]}')
    return shown


def _shared_start(names: Sequence[str]) -> str:
    return ''.join(
        letters[0] for letters in itertools.takewhile(lambda found: len({*found}) == 1, zip(*names, strict=False))
    )


_LATEX = {
    '\\': r'\textbackslash{}',
    '~': r'\textasciitilde{}',
    '^': r'\textasciicircum{}',
    '<': r'\textless{}',
    '>': r'\textgreater{}',
    '|': r'\textbar{}',
    '"': r'\textquotedbl{}',
    **{char: f'\\{char}' for char in '&%$#_{}'},
}


def for_latex(text: object) -> str:
    """Running text or a cell of a table."""
    return ''.join(_LATEX.get(char, char) for char in visible(text))


def for_csv(text: str) -> str:
    """A cell that a spreadsheet takes for text, not for a formula."""
    return f"'{text}" if text[:1] in ('=', '+', '-', '@', '\t', '\r') else text


def for_filename(text: object) -> str:
    """A part of a file's name of letters, digits and ``._+-``, no dot in front, not too long; one name a text."""
    plain = str(text)
    safe = re.sub(r'[^A-Za-z0-9._+-]', '_', plain).lstrip('.')[:_LONGEST_FILENAME]
    if safe == plain:
        return safe
    return f'{safe}-{hashlib.sha256(plain.encode("utf-8", "backslashreplace")).hexdigest()[:8]}'
