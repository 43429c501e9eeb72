"""One answer with a label of its own, good or bad (KTO, arXiv:2402.01306), or with scores of its own."""

from __future__ import annotations

from espalier.data.formats.chats import read_chat, sniff_chat
from espalier.data.formats.common import Fields, first_key, missing, wrong_type
from espalier.data.formats.judged import flag, is_word, ranking, scale_of, score
from espalier.types import Chat, Origin, Ranking, Response

LABELS = ("label", "kto_tag")
SCORES = ("score", "rating", "reward")
DIMENSIONS = (
    *("helpfulness", "correctness", "coherence", "complexity", "verbosity"),  # HelpSteer, arXiv:2311.09528
    *("helpful", "honest", "harmless"),
)


def is_labelled(row: Fields, *, words: bool = False) -> bool:
    """Whether a row is a conversation beside which a label stands that is true or false, with `words` also good or bad
    in words."""
    label = row.get(first_key(row, LABELS) or "")
    return (isinstance(label, bool) or (words and is_word(label))) and sniff_chat(row) not in (None, "text")


def is_scored(row: Fields) -> bool:
    """Whether a row is a conversation beside which scores stand."""
    if sniff_chat(row) in (None, "text"):
        return False
    found = [row[key] for key in (*SCORES, *DIMENSIONS) if row.get(key) is not None]
    numbers = any(isinstance(value, int | float) and not isinstance(value, bool) for value in found)
    return numbers or isinstance(row.get("scores"), dict)


def read_labels(row: Fields, origin: Origin) -> Ranking:
    """A Ranking of one response with a label: the last turn of a conversation in any format, and `label` (`kto_tag`).

    Raises RowError, also where the label is neither true (1, good) nor false (0, bad).
    """
    key = first_key(row, LABELS)
    if key is None:
        raise missing("label", row, " or ".join(LABELS))
    return _last(read_chat(row, origin), good=flag(row[key], key))


def read_scores(row: Fields, origin: Origin) -> Ranking:
    """A Ranking of one response with scores: the last turn of a conversation in any format.

    The scores are one number (`score`, `rating`, `reward`), an object `scores` of dimensions, or columns: helpfulness,
    correctness, coherence, complexity and verbosity as HelpSteer has them, helpful, honest and harmless. Null is not
    judged. `scale`, where the row has it, is the least and the highest score.

    Raises RowError, also for scores that are not finite or outside the scale.
    """
    scale, given = scale_of(row), row.get("scores")
    if given is not None and not isinstance(given, dict):
        raise wrong_type("scores", given, "an object of dimensions and scores")
    names = tuple(given or (name for name in DIMENSIONS if name in row))
    if names:
        found = tuple(score((given or row)[name], f"scores.{name}" if given else name, scale) for name in names)
        return _last(read_chat(row, origin), scores=found, dimensions=names)
    key = first_key(row, SCORES)
    if key is None:
        raise missing("score", row, f"{' or '.join(SCORES)}, or scores of several dimensions")
    return _last(read_chat(row, origin), scores=(score(row[key], key, scale),))


def _last(
    chat: Chat, *, good: bool | None = None, scores: tuple[float | None, ...] = (), dimensions: tuple[str, ...] = ()
) -> Ranking:
    """The last turn of a conversation as the one response to all before it."""
    *prompt, last = chat.messages
    response = Response(last, scores=scores, good=good)
    return ranking(prompt, [response], chat.origin, field="response", dimensions=dimensions, tools=chat.tools)
