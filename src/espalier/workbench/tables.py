"""The workbench's numbers as tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

Numbers = Mapping[str, Any]
NOTHING = "-"
VERBS = {"people": "people prefer", "model": "the model prefers"}


def said(x: Numbers | None, form: str = ".1%") -> str:
    """An estimate with its interval, `NOTHING` where there is none.

    >>> said({"value": 0.5, "low": 0.25, "high": 0.75, "n": 4})
    '50.0% [25.0% to 75.0%] of 4'
    """
    if x is None or x["value"] is None:
        return NOTHING
    inside = f" [{x['low']:{form}} to {x['high']:{form}}]" if x["low"] is not None else ""
    return f"{x['value']:{form}}{inside} of {x['n']:,.0f}"


def number(x: float | None, form: str = ".3f") -> str:
    return NOTHING if x is None else f"{x:{form}}"


def findings(report: Numbers) -> list[tuple[str, str, str]]:
    """Every figure as (section, what, value), in the order in which they are read. `tables` and `page` show these."""
    accuracy, length, form, agree = (report[name] for name in ("accuracy", "length", "format", "agreement"))
    out = [("accuracy", "all pairs", said(accuracy["all"]))]
    out.append(("accuracy", "mean over prompts", number(accuracy["macro"], ".1%")))
    out += [("accuracy", f"source {name}", said(x)) for name, x in accuracy["source"].items()]
    out += [("accuracy", f"{k} responses", said(x)) for k, x in accuracy["k"].items()]
    if (c := report["calibration"]) is not None:
        out.append(
            ("calibration", "expected calibration error", f"{c['ece']:.3f} (if perfect, about {c['ece_floor']:.3f})")
        )
        out.append(("calibration", "Brier score (0.25 knows nothing)", number(c["brier"])))
        out.append(("calibration", "log loss (0.693 knows nothing)", number(c["log_loss"])))
    if (t := report["ties"]) is not None:
        out.append(("ties", "called close (sigma between 1/4 and 3/4)", f"{t['accuracy']:.1%} of {t['n']:,}"))
        out.append(("ties", "told apart from strict pairs (0.5: not)", number(t["told_apart"])))
    out.append(("length", "score per 100 tokens, within prompts", said(length["slope"], "+.3f")))
    out.append(("length", "the same between equals", said(length["slope_at_ties"], "+.3f")))
    out.append(("length", "correlation with the score", number(length["correlation"], "+.3f")))
    out.append(("length", "correlation with people's labels", number(length["label_correlation"], "+.3f")))
    names = {"longer_wins": "the longer wins", "longer_loses": "the longer loses", "equal_length": "both as long"}
    out += [("length", f"accuracy where {text}", said(length[key])) for key, text in names.items()]
    out += [("length", f"{VERBS[who]} the longer", said(x)) for who, x in length["preferred_longer"].items()]
    out.append(("format", "responses with lists or markup", number(form["formatted"], ".1%")))
    out += [("format", f"{verb} it to plain text", said(form[who])) for who, verb in VERBS.items()]
    out.append(("format", "model beyond people", said(form["excess"], "+.1%")))
    out.append(("format", "score for it between equals", said(form["gap_at_ties"], "+.3f")))
    for what, x in [("labels", agree["labels"]), *((f"grade {x['name']}".strip(), x) for x in agree["grades"])]:
        out += [
            ("agreement", f"{what}, {name} within prompts", said(x[name], ".3f")) for name in ("spearman", "kendall")
        ]
        if "across" in x:
            out.append(("agreement", f"{what}, Spearman across all", number(x["across"])))
    views = agree["pairs_and_grades"]
    if views["by_grades"]:
        out.append(("agreement", "people's pairs and people's grades", "the pairs are made of the grades"))
    if any(views[name] for name in ("agree", "same", "against")):
        text = f"{views['agree']:,} agree, {views['same']:,} graded alike, {views['against']:,} against"
        out.append(("agreement", "people's pairs and people's grades", text))
    if (curve := report["best_of_n"]) is not None:
        for p in curve["points"]:
            text = f"{said(p['model'])}; random {p['random']:.1%}, oracle {p['oracle']:.1%}"
            out.append(("best of n", f"n = {p['n']}", text))
    if (s := report["sensitivity"]) is not None:
        for key, text in (("order", "siblings in another order"), ("mates", "groups scored alone"),
                          ("siblings", "responses scored alone")):  # fmt: skip
            out.append(("sensitivity", f"{text}, largest change", f"{s[key]:.1e}"))
        verdict = "scores depend on the batch" if not s["ok"] else "rounding"
        out.append(("sensitivity", f"limit {s['limit']:g} of the scores' spread {s['spread']:.3g}", verdict))
    return out


def tables(report: Numbers) -> list[Table]:
    """One table for each section that has figures."""
    grouped: dict[str, list[Sequence[str]]] = {}
    for section, what, value in findings(report):
        if value != NOTHING:
            grouped.setdefault(section, []).append((what, value))
    out = []
    for section, rows in grouped.items():
        table = Table(title=section, title_justify="left", show_header=False)
        for cells in rows:
            table.add_row(*cells)
        out.append(table)
    return out
