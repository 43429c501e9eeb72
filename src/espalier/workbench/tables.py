"""The workbench's numbers in words, as rows of (section, what, value)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Numbers = Mapping[str, Any]
Rows = list[tuple[str, str]]
"""What a figure is, and its value."""
NOTHING = "-"


def estimate_text(estimate: Numbers | None, form: str = ".1%") -> str:
    """An estimate with its interval, `NOTHING` if it has no value.

    >>> estimate_text({"value": 0.5, "low": 0.25, "high": 0.75, "n": 4})
    '50.0% [25.0% to 75.0%] of 4'
    """
    if estimate is None or estimate["value"] is None:
        return NOTHING
    text = f"{estimate['value']:{form}}"
    if estimate["low"] is not None:
        text += f" [{estimate['low']:{form}} to {estimate['high']:{form}}]"
    return f"{text} of {estimate['n']:,.0f}"


def number_text(number: float | None, form: str = ".3f") -> str:
    """A number, `NOTHING` if there is none."""
    return NOTHING if number is None else f"{number:{form}}"


def findings(report: Numbers) -> list[tuple[str, str, str]]:
    """Every figure of `reward.judge` as (section, what, value), in reading order."""
    return flat(
        {
            "accuracy": _accuracy(report["accuracy"]),
            "calibration": _calibration(report["calibration"]),
            "ties": _ties(report["ties"]),
            "length": _length(report["length"]),
            "format": _format(report["format"]),
            "agreement": _agreement(report["agreement"]),
            "best of n": _best_of_n(report["best_of_n"]),
            "sensitivity": _sensitivity(report["sensitivity"]),
        }
    )


def flat(sections: Mapping[str, Rows]) -> list[tuple[str, str, str]]:
    """The rows of all sections as (section, what, value)."""
    return [(section, what, value) for section, rows in sections.items() for what, value in rows]


def by_section(figures: Iterable[tuple[str, str, str]]) -> dict[str, Rows]:
    """Rows of (section, what, value) by section, without those that have no value and sections that have none.

    >>> by_section([("a", "x", "1"), ("a", "y", "-"), ("b", "z", "-")])
    {'a': [('x', '1')]}
    """
    sections: dict[str, Rows] = {}
    for section, what, value in figures:
        if value != NOTHING:
            sections.setdefault(section, []).append((what, value))
    return sections


def _accuracy(accuracy: Numbers) -> Rows:
    rows = [
        ("all pairs", estimate_text(accuracy["all"])),
        ("mean over prompts", number_text(accuracy["macro"], ".1%")),
    ]
    for source, estimate in accuracy["source"].items():
        rows.append((f"source {source}", estimate_text(estimate)))
    for count, estimate in accuracy["k"].items():
        rows.append((f"prompts with {count} responses", estimate_text(estimate)))
    return rows


def _calibration(calibration: Numbers | None) -> Rows:
    if calibration is None:
        return []
    error = f"{calibration['ece']:.3f} (a perfectly calibrated model: about {calibration['ece_floor']:.3f})"
    return [
        ("expected calibration error", error),
        ("Brier score (0.25 = chance)", number_text(calibration["brier"])),
        ("log loss (0.693 = chance)", number_text(calibration["log_loss"])),
    ]


def _ties(ties: Numbers | None) -> Rows:
    if ties is None:
        return []
    close = f"{ties['accuracy']:.1%} of {ties['n']:,}"
    return [
        ("ties that the model scores about equal (probability 1/4 to 3/4)", close),
        (
            "chance that a tie's score difference is below a strict pair's (0.5 = chance)",
            number_text(ties["told_apart"]),
        ),
    ]


def _length(length: Numbers) -> Rows:
    preferred = length["preferred_longer"]
    return [
        ("score per 100 more tokens, within prompts", estimate_text(length["slope"], "+.3f")),
        ("score per 100 more tokens, between ties", estimate_text(length["slope_at_ties"], "+.3f")),
        ("correlation of length and score, within prompts", number_text(length["correlation"], "+.3f")),
        ("correlation of length and people's labels, within prompts", number_text(length["label_correlation"], "+.3f")),
        ("accuracy if the longer response is preferred", estimate_text(length["longer_wins"])),
        ("accuracy if the shorter response is preferred", estimate_text(length["longer_loses"])),
        ("accuracy if both are of equal length", estimate_text(length["equal_length"])),
        ("people prefer the longer response", estimate_text(preferred["people"])),
        ("the model prefers the longer response", estimate_text(preferred["model"])),
    ]


def _format(form: Numbers) -> Rows:
    return [
        ("responses with lists or markup", number_text(form["formatted"], ".1%")),
        ("people prefer lists or markup to plain text", estimate_text(form["people"])),
        ("the model prefers lists or markup to plain text", estimate_text(form["model"])),
        ("the model's preference minus people's", estimate_text(form["excess"], "+.1%")),
        ("score of lists or markup minus plain text, between ties", estimate_text(form["gap_at_ties"], "+.3f")),
    ]


def _agreement(agreement: Numbers) -> Rows:
    rows = _correlations("labels", agreement["labels"])
    for grade in agreement["grades"]:
        name = f"grade {grade['name']}".strip()
        rows += _correlations(name, grade)
        rows.append((f"{name}, Spearman across all responses", number_text(grade["across"])))
    views, title = agreement["pairs_and_grades"], "people's pairs and people's grades"
    if views["by_grades"]:
        rows.append((title, f"{views['by_grades']:,} pairs follow from the grades, so they always agree"))
    if views["agree"] or views["same"] or views["against"]:
        judged = f"{views['agree']:,} pairs agree with the grades, {views['same']:,} are graded equal"
        rows.append((title, f"{judged}, {views['against']:,} contradict them"))
    return rows


def _correlations(name: str, correlations: Numbers) -> Rows:
    return [
        (f"{name}, Spearman within prompts", estimate_text(correlations["spearman"], ".3f")),
        (f"{name}, Kendall's tau-b within prompts", estimate_text(correlations["kendall"], ".3f")),
    ]


def _best_of_n(curve: Numbers | None) -> Rows:
    if curve is None:
        return []
    rows = []
    for point in curve["points"]:
        limits = f"random choice {point['random']:.1%}, oracle {point['oracle']:.1%}"
        rows.append((f"correct, n = {point['n']}", f"{estimate_text(point['model'])}; {limits}"))
    return rows


def _sensitivity(sensitivity: Numbers | None) -> Rows:
    if sensitivity is None:
        return []
    limit = f"limit: {sensitivity['limit']:g} of the scores' standard deviation"
    verdict = "kept: only rounding" if sensitivity["ok"] else "exceeded: scores depend on the batch"
    return [
        ("largest change, siblings in another order", f"{sensitivity['order']:.1e}"),
        ("largest change, groups scored alone", f"{sensitivity['mates']:.1e}"),
        ("largest change, responses scored alone", f"{sensitivity['siblings']:.1e}"),
        (f"{limit} ({sensitivity['spread']:.3g})", verdict),
    ]
