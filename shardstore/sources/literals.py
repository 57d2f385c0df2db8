"""The Python literals that `.npy` headers are: dicts, tuples, lists, strings, integers and names of constants.

Python's own parser makes a syntax tree first, of some hundred times the text's size, and is not safe from a text that
was made to exhaust it.
"""

from __future__ import annotations

import re
from typing import Any

_TOKEN = re.compile(
    r"""\s*(?: (?P<mark>[\[\](){},:])
             | (?P<number>-?[0-9]{1,20})L?(?!\w)
             | (?P<word>True|False|None)(?!\w)
             | [uU]?(?: '(?P<single>(?:[^'\\\n]|\\.)*)' | "(?P<double>(?:[^"\\\n]|\\.)*)" )
        )""",
    re.VERBOSE,
)
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))")
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", "'": "'", '"': '"'}
_WORDS = {"True": True, "False": False, "None": None}
_MOST_NESTED = 64


def parse_literal(text: str) -> Any:
    """Return what a literal stands for; raise `ValueError` if it is none of these."""
    parser = _Parser(text.rstrip())
    value = parser.value(0)
    if parser.rest:
        raise ValueError(f"unexpected {parser.rest!r}")
    return value


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._place = 0

    @property
    def rest(self) -> str:
        """The beginning of what was not read."""
        return self._text[self._place : self._place + 20]

    def value(self, depth: int) -> Any:
        """Read a value."""
        token = _TOKEN.match(self._text, self._place)
        if token is None:
            raise ValueError(f"unexpected {self.rest!r}" if self.rest else "it ends too early")
        if depth > _MOST_NESTED:
            raise ValueError("too deeply nested")
        mark, number, word = token["mark"], token["number"], token["word"]
        if mark is None:
            self._place = token.end()
            if number is not None:
                return int(number)
            return _WORDS[word] if word is not None else _string(token["single"] or token["double"] or "")
        if mark not in "({[":
            raise ValueError(f"unexpected {self.rest!r}")
        self._place = token.end()
        if mark == "{":
            return dict(self._items("}", depth, keyed=True))
        items = list(self._items("]" if mark == "[" else ")", depth))
        if mark == "[":
            return items
        return items[0] if len(items) == 1 and not self._ended_with_comma else tuple(items)

    def _items(self, end: str, depth: int, keyed: bool = False) -> Any:
        """Yield the values up to a closing mark, or pairs of keys and values."""
        comma = False
        while not self._takes(end):
            item = self.value(depth + 1)
            if keyed:
                if not isinstance(item, str) or not self._takes(":"):
                    raise ValueError("expected keys that are strings, and a value to each")
                item = item, self.value(depth + 1)
            yield item
            comma = self._takes(",")
            if not comma:
                if not self._takes(end):
                    raise ValueError(f"expected {end!r}, found {self.rest!r}")
                break
        self._ended_with_comma = comma

    def _takes(self, mark: str) -> bool:
        token = _TOKEN.match(self._text, self._place)
        if token is None or token["mark"] != mark:
            return False
        self._place = token.end()
        return True


def _string(text: str) -> str:
    return _ESCAPE.sub(_character, text) if "\\" in text else text


def _character(escape: re.Match[str]) -> str:
    letter = escape[4]
    if letter is not None:
        if letter not in _ESCAPED:
            raise ValueError(f"unknown escape \\{letter}")
        return _ESCAPED[letter]
    return chr(int(escape[1] or escape[2] or escape[3], 16))
