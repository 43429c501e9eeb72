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

from espalier.data.render import control_patterns, tokenizer_json
from espalier.data.render.tokenizer_json import Follows
from espalier.errors import ModelError, RowError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

Whole = Literal["none", "markup", "all"]
"""Which control strings of a content stay whole and become tokens: none, those of added tokens that are not special,
or, if the user asked for it, all."""
_PRIVATE = range(0xE000, 0xF900)
_PROBES = ("Two  words, 12.5", " led by a space", "lines\n\n\ttabs ", "ÜBER naïve 漢字 🙂")


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
        """The regular expression of the token's text, at which the tokenizer would see it."""
        return rf"(?<!\w){re.escape(self.text)}(?!\w)" if self.single_word else re.escape(self.text)


class Seal:
    """The private-use characters that stand for the first characters of control strings in one row."""

    def __init__(self, codec: Codec, base: int) -> None:
        self._codec = codec
        self._to: dict[str, str] = {}
        self._back: dict[int, str] = {}
        self._escapes: dict[str, str] = {}
        for code, initial in enumerate(codec.initials, base):
            self._to[initial] = chr(code)
            self._back[code] = initial
            self._escapes[f"\\u{code:04x}"] = chr(code)
        self.chars = frozenset(self._to.values())

    def close(self, text: str, whole: Whole = "none") -> str:
        """`text` with every control string in it broken but those that stay `whole`."""
        if whole == "all":
            return text
        pattern = self._codec.risky_but_markup if whole == "markup" else self._codec.risky
        text = pattern.sub(lambda match: self._to.get(match[0], match[0]), text)
        if self._codec.continues(text):
            at = len(text) - len(text.lstrip())
            text = text[:at] + self._to.get(text[at], text[at]) + text[at + 1 :]
        return text

    def rendered(self, text: str) -> str:
        """`text` as a template wrote it, with private-use characters that its `tojson` escaped put back."""
        if "\\u" in text:
            for escaped, char in self._escapes.items():
                text = text.replace(escaped, char)
        return text

    def open(self, text: str) -> str:
        """The text that was meant: as long as `text`, every private-use character of this seal put back."""
        return text.translate(self._back)


def opened(sealed: str, seal: Seal | None) -> str:
    """The text that was meant by sealed text; of a row that needs no seal, the text itself."""
    return sealed if seal is None else seal.open(sealed)


def closed(text: str, seal: Seal | None, whole: Whole = "none") -> str:
    """Content, sealed; of a row that needs no seal, the text itself."""
    return text if seal is None else seal.close(text, whole)


@dataclass(slots=True)
class Piece:
    """Tokens of a piece of text. `chunks` hold runs of ids, the character each token starts at, and their offset."""

    ids: list[int]
    chunks: list[tuple[list[int] | Any, int]]

    def starts(self) -> list[int]:
        """The character of the piece at which each token starts."""
        starts: list[int] = []
        for chunk, base in self.chunks:
            offsets = chunk if isinstance(chunk, list) else [start for start, _ in chunk.offsets]
            starts.extend(base + offset for offset in offsets)
        return starts


class Codec:
    """Text to ids and back under one tokenizer, with the promise above.

    tokenizer: a fast one (backed by the `tokenizers` library). turn_ends: ids that end a turn although they are no
    special tokens of the vocabulary. literals: the constant strings of its chat templates.

    Raises ModelError if the tokenizer has no such backend.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        turn_ends: Collection[int] = (),
        literals: Iterable[str] = (),
    ) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ModelError(
                f"the tokenizer is a {type(tokenizer).__name__}, which runs in Python; expected a fast one. "
                "Save it once with a tokenizer.json (transformers' PreTrainedTokenizerFast does)"
            )
        spec = json.loads(backend.to_str())
        # The post-processor adds begin- and end-of-text tokens around every text that is encoded;
        # here the template and `Chats.head` write them. Sorted keys: this text is part of what
        # tokens are cached under.
        spec.update(truncation=None, padding=None, post_processor=None)
        self.backend_json: str = json.dumps(spec, ensure_ascii=False, sort_keys=True)
        never = {*tokenizer.all_special_ids, *turn_ends}
        self.added: dict[int, Added] = {}
        for i, token in sorted(tokenizer.added_tokens_decoder.items()):
            self.added[i] = _added(i, token, i in never)
        controls = [token for token in self.added.values() if not token.space]
        self.control_ids = frozenset(token.id for token in controls)
        self._by_text = {token.text: token for token in self.added.values()}
        # An unknown token stands for characters that the vocabulary lacks, and content may hold
        # those. One that is also the end- or begin-of-text token stays forbidden.
        unknown = tokenizer_json.unknown_id(spec["model"])
        ends = {tokenizer.eos_token_id, tokenizer.bos_token_id, *turn_ends}
        self.unknown_id = unknown if unknown not in ends else None
        self._forbidden = self.control_ids - {self.unknown_id}
        longest_first = sorted(self.added.values(), key=lambda token: -len(token.text))
        self._written = re.compile("|".join(token.pattern for token in longest_first) or r"(?!)")
        texts = [token.text for token in controls]
        self._rests = {rest.casefold() for rest in control_patterns.rests(texts, literals)}
        self.initials = control_patterns.initials([*texts, *self._rests])
        markup = [token.text for token in controls if not token.special]
        self.risky = control_patterns.risky(texts, [])
        self.risky_but_markup = control_patterns.risky([token.text for token in controls if token.special], markup)
        self._private = re.compile(f"[{chr(_PRIVATE[0])}-{chr(_PRIVATE[-1])}]")

    # ------------------------------------------------------------------------------------------------- sealing a row

    def seal(self, texts: Sequence[tuple[str, Whole]], template: str = "") -> Seal | None:
        """A seal for a row made of `texts` (each with what stays whole in it); None if nothing needs one.

        Raises RowError if the row uses up all private-use characters of the Basic Multilingual Plane.
        """
        if not any(self._needs_seal(text, whole) for text, whole in texts):
            return None
        taken = set(self._private.findall(template))
        for text, _ in texts:
            taken.update(self._private.findall(text))
            # Content may hold the escape of a private-use character, which `Seal.rendered` would
            # take for its own.
            taken.update(chr(int(code, 16)) for code in re.findall(r"\\u(e[0-9a-f]{3}|f[0-8]..)", text))
        width = len(self.initials)
        for base in range(_PRIVATE[0], _PRIVATE[-1] + 1 - width, width):
            if not any(chr(code) in taken for code in range(base, base + width)):
                return Seal(self, base)
        raise RowError("too many private-use characters", expected="some of U+E000 to U+F8FF left for control strings")

    def _needs_seal(self, text: str, whole: Whole) -> bool:
        if whole == "all":
            return False
        pattern = self.risky_but_markup if whole == "markup" else self.risky
        return pattern.search(text) is not None or self.continues(text)

    def continues(self, text: str) -> bool:
        """Whether `text` could complete a control string whose beginning a template writes in front of it."""
        if not self._rests:
            return False
        start = text.strip().casefold()
        if not start:
            return False
        return any(start.startswith(rest) or rest.startswith(start) for rest in self._rests)

    # ------------------------------------------------------------------------------------------------------ encoding

    def written(self, sealed: str, start: int = 0) -> Iterator[tuple[int, int, Added]]:
        """(start, end, token) of each added token in `sealed` that the template wrote, or content that may."""
        for match in self._written.finditer(sealed, start):
            yield match.start(), match.end(), self._by_text[match[0]]

    def last_written(self, sealed: str, start: int = 0) -> tuple[int, Added | None]:
        """The last of `written` and where it ends; None and `start` if there is none."""
        end, last = start, None
        for _, token_end, token in self.written(sealed, start):
            end, last = token_end, token
        return end, last

    def ending(self, sealed: str) -> Follows:
        """What text behind `sealed` follows."""
        end, last = self.last_written(sealed)
        if last is None:
            return "text" if sealed else "start"
        tail = sealed[end:].lstrip() if last.rstrip else sealed[end:]
        return "text" if tail else "token"

    def swallowed(self, sealed: str) -> str:
        """`sealed` without the spaces that the control tokens in it take from beside them."""
        kept, at = [], 0
        for start, end, token in self.written(sealed):
            before = sealed[at:start]
            kept.append(before.rstrip() if token.lstrip else before)
            kept.append(token.text)
            at = end + (len(sealed[end:]) - len(sealed[end:].lstrip()) if token.rstrip else 0)
        return "".join([*kept, sealed[at:]])

    def encode(self, sealed: str, seal: Seal | None = None, follows: Follows = "start") -> Piece:
        """The tokens of `sealed`, the seal opened: added tokens where they were written, plain characters elsewhere.

        Equal to the tokenizer's own encoding if no content needs a seal. Raises RowError if the vocabulary offers no
        way to write the content without a control token, or the text is not valid Unicode.
        """
        if follows != "start" and self._prefixes:
            # Only the text up to the first added token stands behind something; what comes later
            # follows that token.
            cut = next((start for start, _, _ in self.written(sealed)), len(sealed))
            if cut:
                piece, tail = self._sections(sealed[:cut], seal, follows), self.encode(sealed[cut:], seal)
                piece.ids.extend(tail.ids)
                piece.chunks.extend((chunk, base + cut) for chunk, base in tail.chunks)
                return piece
        text = opened(sealed, seal)
        # The whole text is encoded at once, as a sampler does, if the tokenizer sees added tokens
        # exactly where they were written: by the pattern first, then by the ids that came out.
        tokens = list(self.written(sealed))
        if text is sealed or text == sealed or _places(tokens) == _places(self.written(text)):
            encoding = tokenizer_json.encode(self._full, text)
            ids: list[int] = encoding.ids
            controls = [token.id for _, _, token in tokens if token.id in self.control_ids]
            if controls == [i for i in ids if i in self.control_ids]:
                return Piece(ids, [(encoding, 0)])
        return self._sections(sealed, seal, follows)

    def _sections(self, sealed: str, seal: Seal | None, follows: Follows) -> Piece:
        """Encode what stands between written tokens on its own, where no control string has a meaning."""
        piece = Piece([], [])
        at, behind = 0, follows
        for start, end, token in self.written(sealed):
            # `lstrip` and `rstrip` tokens take the spaces beside them, as in the tokenizer's own
            # encoding.
            stop = at + len(sealed[at:start].rstrip()) if token.lstrip else start
            self._add_plain(piece, sealed[at:stop], at, seal, behind)
            piece.ids.append(token.id)
            piece.chunks.append(([0], start))
            at, behind = end, "token"
            if token.rstrip:
                at += len(sealed[end:]) - len(sealed[end:].lstrip())
        self._add_plain(piece, sealed[at:], at, seal, behind)
        return piece

    def _add_plain(self, piece: Piece, sealed: str, at: int, seal: Seal | None, behind: Follows) -> None:
        """Append `sealed`, which stands at character `at`, as plain characters."""
        text = opened(sealed, seal)
        if not text:
            return
        encoding = tokenizer_json.encode(self._bare[behind], text)
        if not self._forbidden.isdisjoint(encoding.ids):
            token = next(i for i in encoding.ids if i in self._forbidden)
            raise RowError(
                "content becomes a control token",
                got=f"{self.added[token].text} from {text[:40]!r}",
                expected="a vocabulary that can write it as plain characters",
                fix="Remove these characters from the row",
            )
        piece.ids.extend(encoding.ids)
        piece.chunks.append((encoding, at))

    # Tokenizers are built when they are first needed: a row without control strings takes `_full`
    # alone.

    @cached_property
    def _full(self) -> Tokenizer:
        return tokenizer_json.load(self.backend_json)

    @cached_property
    def _prefixes(self) -> bool:
        """Whether the place of a text changes how it is encoded."""
        spec = json.loads(self.backend_json)
        return bool(tokenizer_json.placed(spec, "text") != spec)

    @cached_property
    def _bare(self) -> dict[Follows, Tokenizer]:
        """Copies of the tokenizer without added tokens, for each place a section can stand at."""
        controls = {i: self.added[i].text for i in self.control_ids}
        spec = tokenizer_json.without_added(json.loads(self.backend_json), controls)
        loaded: dict[str, Tokenizer] = {}  # most vocabularies encode alike at every place: one copy
        bare: dict[Follows, Tokenizer] = {}
        places: tuple[Follows, ...] = ("start", "token", "text")
        for place in places:
            text = json.dumps(tokenizer_json.placed(spec, place))
            if text not in loaded:
                loaded[text] = tokenizer_json.load(text)
            bare[place] = loaded[text]
        return bare

    # ------------------------------------------------------------------------------------------------------ decoding

    def decode(self, ids: list[int]) -> str:
        """The text of ids, special tokens included."""
        return str(self._full.decode(ids, skip_special_tokens=False))

    @cached_property
    def lossless(self) -> bool:
        """Whether decoding gives every text back: so for byte-level vocabularies, not if spaces or case get lost."""
        token = ""
        for added in self.added.values():
            if added.special and not (added.lstrip or added.rstrip):
                token = added.text
                break
        probes = (*_PROBES, f"a{token}b {token} c")
        return all(self._same(self.decode(tokenizer_json.encode(self._full, text).ids), text) for text in probes)

    def _same(self, decoded: str, text: str) -> bool:
        """Equal, but for a space in front if the vocabulary cannot tell it from the one it adds."""
        return decoded == text or (self._prefixes and decoded == text.removeprefix(" "))

    def reads(self, ids: list[int], text: str) -> bool:
        """Whether `ids` decode to `text`: exactly, or up to the tokenizer's own normalisation.

        Without spaces, case and compatibility forms if the tokenizer loses those; not checked if it wrote unknown
        tokens.
        """
        decoded = self.decode(ids)
        if self._same(decoded, text):
            return True
        if self.lossless:
            normalizer = self._full.normalizer
            return normalizer is not None and bool(decoded == normalizer.normalize_str(text))
        if self.unknown_id is not None and self.unknown_id in ids:
            return True
        return _squash(decoded) == _squash(text)


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


def _places(tokens: Iterable[tuple[int, int, Added]]) -> list[tuple[int, int]]:
    return [(start, end) for start, end, _ in tokens]


def _squash(text: str) -> str:
    """A text without spaces, case and compatibility forms."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().replace("▁", "").split())
