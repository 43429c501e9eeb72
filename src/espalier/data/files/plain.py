"""Plain text as documents of bounded size."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from typing import IO

from espalier.data.files.json_rows import Row, not_utf8, position
from espalier.errors import RowError

PIECE = 2048
"""Most characters in one document cut from a text file: some 500 tokens of English."""
_PART = 1 << 16
_SENTENCE = re.compile(r"[.!?]\s+|[。！？]")  # noqa: RUF001
_SPACE = re.compile(r"\s+")


def plain_rows(stream: IO[bytes], shown: str) -> Iterator[Row | RowError]:
    """Cut a text file into rows `{"text": ...}` of at most PIECE characters that together hold all of it.

    Whole lines are joined while they fit. A document then ends at its last blank line, if that lies in its second half,
    and at the last line end otherwise. A line longer than PIECE is cut after a sentence, else at white space, else
    anywhere. Line ends at both ends of a document and white space at its end are dropped, and CRLF becomes LF.

        PIECE = 12:  "one\\ntwo\\n\\nthree\\nfour\\n"   ->   "one\\ntwo"   "three\\nfour"
    """
    held: list[tuple[int, str]] = []
    size = 0
    for item in _parts(stream, shown):
        if isinstance(item, RowError):
            yield item
            continue
        line, text = item
        for piece in _short(text):
            while held and size + len(piece) > PIECE:
                cut = _cut(held)
                yield from _document(held[:cut])
                held = held[cut:]
                size = sum(len(part) for _, part in held)
            held.append((line, piece))
            size += len(piece)
    yield from _document(held)


def _parts(stream: IO[bytes], shown: str) -> Iterator[tuple[int, str] | RowError]:
    """Lines with their numbers; a long line comes in several parts, so that a file without line ends is never held."""
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    line, offset = 1, position(stream)
    while raw := stream.readline(_PART):
        # Bytes of a character that the part before this one has begun.
        begun = len(decoder.getstate()[0])
        try:
            text = decoder.decode(raw, final=raw.endswith(b"\n") or len(raw) < _PART)
            nul = text.find("\0")
            if nul >= 0:
                got = f"byte 0x00 after {nul} characters of the line"
                raise RowError("NUL byte", got=got, expected="text", fix="The file may be damaged or not be text")
            yield line, text.replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            yield not_utf8(error.object[error.start], offset - begun + error.start).at(f"{shown}:{line}")
            decoder.reset()
        except RowError as error:
            yield error.at(f"{shown}:{line}")
        offset += len(raw)
        if raw.endswith(b"\n"):
            line += 1
    rest = decoder.getstate()[0]
    if rest:
        yield not_utf8(rest[0], offset - len(rest)).at(f"{shown}:{line}")


def _short(text: str) -> Iterator[str]:
    """Split a line into pieces of at most PIECE characters whose concatenation is the line."""
    while len(text) > PIECE:
        cut = _last_end(_SENTENCE, text) or _last_end(_SPACE, text) or PIECE
        yield text[:cut]
        text = text[cut:]
    yield text


def _last_end(pattern: re.Pattern[str], text: str) -> int:
    """Where the last match in the second half of the first PIECE characters ends; 0 if there is none."""
    end = 0
    for match in pattern.finditer(text, PIECE // 2, PIECE):
        end = match.end()
    return end


def _cut(held: list[tuple[int, str]]) -> int:
    """How many of the held lines end with the last blank line of the second half; all of them if it has none."""
    size = sum(len(text) for _, text in held)
    for i in range(len(held) - 1, 0, -1):
        if size < PIECE // 2:
            break
        if not held[i][1].strip():
            return i + 1
        size -= len(held[i][1])
    return len(held)


def _document(held: list[tuple[int, str]]) -> Iterator[Row]:
    """The row of the held lines, numbered by the first that is not blank; none if all are blank."""
    text = "".join(text for _, text in held).rstrip().lstrip("\n")
    if text:
        yield Row(next(line for line, text in held if text.strip()), {"text": text})
