"""PRM800K as it is published: at each step several completions with ratings, one of which the solution goes on with.

Lightman et al., arXiv:2305.20050. A step is `{"completions": [{"text", "rating"}], "human_completion", ...}`, and
`chosen_completion` is the place of the one that was chosen; where none was good, a person wrote one.
"""

from __future__ import annotations

from typing import Any

from espalier.data.columns.watched import peek
from espalier.data.formats.common import Fields, first_key, missing, string, wrong_type
from espalier.data.formats.format import Format
from espalier.data.formats.steps import RATING
from espalier.errors import RowError
from espalier.types import Consumes, Message, Origin, Steps


def looks(row: Fields, consumes: Consumes) -> bool:
    """Whether a row has a question with a problem, and a label with steps of rated completions."""
    question, label = peek(row, "question"), peek(row, "label")
    if not isinstance(question, dict) or not isinstance(label, dict) or not isinstance(peek(question, "problem"), str):
        return False
    steps = peek(label, "steps")
    return isinstance(steps, list) and bool(steps) and isinstance(steps[0], dict) and "completions" in steps[0]


def read_prm800k(row: Fields, origin: Origin) -> list[Steps]:
    """One Steps of the chosen completions, up to a last step where none was chosen, and one for each other completion:
    the chosen steps before it, without labels, and it with its own. Ratings are 1 good, 0 neutral, -1 bad, null not
    judged; a completion that a person wrote instead of bad ones is good. Raises RowError.
    """
    if not looks(row, "steps"):
        raise missing("label.steps", row, "question.problem, and label.steps with completions")
    question, label = row["question"], row["label"]
    prompt = (Message("user", string(question, ("problem",), "question.")),)
    steps = label["steps"]
    texts: list[str] = []
    labels: list[float | None] = []
    others: list[Steps] = []
    for i, step in enumerate(steps):
        field = f"label.steps[{i}]"
        options = _options(step, field)
        chosen = _chosen(step, options, f"{field}.chosen_completion")
        for place, (text, rating) in enumerate(options):
            if place != chosen and rating is not None:
                unjudged = (None,) * len(texts)
                others.append(Steps(prompt, (*texts, text), (*unjudged, rating), None, "\n", origin))
        if chosen is None:
            if i + 1 < len(steps):
                raise RowError("no chosen step", field=field, got="no completion that the next step follows")
            break
        text, rating = options[chosen]
        texts.append(text)
        labels.append(rating)
    judged = any(rating is not None for rating in labels)
    solution = [Steps(prompt, tuple(texts), tuple(labels), None, "\n", origin)] if judged else []
    if not solution and not others:
        raise RowError("no label", field="label.steps", got="completions without a rating", expected="one that has one")
    return [*solution, *others]


def _options(step: Any, field: str) -> list[tuple[str, float | None]]:
    """The completions of a step with their ratings as labels, the one that a person wrote last."""
    if not isinstance(step, dict):
        raise wrong_type(field, step, "an object with completions")
    completions = step.get("completions") or []
    if not isinstance(completions, list):
        raise wrong_type(f"{field}.completions", completions, "a list of completions")
    options = [_option(completion, f"{field}.completions[{j}]") for j, completion in enumerate(completions)]
    human = step.get("human_completion")
    if isinstance(human, dict):
        text, rating = _option(human, f"{field}.human_completion")
        options.append((text, 1.0 if rating is None else rating))
    elif isinstance(human, str) and human.strip():
        options.append((human, 1.0))
    return options


def _option(completion: Any, field: str) -> tuple[str, float | None]:
    if not isinstance(completion, dict):
        raise wrong_type(field, completion, "an object with text and rating")
    rating = completion.get("rating")
    if rating is not None and (isinstance(rating, bool) or rating not in RATING):
        raise wrong_type(f"{field}.rating", rating, "1, 0, -1 or null")
    return string(completion, ("text",), f"{field}."), None if rating is None else RATING[rating]


def _chosen(step: Fields, options: list[tuple[str, float | None]], field: str) -> int | None:
    """The place of the completion that the solution goes on with; None if there is none."""
    chosen = step.get("chosen_completion")
    if chosen is None:
        return len(options) - 1 if options and first_key(step, ("human_completion",)) else None
    if isinstance(chosen, bool) or not isinstance(chosen, int | float) or chosen not in range(len(options)):
        raise wrong_type(field, chosen, f"a place from 0 to {len(options) - 1}, or null")
    return int(chosen)


FORMAT = Format("prm800k", read_prm800k, looks)
