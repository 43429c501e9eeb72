"""JSON read as a stream: one object per line, the elements of one array, or objects one after the other.

A row that breaks the rules becomes a RowError in its place. Lines are independent, so reading goes on with the next
line. In an array, broken syntax hides where the next element starts, so it ends the reading.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
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
_ENDS = "Reading this file ends here: what follows a break in an array cannot be told apart"
_ESCAPED = re.compile("[\udc80-\udcff]")
_HARMFUL = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")
_BLANKS = " \t\r\n"
_BLANK = re.compile(f"[{_BLANKS}]*")


@dataclass(frozen=True, slots=True)
class Row:
    """A decoded row and where it starts: `line` counts from 1 (a row number if the container has no lines)."""

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
        # Itself a ValueError, but of syntax.
        except json.JSONDecodeError:
            raise
        except RecursionError:
            raise _too_deep() from None
        # What is left of ValueError: Python refuses to convert integers of thousands of digits.
        except ValueError as error:
            raise RowError("number too long", got=str(error), fix="Write the number as a string") from None

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs) and self.problem is None:
            keys = [key for key, _ in pairs]
            twice = _first_repeated(keys)
            self.problem = RowError(
                "duplicate key",
                field=readable(twice),
                got=f"{keys.count(twice)} values",
                expected="one value for each key",
                fix="Remove or rename one",
            )
        return value

    def _constant(self, name: str) -> None:
        self.problem = self.problem or RowError("broken JSON", got=name, expected="a number or null")


def _first_repeated(keys: list[str]) -> str:
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            return key
        seen.add(key)
    raise ValueError("no key is repeated")


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
    except json.JSONDecodeError as error:
        got = _syntax(error, error.pos + 1, expected).got
        raise RowError("broken JSON in a string", field=field, got=got, expected=expected) from None
    problem = decoder.problem or text_problem(value)
    if problem:
        inner = f"{field}: {problem.field}" if problem.field else field
        raise RowError(problem.reason, field=inner, got=problem.got, expected=problem.expected, fix=problem.fix)
    return value


def readable(key: Any) -> str:
    """A key as an error names it: on one line, in characters that can be printed, and not too long."""
    text = str(key)
    return clipped(text if text.isprintable() else ascii(text))


def clipped(text: str) -> str:
    """The beginning of a text, in at most 60 characters."""
    return text if len(text) <= 60 else text[:57] + "..."


def position(stream: IO[bytes]) -> int:
    """Where a stream stands in its (unpacked) file, in bytes from 0; 0 for one that cannot tell."""
    return stream.tell() if stream.seekable() else 0


def _too_deep(field: str = "") -> RowError:
    got, expected = f"more than {DEPTH} levels", f"at most {DEPTH}"
    return RowError("nested too deep", field=field, got=got, expected=expected, fix="Flatten the row")


def text_problem(value: Any, field: str = "", depth: int = 0) -> RowError | None:
    """The first thing in `value` that cannot be passed on: NUL or half a surrogate pair in a string, or its depth."""
    if isinstance(value, str):
        return _string_problem(value, field)
    if not isinstance(value, dict | list):
        return None
    if depth == DEPTH:
        return _too_deep(field[:80])
    if isinstance(value, dict):
        # Keys first: an error in one of them names the object, one in a value names the key.
        for key in value:
            if problem := text_problem(key, field, depth + 1):
                return problem
    for key, child in value.items() if isinstance(value, dict) else enumerate(value):
        # Most values are plain texts and numbers: they cost neither a call nor a name.
        if isinstance(child, str):
            if child.isascii() and "\0" not in child:
                continue
        elif not isinstance(child, dict | list):
            continue
        if problem := text_problem(child, _place(field, key), depth + 1):
            return problem
    return None


def _place(field: str, key: Any) -> str:
    if isinstance(key, int):
        return f"{field}[{key}]"
    return f"{field}.{readable(key)}" if field else readable(key)


def _decoded_problem(text: str, value: Any) -> RowError | None:
    """`text_problem` of the value that a JSON text without NUL and without halves of surrogate pairs stands for."""
    # Only an escape brings in one of either, and without as many brackets nothing is too deep.
    if ("\\u" in text and _HARMFUL.search(text)) or text.count("[") + text.count("{") > DEPTH:
        return text_problem(value)
    return None


def checked_row(line: int, value: Any, where: str) -> Row | RowError:
    """A row of a container whose values are decoded already, or the error for a text in it that cannot be passed on."""
    problem = text_problem(value)
    return problem.at(where) if problem else Row(line, value)


def _string_problem(text: str, field: str) -> RowError | None:
    if "\0" in text:
        got = f"U+0000 at character {text.index(chr(0)) + 1}"
        return RowError("NUL character", field=field, got=got, expected="text", fix="Remove it")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        got = f"U+{ord(text[error.start]):04X} at character {error.start + 1}"
        return RowError("half a surrogate pair", field=field, got=got, expected="surrogates in pairs", fix="Remove it")
    return None


def not_utf8(byte: int, offset: int) -> RowError:
    """`byte` is the first that fits no UTF-8 sequence, `offset` its place in the (unpacked) file, from 0."""
    return RowError(
        "not UTF-8",
        got=f"byte 0x{byte:02x} at offset {offset}",
        expected="UTF-8",
        fix="Convert the file: iconv -f ENCODING -t UTF-8",
    )


def _syntax(error: json.JSONDecodeError, column: int, expected: str) -> RowError:
    # Python's own words end in "at" if the place is all they add: "Unterminated string starting at".
    got = f"{error.msg.removesuffix(' at')} at column {column}, {_near(error, 'where the text ends')}"
    return RowError("broken JSON", got=got, expected=expected)


def _near(error: json.JSONDecodeError, end: str) -> str:
    """What stands at a syntax error: the text after it, or `end` if there is none."""
    near = error.doc[error.pos : error.pos + 20]
    return f"before {near!r}" if near else end


# ------------------------------------------------------------------------------------------------------------- lines


def json_lines(stream: IO[bytes], shown: str) -> Iterator[Row | RowError]:
    """Each line that is not blank is one JSON value. A line over LIMIT bytes is skipped without being held."""
    decoder, number, offset = StrictJSON(), 0, position(stream)
    while raw := stream.readline(LIMIT + 1):
        number += 1
        start, where = offset, f"{shown}:{number}"
        offset += len(raw)
        if len(raw) > LIMIT and not raw.endswith(b"\n"):
            while raw and not raw.endswith(b"\n"):
                raw = stream.readline(CHUNK)
                offset += len(raw)
            fix = "Split the row, or check that the file has line ends"
            got, expected = f"{offset - start} bytes", f"at most {LIMIT}"
            yield RowError("line too long", got=got, expected=expected, fix=fix).at(where)
        elif not raw.isspace():
            try:
                yield Row(number, _line(raw, start, decoder))
            except RowError as error:
                yield error.at(where)


def _line(raw: bytes, start: int, decoder: StrictJSON) -> Any:
    """The value of a line that begins at byte `start` of the file. Raises RowError."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise not_utf8(raw[error.start], start + error.start) from None
    nul = text.find("\0")
    if nul >= 0:
        got = f"byte 0x00 at column {nul + 1}"
        raise RowError("NUL byte", got=got, expected="JSON text", fix="The file may be damaged or not be text")
    try:
        value = _whole(text, decoder)
    except json.JSONDecodeError as error:
        raise _syntax(error, error.pos + 1, "one JSON object per line") from None
    problem = decoder.problem or _decoded_problem(text, value)
    if problem:
        raise problem
    return value


# ------------------------------------------------------------------------------------------------- arrays and values


class _Window:
    """The part of a byte stream that is being decoded: grows at its end, forgets what lies before `pos`.

    Bytes that are not UTF-8 stand in `text` as U+DC80 to U+DCFF, so that one element can be refused for them and the
    rest still be read. `line` is the line of `pos`, from 1.
    """

    def __init__(self, stream: IO[bytes], shown: str) -> None:
        self._stream, self._shown = stream, shown
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self.text, self.pos, self.line, self.eof = "", 0, 1, False
        self._offset = position(stream)
        # Characters of the first line of `text` that are already forgotten.
        self._before = 0

    def grow(self) -> None:
        """Read at least as much as is still held, so that decoding a long element again and again stays linear."""
        gone, self.text = self.text[: self.pos], self.text[self.pos :]
        self._offset += len(gone.encode("utf-8", "surrogateescape"))
        newline = gone.rfind("\n")
        if newline < 0:
            self._before += len(gone)
        else:
            self._before = len(gone) - newline - 1
        self.pos = 0
        raw = self._stream.read(max(CHUNK, len(self.text)))
        self.eof = not raw
        self.text += self._decoder.decode(raw, final=self.eof)

    def advance(self, to: int) -> None:
        """Move `pos` to the index `to`, and `line` with it."""
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
        column = index - newline if newline >= 0 else self._before + index + 1
        return self.line + self.text.count("\n", self.pos, index), column

    def offset(self, index: int) -> int:
        """The place of `text[index]` in the (unpacked) file, in bytes from 0."""
        return self._offset + len(self.text[:index].encode("utf-8", "surrogateescape"))

    def value(self, decoder: StrictJSON) -> tuple[Any, int]:
        """The JSON value at `pos` and the index after it. Raises JSONDecodeError and RowError."""
        while True:
            try:
                value, end = decoder.decode(self.text, self.pos)
                # A value that ends where the text does may go on in the next read: a number has no closing mark.
                if end < len(self.text) or self.eof:
                    return value, end
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos >= len(self.text) - _MARGIN
                if self.eof or not cut:
                    raise
            if len(self.text) - self.pos > LIMIT:
                raise RowError("row too long", got="more characters", expected=f"at most {LIMIT}", fix="Split the row")
            self.grow()

    def error(self, index: int, got: str, expected: str, fix: str = "") -> RowError:
        """The error for broken JSON at `text[index]`."""
        line, column = self.place(index)
        error = RowError("broken JSON", got=f"{got} at column {column}", expected=expected, fix=fix)
        return error.at(f"{self._shown}:{line}")

    def bad_byte(self, start: int, end: int) -> RowError | None:
        """The error for the first byte of `text[start:end]` that is not UTF-8."""
        byte = None if self.text.isascii() else _ESCAPED.search(self.text, start, end)
        if byte is None:
            return None
        error = not_utf8(ord(byte.group()) - 0xDC00, self.offset(byte.start()))
        return error.at(f"{self._shown}:{self.place(byte.start())[0]}")


def json_values(stream: IO[bytes], shown: str, *, array: bool) -> Iterator[Row | RowError]:
    """The elements of one JSON array, or JSON values that follow one another, each with the line it starts on."""
    window, decoder = _Window(stream, shown), StrictJSON()
    if array:
        # Past the opening bracket.
        window.peek()
        window.advance(window.pos + 1)
    first = True
    try:
        while _find_element(window, first) if array else window.peek():
            first = False
            yield _element(window, decoder, shown, array)
    except RowError as error:
        yield error


def _find_element(window: _Window, first: bool) -> bool:
    """Move to the next element of an array; False at its end. Raises RowError if the array is broken."""
    char = window.peek()
    if char == "]":
        window.advance(window.pos + 1)
        if window.peek():
            raise window.error(window.pos, "text after the end of the array", "one array and nothing else", _ENDS)
        return False
    if not first:
        if char != ",":
            raise window.error(window.pos, repr(char) if char else "the end of the file", "',' or ']'", _ENDS)
        window.advance(window.pos + 1)
        char = window.peek()
    if not char:
        raise window.error(window.pos, "the end of the file", "a row or ']'", _ENDS)
    return True


def _element(window: _Window, decoder: StrictJSON, shown: str, array: bool) -> Row | RowError:
    """The value at `pos`, which then points behind it, or a RowError for a value that breaks the rules.

    Raises RowError if the value is broken, so that its end is not known.
    """
    line = window.line
    try:
        value, end = window.value(decoder)
    except json.JSONDecodeError as error:
        bad_byte = window.bad_byte(error.pos, error.pos + 1)
        if bad_byte:
            raise bad_byte from None
        got = f"{error.msg.removesuffix(' at')}, {_near(error, 'where the file ends')},"
        if array:
            raise window.error(error.pos, got, "an array of JSON objects", _ENDS) from None
        raise window.error(error.pos, got, "JSON objects") from None
    except RowError as error:
        raise error.at(f"{shown}:{line}") from None
    problem = window.bad_byte(window.pos, end) or decoder.problem or text_problem(value)
    window.advance(end)
    return problem.at(f"{shown}:{line}") if problem else Row(line, value)
