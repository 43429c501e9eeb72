"""Formats: what the fields of a row mean. Each turns rows into examples or raises RowError.

Most read one row at a time (`FORMATS`); some need all rows of a file (`FILES`) or all files of a folder (`FOLDERS`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from espalier.data.files.json_rows import Row
from espalier.data.formats import alpaca, chats, hh, judge, labels, messages, pairs, ranked, reviews, steps, trees
from espalier.data.formats.common import Fields, first_key, missing, wrong_type
from espalier.errors import RowError
from espalier.types import Consumes, Example, Origin

FORMATS: dict[str, Callable[[Fields, Origin], Example | Sequence[Example]]] = {
    **chats.CHATS,
    "pairs": pairs.read_pairs,
    "hh": hh.read_hh,
    "judge": judge.read_judge,
    "ranked": ranked.read_ranked,
    "scores": labels.read_scores,
    "labels": labels.read_labels,
    "tree": trees.read_tree,
    "steps": steps.read_steps,
}
"""Formats of a row by name."""
FILES: dict[str, Callable[[Iterable[Row | RowError], str, str], Iterator[Example | RowError]]] = {
    "nodes": trees.read_nodes,
}
"""Formats of all rows of a file: `(rows, path, name of the source)` to examples."""
FOLDERS: dict[str, Callable[[str, str], Iterator[Example | RowError]]] = {
    "reviews": reviews.read_reviews,
}
"""Formats of all files of a folder: `(path, name of the source)` to examples."""
KNOWN = (*FORMATS, *FILES, *FOLDERS)


def sniff(row: Any, form: Consumes = "chat") -> str | None:
    """The format that a row's keys look like, or None. Of its values, only types and headings are looked at.

    `form` is what a run consumes. It decides where a row can be read in two ways: a conversation with a score is a
    `prompt` for chats and `scores` for rankings; judged solutions are `ranked` or, for steps, `steps`.

    >>> sniff({"question": "1 + 1?", "answer": "2"}), sniff({"id": 7})
    ('prompt', None)
    >>> scored = {"prompt": "1 + 1?", "response": "2", "score": 9}
    >>> sniff(scored), sniff(scored, "ranking")
    ('prompt', 'scores')
    """
    if not isinstance(row, dict):
        return None
    looks: tuple[tuple[str, bool], ...] = (
        ("hh", pairs.is_transcripts(row)),
        ("pairs", pairs.keys_of(row) is not None),
        ("judge", judge.is_judge(row) and (form == "ranking" or chats.sniff_chat(row) is None)),
        ("tree", trees.is_tree(row)),
        ("nodes", trees.is_node(row)),
        ("steps", _is_steps(row) or (form == "steps" and ranked.is_ranked(row))),
        ("ranked", ranked.is_ranked(row)),
        ("labels", labels.is_labelled(row, words=form == "ranking")),
        ("scores", form == "ranking" and labels.is_scored(row)),
    )
    return next((name for name, fits in looks if fits), None) or chats.sniff_chat(row)


def _is_steps(row: Fields) -> bool:
    if first_key(row, messages.KEYS):
        return False
    return isinstance(row.get("steps"), list) or all(
        isinstance(row.get(key), list) for key in ("completions", "labels")
    )


def vote(rows: Sequence[Any], form: Consumes = "chat") -> str | None:
    """The format that most rows look like, the earlier one of equals; None where no row looks like any."""
    votes = Counter(found for row in rows if (found := sniff(row, form)))
    return votes.most_common(1)[0][0] if votes else None


def convert(name: str, row: Any, origin: Origin, *, alpaca_prompt: bool = False) -> Sequence[Example]:
    """The examples of one row, at least one. Raises RowError where the row is not one of format `name`."""
    if not isinstance(row, dict):
        raise wrong_type("", row, "a JSON object")
    if name == "alpaca" and alpaca_prompt:
        return alpaca.read_alpaca(row, origin, prompt=True)
    made = FORMATS[name](row, origin)
    return made if isinstance(made, list) else [made]  # type: ignore[list-item]


def unknown(row: Any) -> RowError:
    """The error for a row that looks like no format."""
    if not isinstance(row, dict):
        return wrong_type("", row, "a JSON object")
    expected = (
        f"{chats.EXPECTED}; text; prompt, chosen and rejected; responses with ranks or scores; steps with labels; or "
        "messages with replies or parents"
    )
    error = missing("", row, expected, "Rename the columns, or name a format with PATH:FORMAT")
    return RowError("no known format", got=error.got, expected=error.expected, fix=error.fix)
