"""Content can never become a control token.

A tokenizer turns `<|im_end|>` into one id wherever it stands, also where a user typed it. Here the text of a row is
rendered under a seal: the first character of every control string in content, and of every beginning of one, becomes a
private-use character that occurs nowhere else in the row. A control string that is whole in sealed text was therefore
written by the template. Sealed places are encoded by a copy of the tokenizer that knows no added tokens and whose
vocabulary hides the control strings; the ids are checked in any case.

Special and turn-ending tokens never come from content. The other added tokens (`<think>`, `<tool_call>`), called markup
here, come from the content of assistant messages only. Added tokens of whitespace are ordinary text.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from espalier.errors import ModelError, RowError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

Follows = Literal["start", "token", "text"]
"""What a piece of text stands behind: nothing, an added token, or ordinary text. Vocabularies that mark a word by the
space in front of it add one at the start of a text; in the middle of one they must not."""

_HIDDEN = "\U0010ffff"  # a noncharacter: names of hidden vocabulary entries begin with it
_STEM = 3  # a sealed beginning of a control string is this long, or one character short of the whole
_PRIVATE = range(0xE000, 0xF900)


@dataclass(frozen=True, slots=True)
class Added:
    """An added token of the vocabulary. `special` ones never come from content, `space` ones are ordinary text."""

    text: str
    id: int
    special: bool
    space: bool
    lstrip: bool
    rstrip: bool
    single_word: bool

    @property
    def pattern(self) -> str:
        return rf"(?<!\w){re.escape(self.text)}(?!\w)" if self.single_word else re.escape(self.text)


class Seal:
    """The private-use characters that stand for the first characters of control strings in one row."""

    def __init__(self, codec: Codec, base: int) -> None:
        self._codec = codec
        self._to = {c: chr(base + i) for i, c in enumerate(codec.initials)}
        self._back = {base + i: c for i, c in enumerate(codec.initials)}
        self.chars = frozenset(self._to.values())
        self._escapes = {f"\\u{base + i:04x}": chr(base + i) for i in range(len(codec.initials))}

    def close(self, text: str, markup: bool = False) -> str:
        """`text` with every control string in it broken; with `markup`, those of other added tokens are left whole."""
        text = self._codec.risky[markup].sub(lambda m: self._to.get(m[0], m[0]), text)
        if self._codec.continues(text):
            at = len(text) - len(text.lstrip())
            text = text[:at] + self._to.get(text[at], text[at]) + text[at + 1 :]
        return text

    def rendered(self, text: str) -> str:
        """`text` as a template wrote it, with private-use characters that its `tojson` escaped put back."""
        if "\\u" in text:
            for escaped, c in self._escapes.items():
                text = text.replace(escaped, c)
        return text

    def open(self, text: str) -> str:
        """The text that was meant: as long as `text`, every private-use character of this seal put back."""
        return text.translate(self._back)


@dataclass(slots=True)
class Piece:
    """Tokens of a piece of text. `chunks` hold runs of ids, the character each token starts at, and their offset."""

    ids: list[int]
    chunks: list[tuple[list[int] | Any, int]]

    def starts(self) -> list[int]:
        """The character of the piece at which each token starts."""
        found: list[int] = []
        for chunk, base in self.chunks:
            offsets = chunk if isinstance(chunk, list) else [a for a, _ in chunk.offsets]
            found.extend(base + a for a in offsets)
        return found


class Codec:
    """Text to ids and back under one tokenizer, with the promise above.

    tokenizer: a fast one (backed by the `tokenizers` library). turn_ends: ids that end a turn, where they are no
    special tokens of the vocabulary. literals: the constant strings of its chat templates.

    Raises ModelError where the tokenizer has no such backend.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, turn_ends: Collection[int] = (), literals: Iterable[str] = ()
    ) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ModelError(
                f"the tokenizer is a {type(tokenizer).__name__}, which runs in Python; expected a fast one. "
                "Save it once with a tokenizer.json (transformers' PreTrainedTokenizerFast does)"
            )
        spec = json.loads(backend.to_str())
        spec.update(truncation=None, padding=None, post_processor=None)
        self.backend_json: str = json.dumps(spec, ensure_ascii=False, sort_keys=True)
        never = {*tokenizer.all_special_ids, *turn_ends}
        self.added = {i: _added(i, token, i in never) for i, token in sorted(tokenizer.added_tokens_decoder.items())}
        controls = [a for a in self.added.values() if not a.space]
        self.control_ids = frozenset(a.id for a in controls)
        self._by_text = {a.text: a for a in self.added.values()}
        unknown = _unknown_id(spec["model"])
        ends = {tokenizer.eos_token_id, tokenizer.bos_token_id, *turn_ends}
        self.unknown_id = unknown if unknown not in ends else None
        self._forbidden = self.control_ids - {self.unknown_id}
        longest_first = sorted(self.added.values(), key=lambda a: -len(a.text))
        self._written = re.compile("|".join(a.pattern for a in longest_first) or r"(?!)")
        texts = [a.text for a in controls]
        self._rests = {rest.casefold() for rest in _rests(texts, literals)}
        self.initials = _initials([*texts, *self._rests])
        markup = [a.text for a in controls if not a.special]
        self.risky = (_risky(texts, []), _risky([a.text for a in controls if a.special], markup))
        self._private = re.compile(f"[{chr(_PRIVATE[0])}-{chr(_PRIVATE[-1])}]")

    # ------------------------------------------------------------------------------------------------- sealing a row

    def seal(self, texts: Sequence[tuple[str, bool]], template: str = "") -> Seal | None:
        """A seal for a row made of `texts` (each with whether it may hold markup); None where nothing needs one.

        Raises RowError where the row uses up all private-use characters of the Basic Multilingual Plane.
        """
        if not any(self.risky[markup].search(text) or self.continues(text) for text, markup in texts):
            return None
        taken = {c for text in (*(text for text, _ in texts), template) for c in self._private.findall(text)}
        taken |= {chr(int(code, 16)) for text, _ in texts for code in re.findall(r"\\u(e[0-9a-f]{3}|f[0-8]..)", text)}
        width = len(self.initials)
        for base in range(_PRIVATE[0], _PRIVATE[-1] + 1 - width, width):
            if not any(chr(code) in taken for code in range(base, base + width)):
                return Seal(self, base)
        raise RowError("too many private-use characters", expected="some of U+E000 to U+F8FF left for control strings")

    def continues(self, text: str) -> bool:
        """Whether `text` could complete a control string whose beginning a template writes in front of it."""
        if not self._rests or not (start := text.strip().casefold()):
            return False
        return any(start.startswith(rest) or rest.startswith(start) for rest in self._rests)

    # ------------------------------------------------------------------------------------------------------ encoding

    def written(self, sealed: str, start: int = 0) -> Iterator[tuple[int, int, Added]]:
        """(start, end, token) of each added token in `sealed` that the template wrote, or content that may."""
        for m in self._written.finditer(sealed, start):
            yield m.start(), m.end(), self._by_text[m[0]]

    def ending(self, sealed: str) -> Follows:
        """What text behind `sealed` follows."""
        last = None
        for last in self.written(sealed):  # noqa: B007
            pass
        if last is None:
            return "text" if sealed else "start"
        tail = sealed[last[1] :]
        return "token" if not (tail.lstrip() if last[2].rstrip else tail) else "text"

    def encode(self, sealed: str, seal: Seal | None = None, follows: Follows = "start") -> Piece:
        """The tokens of `sealed`, the seal opened: added tokens where they were written, plain characters elsewhere.

        Equal to the tokenizer's own encoding where no content needs a seal. Raises RowError where the vocabulary
        offers no way to write the content without a control token, or the text is no valid Unicode.
        """
        if follows != "start" and self._prefixes:
            cut = next((a for a, _, _ in self.written(sealed)), len(sealed))
            if cut:
                head, tail = self._sections(sealed[:cut], seal, follows), self.encode(sealed[cut:], seal)
                return Piece(head.ids + tail.ids, head.chunks + [(chunk, base + cut) for chunk, base in tail.chunks])
        text = seal.open(sealed) if seal else sealed
        found = list(self.written(sealed))
        if text is sealed or text == sealed or [f[:2] for f in found] == [f[:2] for f in self.written(text)]:
            encoding = _encode(self._full, text)
            ids: list[int] = encoding.ids
            controls = self.control_ids
            if [i for i in ids if i in controls] == [a.id for _, _, a in found if a.id in controls]:
                return Piece(ids, [(encoding, 0)])
        return self._sections(sealed, seal, follows)

    def _sections(self, sealed: str, seal: Seal | None, follows: Follows) -> Piece:
        """Encode what stands between written tokens on its own, where no control string has a meaning."""
        ids: list[int] = []
        chunks: list[tuple[list[int] | Any, int]] = []

        def plain(a: int, b: int, behind: Follows) -> None:
            text = seal.open(sealed[a:b]) if seal else sealed[a:b]
            if not text:
                return
            encoding = _encode(self._bare[behind], text)
            if not self._forbidden.isdisjoint(encoding.ids):
                token = next(i for i in encoding.ids if i in self._forbidden)
                raise RowError(
                    "content becomes a control token",
                    got=f"{self.added[token].text} from {text[:40]!r}",
                    expected="a vocabulary that can write it as plain characters",
                    fix="Remove these characters from the row",
                )
            ids.extend(encoding.ids)
            chunks.append((encoding, a))

        at, behind = 0, follows
        for a, b, token in self.written(sealed):
            end = at + len(sealed[at:a].rstrip()) if token.lstrip else a
            plain(at, end, behind)
            ids.append(token.id)
            chunks.append(([0], a))
            at, behind = b, "token"
            if token.rstrip:
                at += len(sealed[b:]) - len(sealed[b:].lstrip())
        plain(at, len(sealed), behind)
        return Piece(ids, chunks)

    @cached_property
    def _full(self) -> Tokenizer:
        return _load(self.backend_json)

    @cached_property
    def _prefixes(self) -> bool:
        """Whether the place of a text changes how it is encoded."""
        spec = json.loads(self.backend_json)
        return bool(_placed(spec, "text") != spec)

    @cached_property
    def _bare(self) -> dict[Follows, Tokenizer]:
        """Copies of the tokenizer without added tokens, for each place a section can stand at."""
        spec = _hide(json.loads(self.backend_json), {i: self.added[i].text for i in self.control_ids})
        texts = {place: json.dumps(_placed(spec, place)) for place in ("start", "token", "text")}
        loaded = {text: _load(text) for text in set(texts.values())}
        return {place: loaded[text] for place, text in texts.items()}  # type: ignore[misc]

    # ------------------------------------------------------------------------------------------------------ decoding

    def decode(self, ids: list[int]) -> str:
        return str(self._full.decode(ids, skip_special_tokens=False))

    @cached_property
    def lossless(self) -> bool:
        """Whether decoding gives every text back: so for byte-level vocabularies, not where spaces or case get lost."""
        token = next((a.text for a in self.added.values() if a.special and not (a.lstrip or a.rstrip)), "")
        probes = (
            "Two  words, 12.5",
            " led by a space",
            "lines\n\n\ttabs ",
            "ÜBER naïve 漢字 🙂",
            f"a{token}b {token} c",
        )
        return all(self._same(self.decode(_encode(self._full, text).ids), text) for text in probes)

    def _same(self, decoded: str, text: str) -> bool:
        """Equal, but for a space in front where the vocabulary cannot tell it from the one it adds."""
        return decoded == text or (self._prefixes and decoded == text.removeprefix(" "))

    def reads(self, ids: list[int], text: str) -> bool:
        """Whether `ids` decode to `text`: exactly, or up to the tokenizer's own normalisation.

        Without spaces, case and compatibility forms where the tokenizer loses those; not checked where it wrote
        unknown tokens.
        """
        decoded = self.decode(ids)
        if self._same(decoded, text):
            return True
        if self.lossless:
            normalizer = self._full.normalizer
            return normalizer is not None and bool(decoded == normalizer.normalize_str(text))
        return (self.unknown_id is not None and self.unknown_id in ids) or _squash(decoded) == _squash(text)


def _added(id: int, token: Any, never: bool) -> Added:
    special = token.special or never
    return Added(
        text=token.content,
        id=id,
        special=special,
        space=token.content.isspace() and not special,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        single_word=token.single_word,
    )


def _initials(texts: Iterable[str]) -> list[str]:
    """First characters of `texts`, in both cases."""
    return sorted({c for text in texts if text for c in (text[0], text[0].lower(), text[0].upper()) if len(c) == 1})


def _risky(texts: Sequence[str], allowed: Sequence[str]) -> re.Pattern[str]:
    """Matches the first character of each of `texts`, of its stem anywhere and of any beginning of it at the end.

    The stem is sealed too because templates cut and join content: what one takes out of the middle must leave no whole
    control string. Those that begin like a word have no stem, or every such word would be sealed. Case does not
    matter, templates may change it. Strings in `allowed` are left alone, unless one of `texts` stands there.
    """
    if not texts:
        return re.compile(r"(?!)")
    stems, tails = set(), set()
    for text in texts:
        size = len(text) if text[0].isalnum() else max(1, min(_STEM, len(text) - 1))
        stems.add(text[:size])
        if size < len(text):
            tails |= {text[:k] for k in range(1, size)}

    def ahead(words: Iterable[str], end: str = "") -> str:
        found = sorted({(w[0].lower(), w[1:].lower()) for w in words})
        return "|".join(f"{re.escape(c)}(?={re.escape(rest)}{end})" for c, rest in found)

    stem = "|".join(filter(None, (ahead(stems), ahead(tails, r"\s*\Z"))))
    if allowed:
        longest = "|".join(map(re.escape, sorted(allowed, key=len, reverse=True)))
        stem = f"{ahead(texts)}|(?!{longest})(?:{stem})"
    return re.compile(stem, re.IGNORECASE)


def _rests(texts: Sequence[str], literals: Iterable[str]) -> set[str]:
    """What completes a control string after a literal that ends in the beginning of one: `'<|' + role + '|>'`."""
    ends = {literal[-k:] for literal in literals for k in range(1, min(40, len(literal)) + 1)}
    return {text[k:] for text in texts for k in range(1, len(text)) if text[:k] in ends}


def _unknown_id(model: dict[str, Any]) -> int | None:
    if model["type"] == "Unigram":
        return model["unk_id"]  # type: ignore[no-any-return]
    return model["vocab"].get(model.get("unk_token"))  # type: ignore[no-any-return]


def _load(text: str) -> Tokenizer:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(text)


def _encode(tokenizer: Tokenizer, text: str) -> Any:
    try:
        return tokenizer.encode(text, add_special_tokens=False)
    except TypeError as e:  # what the library says about lone surrogates
        raise RowError("text is no valid Unicode", got=ascii(text[:40]), fix="Remove the lone surrogates") from e


def _squash(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).casefold().replace("▁", "").split())


def _hide(spec: dict[str, Any], controls: dict[int, str]) -> dict[str, Any]:
    """A tokenizer without added tokens, in whose vocabulary no text matches a control string."""
    names = set(controls.values())
    model = dict(spec["model"])
    if model["type"] == "Unigram":
        vocab = [[_HIDDEN + str(i) if p in names else p, score] for i, (p, score) in enumerate(model["vocab"])]
        return {**spec, "added_tokens": [], "model": {**model, "vocab": vocab}}
    model["vocab"] = {_HIDDEN + str(i) if p in names else p: i for p, i in model["vocab"].items()}
    if model.get("unk_token") in names:
        model["unk_token"] = _HIDDEN + str(spec["model"]["vocab"][model["unk_token"]])
    if "merges" in model:
        pairs = [m.split(" ", 1) if isinstance(m, str) else m for m in model["merges"]]
        model["merges"] = [[a, b] for a, b in pairs if names.isdisjoint((a, b, a + b))]
    return {**spec, "added_tokens": [], "model": model}


def _placed(spec: dict[str, Any], follows: str) -> dict[str, Any]:
    """`spec` without the spaces that it would put in front of a text which `follows` something."""
    return {**spec, **{part: _without_prefix(spec[part], follows) for part in ("normalizer", "pre_tokenizer")}}


def _without_prefix(node: Any, follows: str) -> Any:
    if not isinstance(node, dict) or follows == "start":
        return node
    for listed in ("normalizers", "pretokenizers"):
        if listed in node:
            inner = [_without_prefix(child, follows) for child in node[listed]]
            return {**node, listed: [child for child in inner if child is not None]}
    scheme = node.get("prepend_scheme")
    if node["type"] == "Metaspace" and (scheme == "first" or (scheme == "always" and follows == "text")):
        return {**node, "prepend_scheme": "never"}
    if follows == "text" and node["type"] == "Prepend":
        return None
    if follows == "text" and node.get("add_prefix_space"):
        return {**node, "add_prefix_space": False}
    return node
