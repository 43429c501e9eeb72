"""What a value that nobody read holds: media, turns, text, or nothing of substance."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from espalier.data.columns.names import groups_of, is_metadata

MEDIA = frozenset(
    f"{kind}{ending}"
    for kind in ("image", "video", "audio", "img", "picture", "photo", "screenshot", "speech", "sound")
    for ending in ("", "s", "_path", "_paths", "_url", "_urls", "_file", "_files", "_bytes")
)
"""Names of columns and keys that hold images, videos or sound."""
PORTRAITS = ("avatar", "icon", "logo", "thumbnail", "profile")
"""Words of columns whose pictures are about a row."""
_MEDIA_FILE = re.compile(
    r"\S+\.(?:png|jpe?g|gif|webp|bmp|tiff?|wav|mp3|flac|ogg|m4a|mp4|avi|mov|mkv|webm)|data:(?:image|video|audio)/\S+",
    re.IGNORECASE,
)
TURN_NAMES = frozenset(
    ("messages", "conversation", "conversations", "history", "dialog", "dialogue", "chat", "turns", "trajectory")
)
"""Names under which a list of plain texts is a conversation."""
SPEAKERS = ("role", "from", "speaker")
WORDS = ("content", "value", "text", "message", "utterance")
EXCHANGES = (("user", "assistant"), ("human", "assistant"), ("human", "gpt"), ("input", "output"), ("user", "bot"))
"""Pairs of keys of an object that holds a turn of each side."""
DECODED = 1 << 20
"""Characters up to which a text that looks like JSON is decoded."""

_KINDS = "image|img|video|audio|vision_start|speech"
# A control token or a tag that stands for media; "[IMG]" too. What HTML writes with attributes is none of them.
_PLACEHOLDER = re.compile(
    rf"<\|?(?:start_of_)?({_KINDS})"
    r"(?:_pad|_soft_token|_placeholder|_start|here|[_ -]?\d+)?\|?>|\[IMG\]"
    r"|\bdata:(?:image|video|audio)/[\w+.-]+;base64",
    re.IGNORECASE,
)
_CLOSING = re.compile(f"</({_KINDS})>")

PATH = 1024
"""Most characters of a tag that holds the place of a file."""
# Nothing, or the place of a file, before the tag is closed.
_PATH_INSIDE = re.compile(r"\s*(?:\./|\S*[/.]\w[^\s<]*)?\s*</(?:image|video|audio|speech)>", re.IGNORECASE)


# An address, a path, the name of a browser, hexadecimal digits with or without hyphens.
_NAME = re.compile(r"\w+://\S+|Mozilla/\d.*|[\w.~%+-]*(?:/[\w.~%+-]+)+/?|[0-9a-fA-F-]+", re.ASCII)


@dataclass(slots=True)
class Contents:
    """What a value holds: `media`; `turns`; `length`, the characters of its longest text, 0 if it has none; `texts`,
    all its texts; `empty`, whether it is null, blank, or a list or an object of such."""

    media: bool = False
    turns: bool = False
    length: int = 0
    texts: tuple[str, ...] = ()
    empty: bool = False


_NUMBERS = (bool, int, float)
_NUMBER = Contents()
_EMPTY = Contents(empty=True)


def contents(name: str, value: Any) -> Contents:
    """What the value under the key `name` holds.

    >>> contents("images", ["cat.png"]).media, contents("chat", [{"role": "user", "content": "Hi"}]).turns
    (True, True)
    >>> contents("url", "https://example.org/" + 100 * "a").length, contents("note", "Ask about fruit.").length
    (0, 16)
    """
    # Most values are numbers and short texts, and every row has some: these two go first.
    if isinstance(value, _NUMBERS):
        return _NUMBER
    value = decoded(value)
    if isinstance(value, str):
        text = value.strip()
        if not text:
            return _EMPTY
        media = name.lower() in MEDIA or _is_media_file(name, text)
        return Contents(media, False, len(text) if is_prose(text) else 0, (value,))
    if is_empty(value):
        return _EMPTY
    texts = tuple(leaves(value))
    length = max((len(text.strip()) for text in texts if is_prose(text)), default=0)
    return Contents(_has_media(name, value), _has_turns(name, value), length, texts)


def together(several: Sequence[Contents]) -> Contents:
    """What several values hold."""
    return Contents(
        any(contents.media for contents in several),
        any(contents.turns for contents in several),
        max(contents.length for contents in several),
        tuple(text for contents in several for text in contents.texts),
        all(contents.empty for contents in several),
    )


def has_substance(row: Mapping[str, Any], beside: Sequence[str]) -> bool:
    """Whether a row has more to learn from than its columns `beside`: media, turns, a text under the name of an answer,
    or one of three words and more in a column that is not about the row.

    >>> has_substance({"text": "Add two numbers.", "code": "return a + b"}, ["text"])
    True
    >>> has_substance({"text": "Cherries are red.", "title": "All about cherries", "url": "x.org/a b c"}, ["text"])
    False
    """
    for name, value in row.items():
        if name in beside or is_metadata(name):
            continue
        found = contents(name, value)
        if found.media or found.turns:
            return True
        if found.length and groups_of(name):
            return True
        if any(len(text.split(None, 2)) > 2 for text in found.texts):
            return True
    return False


def decoded(value: Any) -> Any:
    """The value of a text that is a JSON object or list, else the value itself."""
    if not isinstance(value, str) or len(value) > DECODED or value.strip()[:1] not in ("[", "{"):
        return value
    try:
        inner = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return inner if isinstance(inner, dict | list) else value


def is_empty(value: Any) -> bool:
    """Whether a value is null, blank, or a list or an object of nothing else."""
    if isinstance(value, dict):
        return all(is_empty(inner) for inner in dict.values(value))
    if isinstance(value, list):
        return all(is_empty(inner) for inner in value)
    return value is None or (isinstance(value, str) and not value.strip())


def leaves(value: Any) -> list[str]:
    """All texts of a value, at all depths."""
    texts: list[str] = []
    _gather(value, texts)
    return texts


def _gather(value: Any, texts: list[str]) -> None:
    if isinstance(value, str):
        texts.append(value)
    elif isinstance(value, list):
        for inner in value:
            _gather(inner, texts)
    elif isinstance(value, dict):
        for inner in dict.values(value):
            _gather(inner, texts)


def is_prose(text: str) -> bool:
    """Whether a text is anything else than one word that names a place or is a number or a checksum."""
    text = text.strip()
    # Of all names only that of a browser has blanks.
    if " " in text and not text.startswith("Mozilla/"):
        return True
    return not _NAME.fullmatch(text)


def is_turns(name: str, value: Any) -> bool:
    """Whether a list is a conversation: objects with a speaker and words, or a turn of each side; pairs of texts; or,
    under a name of TURN_NAMES, texts."""
    if not isinstance(value, list) or not value:
        return False
    if all(isinstance(item, str) for item in value):
        return name.lower() in TURN_NAMES
    return any(is_turn(item) for item in value) or all(_is_pair(item) for item in value)


def is_turn(item: Any) -> bool:
    """Whether an object is a turn of a conversation, or one of each side."""
    if not isinstance(item, dict):
        return False
    if any(key in item for key in SPEAKERS) and any(key in item for key in WORDS):
        return True
    return any(all(isinstance(dict.get(item, key), str) for key in keys) for keys in EXCHANGES)


def _is_pair(item: Any) -> bool:
    return isinstance(item, list) and len(item) == 2 and all(isinstance(text, str) for text in item)


def _has_turns(name: str, value: Any) -> bool:
    if isinstance(value, dict):
        return any(_has_turns(key, decoded(inner)) for key, inner in dict.items(value))
    if not isinstance(value, list):
        return False
    return is_turns(name, value) or any(_has_turns(name, inner) for inner in value)


def _is_media_file(name: str, text: str) -> bool:
    """Whether a text is the path or the address of an image, a video or a sound, or holds one; not if it shows who
    wrote the row."""
    if _MEDIA_FILE.fullmatch(text.strip()) is None:
        return False
    return not any(word in name.lower() for word in PORTRAITS)


def _has_media(name: str, value: Any) -> bool:
    if isinstance(value, _NUMBERS) or is_empty(value):
        return False
    if isinstance(value, str):
        return name.lower() in MEDIA or _is_media_file(name, value)
    if name.lower() in MEDIA:
        return True
    if isinstance(value, dict):
        if len(value) == 2 and "bytes" in value and "path" in value:
            return True
        return any(_has_media(key, inner) for key, inner in dict.items(value))
    return isinstance(value, list) and any(_has_media("", inner) for inner in value)


def placeholders(text: str) -> list[str]:
    """The places that a text keeps for media, such as `<image>`, each once; none for an HTML tag that is closed or
    quoted.

    >>> placeholders("<image>What is it?"), placeholders("Write <video>...</video>, or `<audio>`.")
    (['<image>'], [])
    """
    if "<" not in text and "[IMG]" not in text and ";base64" not in text:
        return []
    found: dict[str, None] = {}
    closed: set[str] | None = None
    for match in _PLACEHOLDER.finditer(text):
        if match.group() in found:
            continue
        if closed is None:
            closed = set(_CLOSING.findall(text.lower()))
        mark, kind = match.group(), (match.group(1) or "").lower()
        before = text[max(0, match.start() - 2) : match.start()]
        # A link of Markdown that holds its file is text that somebody wrote, as a quoted one is.
        quoted = before[-1:] in ("`", "'", '"') or (before == "](" and mark.startswith("data:"))
        # An HTML image has attributes and is never closed; one that is closed is a path between two marks.
        is_html = "img" not in closed if mark == "<img>" else kind != "img" and kind in closed
        if is_html and mark != "<img>":
            is_html = _PATH_INSIDE.match(text, match.end(), match.end() + PATH) is None
        if not (quoted or is_html):
            found[mark] = None
    return list(found)
