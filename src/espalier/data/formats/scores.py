"""One answer with scores of its own."""

from __future__ import annotations

from espalier.data.formats.chats import is_chat, read_chat
from espalier.data.formats.common import Fields, first_key, missing, wrong_type
from espalier.data.formats.format import Format
from espalier.data.formats.judged import scale_of, score
from espalier.data.formats.labels import last_turn
from espalier.types import Consumes, Origin, Ranking

SCORES = ("score", "rating", "reward")
DIMENSIONS = (
    *("helpfulness", "correctness", "coherence", "complexity", "verbosity"),  # HelpSteer, arXiv:2311.09528
    *("helpful", "honest", "harmless"),
)


def looks(row: Fields, consumes: Consumes) -> bool:
    """Whether a run consumes rankings and a row is a conversation with scores."""
    if consumes != "ranking" or not is_chat(row):
        return False
    if isinstance(row.get("scores"), dict):
        return True
    # True and false are numbers in Python, but labels in data.
    values = [row.get(key) for key in (*SCORES, *DIMENSIONS)]
    return any(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def read_scores(row: Fields, origin: Origin) -> Ranking:
    """A Ranking of one response with scores: the last turn of a conversation in any format.

    The scores are one number (`score`, `rating`, `reward`), an object `scores` of dimensions, or columns: helpfulness,
    correctness, coherence, complexity and verbosity as HelpSteer has them, helpful, honest and harmless. Null is not
    judged. `scale`, if the row has it, is the least and the highest score.

    Raises RowError, also for scores that are not finite or outside the scale.
    """
    scale, named = scale_of(row), row.get("scores")
    if named is not None and not isinstance(named, dict):
        raise wrong_type("scores", named, "an object of dimensions and scores")
    if named:
        scores = tuple(score(value, f"scores.{name}", scale) for name, value in named.items())
        return last_turn(read_chat(row, origin), scores=scores, dimensions=tuple(named))
    columns = tuple(name for name in DIMENSIONS if name in row)
    if columns:
        scores = tuple(score(row[name], name, scale) for name in columns)
        return last_turn(read_chat(row, origin), scores=scores, dimensions=columns)
    key = first_key(row, SCORES)
    if key is None:
        raise missing("score", row, f"{' or '.join(SCORES)}, or scores of several dimensions")
    return last_turn(read_chat(row, origin), scores=(score(row[key], key, scale),))


FORMAT = Format("scores", read_scores, looks)
