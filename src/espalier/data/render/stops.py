"""The token that ends an answer, as it shows in what a template writes behind one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from espalier.data.render.control import Added, Codec
from espalier.data.render.openings import THOUGHT


@dataclass(frozen=True, slots=True)
class TurnEnds:
    """How assistant turns end under one template.

    ids: the tokens that end them, each once; also those that the model stops on and that no turn holds inside.
    answer, call: what is written behind an answer and behind a tool call that the template leaves open, None if
    nothing can be. tails: what a rendering ends in that the next message takes away again, such as an end-of-text
    token. behind: what a rendering may end in behind a stop token. header: what starts an assistant turn, if it holds
    a special token.
    """

    ids: tuple[int, ...] = ()
    answer: Added | None = None
    call: Added | None = None
    tails: tuple[str, ...] = ()
    behind: frozenset[str] = field(default_factory=frozenset)
    header: str = ""


@dataclass(frozen=True, slots=True)
class Behind:
    """What a template writes behind a turn: at the `end` of a rendering, and up to the content of the `following`
    message ("" if it takes none)."""

    end: str
    following: str = ""


def own_end(
    codec: Codec, behind: Behind, opening: Collection[int], known: Collection[int], *, special: bool = False
) -> Added | None:
    """The token that ends a turn whose content stands in front of `behind`; None if the template writes none.

    Candidates are the control tokens which stand there whatever comes next: neither an end of text that only the last
    turn has, nor the header of another turn. A token that the model stops on (`known`) is taken first, else the last
    one that does not also open a conversation (`opening`). Without candidates a turn ends in what the rendering ends
    in. special: special tokens only.

    After "Hi" in `Hi<|eot|><|start|>assistant<|end|>` and `Hi<|eot|><|start|>user<|end|>` the candidates are <|eot|>
    and <|start|>, and the second one opens conversations.
    """
    at_end = [(end, token) for _, end, token in codec.written(behind.end) if token.special or not special]
    common = []
    for end, token in at_end:
        if behind.following.startswith(behind.end[:end]):
            common.append(token)
    for tokens in (common, [token for _, token in at_end]):
        for token in tokens:
            if token.id in known:
                return token
        own = [token for token in tokens if token.id not in opening]
        if own:
            return own[-1] if tokens is common else own[0]
    # What opens turns may also end them: `user<|sep|>Hi<|sep|>`.
    return common[0] if common else None


def marker(codec: Codec, behind: Behind) -> Added | None:
    """The special token that begins the next turn right behind one that the template leaves open, or None.

    A turn is open if no special token stands behind its content, such as in `Hi` followed by `Hi<|user|>`.
    """
    written = behind.end.rstrip()
    if not behind.following.startswith(written):
        return None
    rest = behind.following[len(written) :].lstrip()
    for start, _, token in codec.written(rest):
        return token if start == 0 and token.special else None
    return None


def tails(codec: Codec, shorter: Iterable[tuple[str | None, str | None]]) -> tuple[str, ...]:
    """What renderings end in that the same conversation with more messages does not have at that place, longest first.

    shorter: pairs of a rendering and that of a longer conversation.
    """
    found = set()
    for text, longer in shorter:
        if text is None or longer is None:
            continue
        size = shared(codec, text, longer)
        if any(token.special for _, _, token in codec.written(text[size:])):
            found.add(text[size:])
    return tuple(sorted(found, key=len, reverse=True))


def shared(codec: Codec, some: str, other: str) -> int:
    """The size of the longest text with which both begin, and which ends inside no control token of either."""
    size = min(len(some), len(other))
    for at, (a, b) in enumerate(zip(some, other, strict=False)):
        if a != b:
            size = at
            break
    for text in (some, other):
        for start, end, _ in codec.written(text):
            if start < size < end:
                size = start
    return size


def header(codec: Codec, asked: str | None, prompt: str | None) -> str:
    """What a generation prompt adds to a rendering, if it holds a special token, else "". An opening of reasoning at
    its end is none of it."""
    if asked is None or prompt is None:
        return ""
    text = THOUGHT.sub("", prompt[shared(codec, asked, prompt) :])
    return text if any(token.special for _, _, token in codec.written(text)) else ""


def first_written(codec: Codec, text: str, start: int, ids: Collection[int]) -> int:
    """Where the first of the control tokens `ids` behind `start` ends in `text`; -1 if there is none."""
    for _, end, token in codec.written(text, start):
        if token.id in ids:
            return end
    return -1


def usable(known: Sequence[int], codec: Codec, inside: Iterable[str]) -> list[int]:
    """Those of the `known` stop ids that are control tokens and that no text in `inside` (in front of the end of a
    turn) holds."""
    held = {token.id for text in inside for _, _, token in codec.written(text)}
    return [i for i in known if i in codec.control_ids and codec.added[i].special and i not in held]
