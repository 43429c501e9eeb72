"""What step labels count as before they are trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from espalier.config.sections import StepLabelsConfig
from espalier.errors import RowError
from espalier.types import Steps


def relabel(example: Steps, how: StepLabelsConfig) -> Steps:
    """The example with the labels that are trained on; None still is "not labelled", and has no part in the loss.

    With labels 1 0.5 0 1 - (- is None), of a solution that failed:

        neutral good, after_mistake ignore     1 1 0 - -
        neutral half, after_mistake bad        1 0.5 0 0 0
        neutral ignore, after_mistake keep     1 - 0 1 -
        neutral bad, after_mistake ignore      1 0 - - -      the neutral step is the first mistake now
        supervision outcome, outcome spread    0 0 0 0 0
        supervision outcome, outcome last      - - - - 0

    This is done before the tokens are packed, so that the reads a loss is divided by are those it has a label for.
    Raises RowError where no label is left.
    """
    labels: Sequence[float | None] = example.labels
    if how.supervision == "outcome" or all(label is None for label in labels):
        labels = _from_outcome(example, how)
    else:
        neutral = {"good": 1.0, "bad": 0.0, "half": 0.5, "ignore": None}[how.neutral]
        labels = [neutral if label == 0.5 else label for label in labels]
        if how.after_mistake != "keep" and 0.0 in labels:
            first = labels.index(0.0)
            behind = 0.0 if how.after_mistake == "bad" else None
            labels = [*labels[: first + 1], *[behind] * (len(labels) - first - 1)]
    if all(label is None for label in labels):
        got = f"neutral steps alone, with neutral {how.neutral}"
        fix = "Count neutral steps as good, bad or half, or leave the row out"
        raise RowError("no label left", field="labels", got=got, expected="a step that is good or bad", fix=fix)
    return replace(example, labels=tuple(labels))


def _from_outcome(example: Steps, how: StepLabelsConfig) -> list[float | None]:
    if example.solved is None or how.outcome == "ignore":
        got = "no outcome" if example.solved is None else "an outcome alone, with outcome ignore"
        if how.supervision == "outcome":
            raise RowError("no outcome", field="solved", got=got, expected="whether the solution is right")
        fix = "Set outcome to spread or last" if example.solved is not None else ""
        raise RowError("no label", field="labels", got=got, expected="labels of steps", fix=fix)
    outcome = float(example.solved)
    if how.outcome == "last":
        return [*[None] * (len(example.steps) - 1), outcome]
    return [outcome] * len(example.steps)
