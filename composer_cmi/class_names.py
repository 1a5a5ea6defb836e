"""What a class is called: one rule for every door by which a name comes in, a file, a config, a teacher, a saved model.

`class_name` makes a name of a label; `look_alike` says which names a reader could not tell apart.
"""

from __future__ import annotations

import ast
import math
import re
import unicodedata
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

__all__ = ['class_name', 'clean', 'is_number', 'look_alike', 'same_looking', 'spelling']

_NUMBER = re.compile(r'[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d{1,3})?', re.ASCII | re.IGNORECASE)
_WHOLE = re.compile(r'[+-]?\d+\.0*', re.ASCII)
_QUOTES = '"\'`\u00ab\u00bb\u2018\u2019\u201a\u201c\u201d\u201e'
# Joiners make another picture of the letters around them (Persian, emoji): they are part of a name, not of its key.
_JOINERS = '\u200c\u200d'
# Letters of other scripts that are drawn as Latin ones (Unicode TS 39 has all; these are on people's keyboards).
_LATIN = str.maketrans('аеорсухіјѕһԁѵοαν', 'aeopcyxijshdvoav')  # noqa: RUF001  that is their point
_DASHES = str.maketrans(dict.fromkeys('\u2010\u2011\u2012\u2013\u2014\u2212', '-'))


def spelling(value: Any) -> str:
    """A label as it is spelt, without the spaces around it; '' where there is none.

    1, 1.0, '1.0' and '1' are one spelling: Parquet and pandas turn integers with gaps into floats.

    Raises:
        ValueError: The value is no label of one class (a list, an object, bytes, a date, ...); says what it is.
    """
    if hasattr(value, 'dtype') and getattr(value, 'ndim', 1) == 0:
        value = value.item()  # a scalar of NumPy or pandas
    if isinstance(value, str):
        text = value.strip()
        if any('\ud800' <= letter <= '\udfff' for letter in text):
            raise ValueError('half of a surrogate pair, which is no Unicode text')
        if text[:1] in ('[', '{', '(') and (listed := _literal(text)) is not None:
            raise ValueError(_not_one_class(listed))
        return text.split('.')[0] if _WHOLE.fullmatch(text) else text
    if value is None or (isinstance(value, float | Decimal) and math.isnan(value)):
        return ''
    if isinstance(value, float | Decimal):
        if math.isinf(value):
            raise ValueError('an infinite number, which is no class')
        return str(int(value)) if value == int(value) else str(value)
    if isinstance(value, int):  # booleans too: 'True' and 'False', as pandas writes them
        return str(value)
    raise ValueError(_not_one_class(value))


def _literal(text: str) -> Any:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return value if isinstance(value, list | tuple | dict | set) else None


def _not_one_class(value: Any) -> str:
    if isinstance(value, dict):
        return 'an object with keys: one class a row is wanted'
    if isinstance(value, bytes | bytearray):
        return 'bytes: store the class as text'
    if isinstance(value, list | tuple | set | frozenset) or hasattr(value, 'tolist'):
        items = list(value)
        if len(items) > 1 and all(item in (0, 1) for item in items) and sum(map(int, items)) == 1:
            return 'a one-hot row: write the name or the index of its class instead'
        return 'a list: several labels a row (multi-label) cannot be used, one class a row is wanted'
    return f'a {type(value).__name__}, which is no class: write it as text if it is one'


def clean(text: str) -> str:
    """Text without what cannot be seen: Unicode's composed form, no invisible characters, single plain spaces."""
    if text.isascii() and text.isprintable():
        return ' '.join(text.split())
    seen = (letter for letter in text if letter in _JOINERS or unicodedata.category(letter) != 'Cf')
    return ' '.join(unicodedata.normalize('NFC', ''.join(seen)).split())


def class_name(value: Any) -> str:
    """The name of a label's class: its `spelling`, `clean`; '' where there is none.

    Raises:
        ValueError: The value is no label of one class; says what it is.
    """
    return clean(spelling(value))


def look_alike(name: str) -> str:
    """A key that is equal for names which look the same.

    Letter case, Unicode forms, invisible characters, spaces, quotes around the name, the script of a letter and the
    way of writing a number make no difference.
    """
    text = unicodedata.normalize('NFKC', unicodedata.normalize('NFKC', name).casefold())
    hidden = (letter for letter in text if unicodedata.category(letter) != 'Cf' and not '\ufe00' <= letter <= '\ufe0f')
    whole = clean(''.join(hidden)).translate(_DASHES).translate(_LATIN)
    text = whole.strip(_QUOTES + ' ') or whole
    return str(Decimal(text).normalize() + 0) if is_number(text) else text


def is_number(text: str) -> bool:
    """Whether a name is a finite decimal number, such as 3, -1.5 or 2e3."""
    return _NUMBER.fullmatch(text) is not None


def same_looking(names: Iterable[str]) -> tuple[str, str] | None:
    """Two of the names that look the same, or None."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(look_alike(name), name)
        if other is not name:
            return other, name
    return None
