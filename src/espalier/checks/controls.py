"""Content that looks like control tokens and is written as ordinary characters."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from espalier.checks.table import Outcome, failed, passed, warned

if TYPE_CHECKING:
    from espalier.checks.evidence import Evidence
    from espalier.data.store.stats import StoreStats

SHOWN = 6
SHARE = 0.01
_WAYS = {"prompts": "prompt", "answers": "completion", "completions": "completion", "texts": "text"}


def check_controls(evidence: Evidence) -> Outcome:
    """The contents of all sources."""
    return controls(evidence.stats, evidence.session.config.model.add_tokens)


def controls(stats: Sequence[tuple[str, StoreStats]], added: Collection[str]) -> Outcome:
    """Contents that hold the text of control tokens, by source; none of the `added` tokens in what is trained."""
    limit = "none in what is trained"
    parts: list[str] = []
    places: set[str] = set()
    lost: list[str] = []
    loud = False
    for name, s in stats:
        for what, count in s.controls.items():
            place, string = what.split(" ", 1)[0], what.rsplit(" ", 1)[-1]
            parts.append(f"{name}: {count:,} {what}")
            places.add(place)
            loud = loud or " end in " in what or place == "texts" or count > SHARE * s.kept
            if place in ("answers", "completions") and string in added:
                lost.append(f"{count:,} {place} of {name} hold {string}")
    value = "; ".join(parts[:SHOWN]) + (f"; and {len(parts) - SHOWN} more" if len(parts) > SHOWN else "")
    if not parts:
        return passed("none", limit)
    flags = sorted({_WAYS[place] for place in places if place in _WAYS})
    parse = f"--parse-control {' '.join(flags)} makes them the tokens they name"
    if lost:
        way_out = f"{', '.join(lost)}, which is given with --add-tokens, but is written there as ordinary characters. "
        return failed(value, "added tokens are used where answers hold them", way_out + parse)
    if not loud:
        return passed(value, limit)
    way_out = "These strings are trained or shown as ordinary characters, not as the tokens they look like"
    if flags:
        return warned(value, limit, f"{way_out}: {parse}, or take them out of the rows.")
    return warned(value, limit, f"{way_out}: take them out of the rows.")
