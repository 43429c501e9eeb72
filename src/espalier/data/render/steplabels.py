"""What step labels count as before they are trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from espalier.config.sections import StepLabelsConfig
from espalier.errors import RowError
from espalier.types import Steps


def relabel(example: Steps, config: StepLabelsConfig) -> Steps:
    """The example with the labels that are trained on; None still is "not labelled", and has no part in the loss.

    With labels 1 0.5 0 1 - (- is None), of a solution that failed:

        neutral good, after_mistake ignore     1 1 0 - -
        neutral half, after_mistake bad        1 0.5 0 0 0
        neutral ignore, after_mistake keep     1 - 0 1 -
        neutral bad, after_mistake ignore      1 0 - - -      the neutral step is the first mistake now
        supervision outcome, outcome spread    0 0 0 0 0
        supervision outcome, outcome last      - - - - 0

    Soft labels (chances from 0 to 1) are taken as they are. This happens before tokens are packed, so that the reads a
    loss is divided by are those that have a label.
    Raises RowError if no label is left.
    """
    if config.supervision == "outcome" or all(label is None for label in example.labels):
        labels = _from_outcome(example, config)
    elif example.soft:
        # Each is an estimate of its own: no step is neutral, and none is the first mistake.
        labels = list(example.labels)
    else:
        labels = _from_steps(example.labels, config)
    if all(label is None for label in labels):
        got = f"neutral steps alone, with neutral {config.neutral}"
        fix = "Count neutral steps as good, bad or half, or leave the row out"
        raise RowError("no label left", field="labels", got=got, expected="a step that is good or bad", fix=fix)
    return replace(example, labels=tuple(labels))


def _from_steps(labels: Sequence[float | None], config: StepLabelsConfig) -> list[float | None]:
    """The steps' own labels, neutral ones and those behind a first mistake replaced."""
    neutral = {"good": 1.0, "bad": 0.0, "half": 0.5, "ignore": None}[config.neutral]
    result: list[float | None] = []
    mistaken = False
    for label in labels:
        if mistaken and config.after_mistake != "keep":
            result.append(0.0 if config.after_mistake == "bad" else None)
            continue
        # Neutral steps are replaced first: one that counts as bad is a first mistake.
        counted = neutral if label == 0.5 else label
        mistaken = mistaken or counted == 0.0
        result.append(counted)
    return result


def _from_outcome(example: Steps, config: StepLabelsConfig) -> list[float | None]:
    """Labels made of whether the solution is right. Raises RowError if that is not known, or not to be used."""
    if example.solved is None or config.outcome == "ignore":
        got, fix = "no outcome", ""
        if example.solved is not None:
            got, fix = "an outcome alone, with outcome ignore", "Set outcome to spread or last"
        if config.supervision == "outcome":
            raise RowError("no outcome", field="solved", got=got, expected="whether the solution is right")
        raise RowError("no label", field="labels", got=got, expected="labels of steps", fix=fix)
    outcome = float(example.solved)
    if config.outcome == "last":
        return [*[None] * (len(example.steps) - 1), outcome]
    return [outcome] * len(example.steps)
