"""A fast tokenizer as its JSON: copies of it that know no added tokens, and that add no space in front of a text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from espalier.errors import RowError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Follows = Literal["start", "token", "text"]
"""What a piece of text stands behind: nothing, an added token, or ordinary text. Vocabularies that mark a word by the
space in front of it add one at the start of a text; in the middle of one they must not."""

_HIDDEN = "\U0010ffff"  # a noncharacter: names of hidden vocabulary entries begin with it


def load(text: str) -> Tokenizer:
    """The tokenizer of a JSON text."""
    from tokenizers import Tokenizer

    return Tokenizer.from_str(text)


def encode(tokenizer: Tokenizer, text: str) -> Any:
    """The encoding of a text, nothing added in front or behind. Raises RowError if the text is not valid Unicode."""
    try:
        return tokenizer.encode(text, add_special_tokens=False)
    except TypeError as e:  # what the library raises for lone surrogates
        raise RowError("text is no valid Unicode", got=ascii(text[:40]), fix="Remove the lone surrogates") from e


def unknown_id(model: dict[str, Any]) -> int | None:
    """The id that stands for what the vocabulary cannot write."""
    if model["type"] == "Unigram":
        return model["unk_id"]  # type: ignore[no-any-return]
    return model["vocab"].get(model.get("unk_token"))  # type: ignore[no-any-return]


def without_added(spec: dict[str, Any], controls: dict[int, str]) -> dict[str, Any]:
    """A tokenizer without added tokens, in whose vocabulary no text matches a control string.

    controls: control strings by id.
    """
    # The library matches added tokens before anything else. Without them a control string is
    # ordinary text, but a vocabulary may hold it as an entry of its own, which keeps its id and
    # loses its name, and may build it by merges.
    names = set(controls.values())
    model = dict(spec["model"])
    if model["type"] == "Unigram":
        vocab = []
        for i, (entry, score) in enumerate(model["vocab"]):
            vocab.append([f"{_HIDDEN}{i}" if entry in names else entry, score])
        return {**spec, "added_tokens": [], "model": {**model, "vocab": vocab}}
    model["vocab"] = {f"{_HIDDEN}{i}" if entry in names else entry: i for entry, i in model["vocab"].items()}
    if model.get("unk_token") in names:
        model["unk_token"] = f"{_HIDDEN}{spec['model']['vocab'][model['unk_token']]}"
    if "merges" in model:
        merges = []
        for merge in model["merges"]:
            left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
            if names.isdisjoint((left, right, left + right)):
                merges.append([left, right])
        model["merges"] = merges
    return {**spec, "added_tokens": [], "model": model}


def placed(spec: dict[str, Any], follows: Follows) -> dict[str, Any]:
    """`spec` without the spaces that it would put in front of a text which `follows` something."""
    parts = {part: _without_prefix(spec[part], follows) for part in ("normalizer", "pre_tokenizer")}
    return {**spec, **parts}


def _without_prefix(node: Any, follows: Follows) -> Any:
    """A normalizer or pre-tokenizer that adds no space in front; None if that is all it does."""
    if not isinstance(node, dict) or follows == "start":
        return node
    for listed in ("normalizers", "pretokenizers"):
        if listed in node:
            children = [_without_prefix(child, follows) for child in node[listed]]
            return {**node, listed: [child for child in children if child is not None]}
    # Of the library's schemes, "first" adds a space at the start of a text only, "always" behind an
    # added token too.
    scheme = node.get("prepend_scheme")
    if node["type"] == "Metaspace" and (scheme == "first" or (scheme == "always" and follows == "text")):
        return {**node, "prepend_scheme": "never"}
    if follows == "text" and node["type"] == "Prepend":
        return None
    if follows == "text" and node.get("add_prefix_space"):
        return {**node, "add_prefix_space": False}
    return node
