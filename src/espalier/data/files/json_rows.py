"""JSON read as a stream: one object per line, the elements of one array, or objects one after the other.

A row that breaks the rules becomes a RowError in its place. Lines are independent, so reading goes on with the next
line; inside an array nothing says where the next element starts, so broken syntax ends it.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO, Any

from espalier.errors import RowError

LIMIT = 64 << 20
"""Longest row: bytes of a line of JSONL, characters of an array element. What is longer is not a training example."""
CHUNK = 1 << 18
"""Bytes read at a time."""
_MARGIN = 16
"""A syntax error this near the end of what has been read may be a number or a word that is cut there."""
DEPTH = 100
"""Most levels of objects and arrays inside one another in a row."""
_ESCAPED = re.compile("[\udc80-\udcff]")
_BLANKS = " \t\r\n"
_BLANK = re.compile(f"[{_BLANKS}]*")


@dataclass(frozen=True, slots=True)
class Row:
    """A decoded row and where it starts: `line` counts from 1 (a row number where the container has no lines)."""

    line: int
    value: Any


class StrictJSON:
    """A JSON decoder that notes duplicate keys and NaN, which Python's accepts, as `problem`."""

    def __init__(self) -> None:
        self.problem: RowError | None = None
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object, parse_constant=self._constant)

    def decode(self, text: str, start: int) -> tuple[Any, int]:
        """The value at `start` and the index after it. Raises JSONDecodeError for syntax, RowError for size."""
        self.problem = None
        try:
            return self._decoder.raw_decode(text, start)
        except json.JSONDecodeError:
            raise
        except RecursionError:
            raise _too_deep() from None
        except ValueError as e:
            raise RowError("number too long", got=str(e), fix="Write the number as a string") from None

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs) and self.problem is None:
            seen: set[str] = set()
            key = next(k for k, _ in pairs if k in seen or seen.add(k))  # type: ignore[func-returns-value]
            self.problem = RowError(
                "duplicate key",
                field=readable(key),
                got=f"{sum(k == key for k, _ in pairs)} values",
                expected="one value for each key",
                fix="Remove or rename one",
            )
        return made

    def _constant(self, name: str) -> None:
        self.problem = self.problem or RowError("broken JSON", got=name, expected="a number or null")


def _whole(text: str, decoder: StrictJSON) -> Any:
    """The value of a text that is one JSON value between blanks."""
    text = text.rstrip(_BLANKS)
    value, end = decoder.decode(text, len(text) - len(text.lstrip(_BLANKS)))
    if end < len(text):
        rest = text[end:].lstrip(_BLANKS)
        raise json.JSONDecodeError("Extra data", text, len(text) - len(rest))
    return value


def decode_string(text: str, field: str, expected: str) -> Any:
    """The value of a JSON text that a row holds as a string, under the same rules as a row. Raises RowError."""
    decoder = StrictJSON()
    try:
        value = _whole(text, decoder)
    except json.JSONDecodeError as e:
        error = _syntax(e, e.pos + 1, expected)
        raise RowError("broken JSON in a string", field=field, got=error.got, expected=expected) from None
    if problem := decoder.problem or text_problem(value):
        inner = f"{field}: {problem.field}" if problem.field else field
        raise RowError(problem.reason, field=inner, got=problem.got, expected=problem.expected, fix=problem.fix)
    return value


def readable(key: Any) -> str:
    """A key as an error names it: on one line, in characters that can be printed, and not too long."""
    text = str(key)
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= 60 else text[:57] + "..."


def _too_deep(field: str = "") -> RowError:
    got, expected = f"more than {DEPTH} levels", f"at most {DEPTH}"
    return RowError("nested too deep", field=field, got=got, expected=expected, fix="Flatten the row")


def text_problem(value: Any, field: str = "", depth: int = 0) -> RowError | None:
    """The first thing in `value` that cannot be passed on: NUL or half a surrogate pair in a string, or its depth."""
    if isinstance(value, str):
        if "\0" in value:
            got = f"U+0000 at character {value.index(chr(0)) + 1}"
            return RowError("NUL character", field=field, got=got, expected="text", fix="Remove it")
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as e:
                got = f"U+{ord(value[e.start]):04X} at character {e.start + 1}"
                expected = "surrogates in pairs"
                return RowError("half a surrogate pair", field=field, got=got, expected=expected, fix="Remove it")
    elif isinstance(value, dict | list):
        if depth == DEPTH:
            return _too_deep(field[:80])
        inner: Iterable[tuple[str, Any]]
        if isinstance(value, dict):
            inner = [(field, key) for key in value]
            inner += [(f"{field}.{readable(key)}" if field else readable(key), v) for key, v in value.items()]
        else:
            inner = [(f"{field}[{i}]", v) for i, v in enumerate(value)]
        for name, v in inner:
            if found := text_problem(v, name, depth + 1):
                return found
    return None


def not_utf8(byte: int, offset: int) -> RowError:
    """`byte` is the first that fits no UTF-8 sequence, `offset` its place in the (unpacked) file, from 0."""
    return RowError(
        "not UTF-8",
        got=f"byte 0x{byte:02x} at offset {offset}",
        expected="UTF-8",
        fix="Convert the file: iconv -f ENCODING -t UTF-8",
    )


def _syntax(e: json.JSONDecodeError, column: int, expected: str) -> RowError:
    near = e.doc[e.pos : e.pos + 20]
    got = f"{e.msg} at column {column}, {f'before {near!r}' if near else 'where the text ends'}"
    return RowError("broken JSON", got=got, expected=expected)


# ------------------------------------------------------------------------------------------------------------- lines


def json_lines(stream: IO[bytes], shown: str) -> Iterator[Row | RowError]:
    """Each line that is not blank is one JSON value. A line over LIMIT bytes is skipped without being held."""
    decoder, offset, number = StrictJSON(), 0, 0
    if stream.seekable():
        offset = stream.tell()
    while raw := stream.readline(LIMIT + 1):
        number, start, length = number + 1, offset, len(raw)
        where, long = f"{shown}:{number}", length > LIMIT and not raw.endswith(b"\n")
        while long and raw and not raw.endswith(b"\n"):
            raw = stream.readline(CHUNK)
            length += len(raw)
        offset += length
        if long:
            fix = "Split the row, or check that the file has line ends"
            yield RowError("line too long", got=f"{length} bytes", expected=f"at most {LIMIT}", fix=fix).at(where)
        elif not raw.isspace():
            try:
                yield Row(number, _line(raw, start, decoder))
            except RowError as e:
                yield e.at(where)


def _line(raw: bytes, start: int, decoder: StrictJSON) -> Any:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as e:
        raise not_utf8(raw[e.start], start + e.start) from None
    if (nul := text.find("\0")) >= 0:
        got = f"byte 0x00 at column {nul + 1}"
        raise RowError("NUL byte", got=got, expected="JSON text", fix="The file may be damaged or not be text")
    expected = "one JSON object per line"
    try:
        value = _whole(text, decoder)
    except json.JSONDecodeError as e:
        raise _syntax(e, e.pos + 1, expected) from None
    if problem := decoder.problem or text_problem(value):
        raise problem
    return value


# ------------------------------------------------------------------------------------------------- arrays and values


class _Window:
    """The part of a byte stream that is being decoded: grows at its end, forgets what lies before `pos`.

    Bytes that are not UTF-8 stand in `text` as U+DC80 to U+DCFF, so that one element can be refused for them and the
    rest still be read. `line` is the line of `pos`, from 1.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self.text, self.pos, self.line, self.eof = "", 0, 1, False
        self._offset = stream.tell() if stream.seekable() else 0
        self._before = 0  # characters of the first line of `text` that are already forgotten

    def grow(self) -> None:
        """Read at least as much as is still held, so that decoding a long element again and again stays linear."""
        gone, self.text = self.text[: self.pos], self.text[self.pos :]
        self._offset += len(gone.encode("utf-8", "surrogateescape"))
        newline = gone.rfind("\n")
        self._before = len(gone) - newline - 1 + (self._before if newline < 0 else 0)
        self.pos = 0
        raw = self._stream.read(max(CHUNK, len(self.text)))
        self.eof = not raw
        self.text += self._decoder.decode(raw, final=self.eof)

    def advance(self, to: int) -> None:
        self.line += self.text.count("\n", self.pos, to)
        self.pos = to

    def peek(self) -> str:
        """The next character that is not white space, which `pos` then points at; empty at the end."""
        while True:
            blank = _BLANK.match(self.text, self.pos)
            assert blank is not None
            self.advance(blank.end())
            if self.pos < len(self.text) or self.eof:
                return self.text[self.pos : self.pos + 1]
            self.grow()

    def place(self, index: int) -> tuple[int, int]:
        """Line and column of `text[index]`, both from 1."""
        newline = self.text.rfind("\n", 0, index)
        column = index - newline if newline >= 0 else index + 1 + self._before
        return self.line + self.text.count("\n", self.pos, index), column

    def offset(self, index: int) -> int:
        return self._offset + len(self.text[:index].encode("utf-8", "surrogateescape"))

    def value(self, decoder: StrictJSON) -> tuple[Any, int]:
        """The JSON value at `pos` and the index after it. Raises JSONDecodeError and RowError."""
        while True:
            try:
                value, end = decoder.decode(self.text, self.pos)
                if end < len(self.text) or self.eof:
                    return value, end
            except json.JSONDecodeError as e:
                cut = e.msg.startswith("Unterminated string") or e.pos >= len(self.text) - _MARGIN
                if self.eof or not cut:
                    raise
            if len(self.text) - self.pos > LIMIT:
                raise RowError("row too long", got="more characters", expected=f"at most {LIMIT}", fix="Split the row")
            self.grow()


def json_values(stream: IO[bytes], shown: str, *, array: bool) -> Iterator[Row | RowError]:
    """The elements of one JSON array, or JSON values that follow one another, each with the line it starts on."""
    window, decoder, first = _Window(stream), StrictJSON(), True

    def stop(index: int, got: str, expected: str) -> RowError:
        line, column = window.place(index)
        fix = "Reading this file ends here: what follows a break in an array cannot be told apart"
        found = RowError("broken JSON", got=f"{got} at column {column}", expected=expected, fix=fix if array else "")
        return found.at(f"{shown}:{line}")

    if array:
        window.peek()
        window.advance(window.pos + 1)
    while True:
        char = window.peek()
        if not array and not char:
            return
        if array and char == "]":
            window.advance(window.pos + 1)
            if window.peek():
                yield stop(window.pos, "text after the end of the array", "one array and nothing else")
            return
        if array and not first:
            if char != ",":
                yield stop(window.pos, repr(char) if char else "the end of the file", "',' or ']'")
                return
            window.advance(window.pos + 1)
            char = window.peek()
        if array and not char:
            yield stop(window.pos, "the end of the file", "a row or ']'")
            return
        first = False
        line = window.line
        try:
            value, end = window.value(decoder)
        except json.JSONDecodeError as e:
            if byte := _ESCAPED.match(window.text, e.pos):
                error = not_utf8(ord(byte.group()) - 0xDC00, window.offset(e.pos))
                yield error.at(f"{shown}:{window.place(e.pos)[0]}")
                return
            near = window.text[e.pos : e.pos + 20]
            what = f"{e.msg}, {f'before {near!r}' if near else 'where the file ends'},"
            yield stop(e.pos, what, "an array of JSON objects" if array else "JSON objects")
            return
        except RowError as e:
            yield e.at(f"{shown}:{line}")
            return
        start = window.pos
        byte = None if window.text.isascii() else _ESCAPED.search(window.text, start, end)
        if byte:
            offset = window.offset(byte.start())
            yield not_utf8(ord(byte.group()) - 0xDC00, offset).at(f"{shown}:{window.place(byte.start())[0]}")
        elif problem := decoder.problem or text_problem(value):
            yield problem.at(f"{shown}:{line}")
        else:
            yield Row(line, value)
        window.advance(end)
