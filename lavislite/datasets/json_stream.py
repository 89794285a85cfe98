"""A large JSON file, one entry at a time.

Annotation files hold up to millions of entries. Reading them whole takes many times their size in
memory; here only the entry at hand is in memory.
"""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TextIO

from lavislite.common.errors import DataError

_CHUNK = 1 << 22  # characters
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()
# An entry cut off at the end of what was read so far is found faulty this close to that end.
_NEAR_THE_END = 64


class Entry(NamedTuple):
    """A piece of a file.

    Attributes:
        key: of the top-level object; None when the top level is a list.
        n: 1, 2, ... for the items of a list; 0 announces the list, with the value ``[]``, or holds
            a value that is no list.
    """

    key: str | None
    n: int
    value: Any


def stream_json(file: Path) -> Iterator[Entry]:
    """The entries of a JSON list, or the values of a JSON object, those that are lists by item.

    Raises:
        DataError: the file is empty, not UTF-8, cut short or not JSON; says where.
    """
    try:
        with file.open(encoding="utf-8-sig") as text:
            yield from _Text(file, text).entries()
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text ({error.reason}). Save it as UTF-8.") from error
    except RecursionError as error:
        raise DataError(f"{file}: nested too deeply to be an annotation file.") from error


def text_value(file: Path, key: str) -> str | None:
    """The text that belongs to `key`, wherever in the file it is, without parsing the rest."""
    if file.stat().st_size == 0:
        return None
    pattern = b'"%b"\\s*:\\s*"([^"\\\\]*)"' % re.escape(key.encode())
    with (
        file.open("rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        found = re.search(pattern, content)
        return None if found is None else found[1].decode("utf-8", "replace")


class _Text:
    """What was read of a file and not yet used, from `at` on."""

    def __init__(self, file: Path, stream: TextIO) -> None:
        self.file, self.stream = file, stream
        self.text, self.at, self.ended = "", 0, False
        self.lines, self.column = 0, 0  # before `text`

    def entries(self) -> Iterator[Entry]:
        mark = self._peek()
        if mark == "[":
            yield Entry(None, 0, [])
            for n, value in self._items():
                yield Entry(None, n, value)
        elif mark == "{":
            yield from self._members()
        elif mark == "":
            raise DataError(f"{self.file}: is empty ({self.file.stat().st_size} bytes).")
        else:
            yield Entry(None, 0, self._value())
        if self._peek():
            self._fail("Extra data", self.at)

    def _items(self) -> Iterator[tuple[int, Any]]:
        self.at += 1
        if self._peek() == "]":
            self.at += 1
            return
        n = 0
        while True:
            n += 1
            yield n, self._value()
            if self._comma_or("]"):
                return

    def _members(self) -> Iterator[Entry]:
        self.at += 1
        if self._peek() == "}":
            self.at += 1
            return
        while True:
            if self._peek() != '"':
                self._fail("Expecting property name enclosed in double quotes", self.at)
            key = self._value()
            if self._peek() != ":":
                self._fail("Expecting ':' delimiter", self.at)
            self.at += 1
            if self._peek() == "[":
                yield Entry(key, 0, [])
                for n, value in self._items():
                    yield Entry(key, n, value)
            else:
                yield Entry(key, 0, self._value())
            if self._comma_or("}"):
                return

    def _comma_or(self, end: str) -> bool:
        """Step over a comma (False) or the end of what it separates (True)."""
        mark = self._peek()
        if mark != "," and mark != end:
            self._fail("Expecting ',' delimiter", self.at)
        self.at += 1
        return mark == end

    def _peek(self) -> str:
        """The next character that is no space; "" at the end of the file."""
        while True:
            match = _SPACE.match(self.text, self.at)
            assert match is not None
            self.at = match.end()
            if self.at < len(self.text):
                return self.text[self.at]
            if not self._more():
                return ""

    def _value(self) -> Any:
        self._peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                cut_off = error.pos > len(self.text) - _NEAR_THE_END or "Unterminated" in error.msg
                if not (cut_off and self._more()):
                    self._fail(error.msg, error.pos)
                continue
            # A number that ends where the text does may go on.
            if end == len(self.text) and self._more():
                continue
            self.at = end
            return value

    def _more(self) -> bool:
        """Read on; False if there is no more. What was used is let go of."""
        if self.ended:
            return False
        rest = self.text[self.at :]
        chunk = self.stream.read(max(_CHUNK, len(rest)))  # twice as much for a very long entry
        self.ended = not chunk
        if self.ended:
            return False  # positions in the text at hand stay what they are
        used = self.text[: self.at]
        newlines = used.count("\n")
        self.lines += newlines
        self.column = len(used) - used.rindex("\n") - 1 if newlines else self.column + len(used)
        self.text, self.at = rest + chunk, 0
        return True

    def _fail(self, what: str, at: int) -> NoReturn:
        before = self.text[:at]
        newlines = before.count("\n")
        column = len(before) - before.rindex("\n") if newlines else self.column + at + 1
        cut_off = self.ended and (at >= len(self.text.rstrip()) or "Unterminated" in what)
        raise DataError(
            f"{self.file}: not valid JSON: {what} (line {self.lines + newlines + 1}, column "
            f"{column}).{' The file ends there: was it cut short?' if cut_off else ''}"
        )
