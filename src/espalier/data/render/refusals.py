"""Why a ranking is refused: what was wrong with its responses, or what these lack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from espalier.data.render.drafts import EMPTIED, RenderedGroup
from espalier.data.render.rankings import UNJUDGED
from espalier.errors import RowError
from espalier.types import Response, Wants

if TYPE_CHECKING:
    from espalier.data.render.form import Form

EMPTY, IDENTICAL, CUT = "empty response", "identical responses", "identical after the cut"
FAULTS = (EMPTY, EMPTIED, IDENTICAL, CUT)
"""Reasons for which a response is left out and that are wrong with the response, not with how it is judged."""
MISSING: dict[Wants, tuple[str, str]] = {
    "pairs": ("no strict preference", "a response that is preferred to another one"),
    "comparisons": ("no comparison", "a preference or a tie between two responses"),
    "labels": ("no good-or-bad label", "labels, or responses on exactly two levels"),
    "grades": ("no score", "a score of one response at least"),
}
"""What a ranking lacks, and what is expected of it, by what the run wants."""


def refusal(group: RenderedGroup, form: Form, *, limit: int, left: Sequence[Response] = ()) -> RowError:
    """The error of a row that does not offer what `form` wants; `left` are the responses that are judged and differ.

    If fewer than two are left, the first fault among those that were left out is the reason, else what the row lacks.
    limit: the tokens to which responses are cut.
    """
    missing, expected = MISSING[form.wants]
    faults = [reason for reason in group.dropped if reason in FAULTS and len(left) < 2]
    if faults and faults[0] == CUT:
        return RowError(
            CUT,
            got=f"{group.dropped[CUT]} responses that are cut to the same tokens",
            expected=f"responses that differ among the first {limit} tokens, prompt included",
            fix="Raise --max-length, if the model takes more, or leave such rows out with --on-bad-row skip",
        )
    dropped = ", ".join(f"{reason} ({count})" for reason, count in group.dropped.items())
    if faults:
        return RowError(faults[0], got=dropped, expected=expected)
    have = f"{len(left)} responses, none better than another"
    if len(left) == 1:
        have = "1 response"
    elif not left:
        have = "none that is judged" if UNJUDGED in group.dropped else "none"
    got = f"{have}; left out: {dropped}" if dropped else have
    return RowError(missing, got=got, expected=expected, fix=_command_for(left, form))


def _command_for(left: Sequence[Response], form: Form) -> str:
    """The command that takes such responses, each being judged by itself; empty if none does."""
    if form.wants == "grades":
        return "Answers that are compared are for --objective bradley_terry"
    if any(response.good is not None for response in left):
        return "Answers that are labelled good or bad are for `espalier kto` or `espalier bco`"
    if len(left) == 1 and any(score is not None for score in left[0].scores):
        return "Single answers with scores are for `espalier reward --objective pointwise`"
    return ""
