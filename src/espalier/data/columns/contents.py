"""What a value that nobody read holds: media, turns, text, or nothing of substance."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from espalier.data.columns.names import groups_of, is_metadata

MEDIA = frozenset(
    f"{kind}{ending}"
    for kind in ("image", "video", "audio", "img", "picture", "photo", "screenshot", "speech", "sound")
    for ending in ("", "s", "_path", "_paths", "_url", "_urls", "_file", "_files", "_bytes")
)
"""Names of columns and keys that hold images, videos or sound."""
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

# A control token or a tag that stands for media; "[IMG]" too. What HTML writes with attributes is none of them.
_PLACEHOLDER = re.compile(
    r"<\|?(?:start_of_)?(image|img|video|audio|vision_start|speech)"
    r"(?:_pad|_soft_token|_placeholder|_start|here|[_ -]?\d+)?\|?>|\[IMG\]"
    r"|\bdata:(?:image|video|audio)/[\w+.-]+;base64",
    re.IGNORECASE,
)


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


def contents(name: str, value: Any) -> Contents:
    """What the value under the key `name` holds.

    >>> contents("images", ["cat.png"]).media, contents("chat", [{"role": "user", "content": "Hi"}]).turns
    (True, True)
    >>> contents("url", "https://example.org/" + 100 * "a").length, contents("note", "Ask about fruit.").length
    (0, 16)
    """
    # Most values are numbers and short texts, and every row has some: these two go first.
    if isinstance(value, bool | int | float):
        return Contents()
    value = decoded(value)
    if isinstance(value, str):
        text = value.strip()
        length = len(text) if text and is_prose(text) else 0
        media = bool(text) and (name.lower() in MEDIA or _is_media_file(text))
        return Contents(media, False, length, (value,), not text)
    if is_empty(value):
        return Contents(empty=True)
    texts = tuple(leaves(value))
    length = max((len(text.strip()) for text in texts if is_prose(text)), default=0)
    return Contents(_has_media(name, value), _has_turns(name, value), length, texts)


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


def leaves(value: Any) -> Iterator[str]:
    """All texts of a value, at all depths."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner)
    elif isinstance(value, dict):
        for inner in dict.values(value):
            yield from leaves(inner)


def is_prose(text: str) -> bool:
    """Whether a text is anything else than one word that names a place or is a number or a checksum."""
    return not _NAME.fullmatch(text.strip())


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


def _is_media_file(text: str) -> bool:
    """Whether a text is the path or the address of an image, a video or a sound, or holds one."""
    return _MEDIA_FILE.fullmatch(text.strip()) is not None


def _has_media(name: str, value: Any) -> bool:
    if isinstance(value, bool | int | float) or is_empty(value):
        return False
    if isinstance(value, str) and _is_media_file(value):
        return True
    if name.lower() in MEDIA:
        return True
    if isinstance(value, dict):
        if {"bytes", "path"} == set(value):
            return True
        return any(_has_media(key, inner) for key, inner in dict.items(value))
    return isinstance(value, list) and any(_has_media("", inner) for inner in value)


def placeholders(text: str) -> list[str]:
    """The places that a text keeps for media, such as `<image>`; none for an HTML tag that is closed or quoted.

    >>> placeholders("<image>What is it?"), placeholders("Write <video>...</video>, or `<audio>`.")
    (['<image>'], [])
    """
    found = []
    if "<" not in text and "[IMG]" not in text and ";base64" not in text:
        return []
    for match in _PLACEHOLDER.finditer(text):
        kind = match.group(1)
        quoted = text[max(0, match.start() - 1) : match.start()] in ("`", "'", '"')
        closed = kind is not None and kind.lower() != "img" and f"</{kind.lower()}>" in text.lower()
        closed = closed and _PATH_INSIDE.match(text, match.end()) is None
        # An HTML image has attributes and is never closed; one that is closed is a path between two marks.
        bare = kind is not None and kind.lower() == "img" and match.group() == "<img>" and "</img>" not in text
        if not (quoted or closed or bare):
            found.append(match.group())
    return found
