"""The check of a reward model's calibration: the answers it was calibrated on have mean 0, and deviation 1 if asked.

Which answers these are, their mean and their deviation are worked out here once more, from the samples' judgements and
by plain arithmetic; some groups have been scored again with the calibration in place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, pstdev
from typing import TYPE_CHECKING

from espalier.checks.table import Outcome, failed, passed, skipped
from espalier.types import Sample

if TYPE_CHECKING:
    from espalier.assembly.session import Calibrated
    from espalier.checks.evidence import Evidence

TOLERANCE = {"float64": 1e-6, "float32": 1e-4, "bfloat16": 0.05}
"""What scoring the same groups twice explains, by dtype, relative above 1."""
LIMIT = "mean 0 over the reference answers"


def check_calibration(evidence: Evidence) -> Outcome:
    """The calibrated scores of some groups against the ones that arithmetic gives."""
    session = evidence.session
    if session.calibrated is None:
        return skipped("nothing was calibrated", LIMIT)
    dtype = str(session.model.compute).removeprefix("torch.")
    return calibration(session.calibrated, TOLERANCE[dtype])


def calibration(made: Calibrated, tolerance: float) -> Outcome:
    """Whether every score after the calibration is (score before - mean) / deviation, with mean and deviation over the
    reference answers (deviation 1 without `scale`): their own mean is 0 then."""
    reference = []
    for group, before in zip(made.groups, made.before, strict=True):
        reference += [before[place] for place in _reference(group, made.every, made.weights)]
    dimensions = len(reference[0]) if reference else 0
    means = [fmean(scores[k] for scores in reference) for k in range(dimensions)]
    spreads = [pstdev([scores[k] for scores in reference]) if made.scale else 1.0 for k in range(dimensions)]
    worst = 0.0
    for before, after in zip(made.before, made.after, strict=False):  # some groups are scored again
        for old, new in zip(before, after, strict=True):
            for k in range(dimensions):
                expected = (old[k] - means[k]) / spreads[k]
                apart = abs(new[k] - expected) / max(1.0, abs(expected))
                worst = max(worst, apart if math.isfinite(apart) else math.inf)
    value = f"{len(reference):,} reference answers, scores {worst:.1e} from their place"
    limit = f"{LIMIT}{', deviation 1' if made.scale else ''}; <= {tolerance:g}"
    if not reference or worst > tolerance:
        return failed(
            value,
            limit,
            "The calibration is not the one of these answers, so that scores are shifted: do not use their absolute "
            "values, and report this with the run's folder.",
        )
    return passed(value, limit)


def _reference(group: Sequence[Sample], every: bool, weights: Sequence[float] | None) -> list[int]:
    """The places of a group's reference answers: all, those that win a comparison and lose none, or, if the loss learns
    from grades, those of the highest total that is not shared by all."""
    if every:
        return list(range(len(group)))
    if weights is None:
        lost = [0] * len(group)
        for s in group:
            for place in s.beats:
                lost[place] += 1
        return [place for place, s in enumerate(group) if len(s.beats) > 0 and lost[place] == 0]
    totals: dict[int, float] = {}
    for place, s in enumerate(group):
        graded = [(w, x) for w, x in zip(weights, s.grades[0], strict=True) if w] if s.grades else []
        if graded and not any(math.isnan(x) for _, x in graded):
            totals[place] = sum(w * x for w, x in graded)
    if len(set(totals.values())) < 2:
        return []
    return [place for place, total in totals.items() if total == max(totals.values())]
