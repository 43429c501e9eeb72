"""Groups of answers with their fate, and the numbers of a step's groups."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from espalier.engines.protocols import Group
from espalier.loop.answers import Seconds
from espalier.outcomes import Fate
from espalier.types import Prompt, Sample


@dataclass(slots=True)
class Rolled:
    """All answers to one task. `fate` is what becomes of those that were graded; see `outcomes.Fate`."""

    prompt: Prompt
    epoch: int
    answers: Group
    fate: Fate = "keep"

    @property
    def graded(self) -> Group:
        """The answers that could be graded, the invalid ones included."""
        return [s for s in self.answers if not error_of(s)]

    @property
    def equal(self) -> bool | None:
        """Whether all scores, and those of all steps of process rewards, are exactly equal; None with fewer than two
        answers, of which none can be better."""
        return all_equal(self.graded)


def all_equal(graded: Group) -> bool | None:
    """Whether the scores of these answers, and those of all steps of process rewards, are exactly equal; None for fewer
    than two answers."""
    if len(graded) < 2:
        return None
    steps = {x for s in graded if s.outcome is not None for _, x in s.outcome.steps}
    return len({score_of(s) for s in graded}) == 1 and len(steps) <= 1


def error_of(sample: Sample) -> str:
    """Why an answer could not be graded; empty if it could."""
    return sample.outcome.error if sample.outcome is not None else ""


def score_of(sample: Sample) -> float:
    """What the rewards say of a graded answer, before anything is added or subtracted."""
    assert sample.outcome is not None
    return sample.outcome.score


def length_of(sample: Sample) -> int:
    """Tokens of the answer, its stop token included."""
    return sum(sample.mask)


def answers_of(groups: Sequence[Rolled]) -> list[Sample]:
    return [s for group in groups for s in group.answers]


def numbers_of(groups: Sequence[Rolled], seconds: Seconds, waves: int) -> dict[str, float]:
    """The numbers of a step's draw. They are about everything that was drawn in the step, refilled groups included.

    reward: mean score of the graded answers, invalid ones included. reward_NAME: mean of one reward over the answers
        that it applies to. reward_std: standard deviation (N - 1) of the scores of a group, mean over groups.
    invalid: share of graded answers that do not qualify. errors: answers that could not be graded.
    dead: share of the groups whose scores are all equal. silent, dropped, refilled: groups of this fate (`dropped` are
        not replaced). waves: how often groups were refilled.
    length, length_max: tokens of an answer. cut: share of answers that ended at max_tokens.
    seconds_sample, seconds_grade: drawing; waiting for graders when nothing was left to draw.
    sampled_tokens, sampled_per_second: tokens of all answers, and by seconds_sample.

    What has no denominator is left out.
    """
    answers = answers_of(groups)
    lengths = [length_of(s) for s in answers]
    fates = Counter(group.fate for group in groups)
    numbers: dict[str, float] = {
        **scores_of(answers),
        "errors": sum(bool(error_of(s)) for s in answers),
        "silent": fates["silent"],
        "dropped": fates["drop"],
        "refilled": fates["refilled"],
        "waves": waves,
    }
    deviations = [statistics.stdev(map(score_of, group.graded)) for group in groups if group.equal is not None]
    if deviations:
        numbers["reward_std"] = statistics.fmean(deviations)
        numbers["dead"] = sum(bool(group.equal) for group in groups) / len(deviations)
    if answers:
        numbers["length"] = statistics.fmean(lengths)
        numbers["length_max"] = max(lengths)
        numbers["cut"] = share_cut(answers)
    numbers["seconds_sample"], numbers["seconds_grade"] = seconds.sample, seconds.grade
    numbers["sampled_tokens"] = sum(lengths)
    if seconds.sample:
        numbers["sampled_per_second"] = sum(lengths) / seconds.sample
    return numbers


def scores_of(answers: Sequence[Sample]) -> dict[str, float]:
    """`reward`, `reward_NAME` and `invalid` of the graded among these answers; empty if there is none."""
    graded = [s.outcome for s in answers if s.outcome is not None and not s.outcome.error]
    if not graded:
        return {}
    numbers = {"reward": statistics.fmean(outcome.score for outcome in graded)}
    for name in sorted({name for outcome in graded for name in outcome.parts}):
        scores = [outcome.parts[name].alone for outcome in graded if name in outcome.parts]
        numbers[f"reward_{name}"] = statistics.fmean(scores)
    numbers["invalid"] = sum(bool(outcome.invalid) for outcome in graded) / len(graded)
    return numbers


def share_cut(answers: Sequence[Sample]) -> float:
    """The share of answers that ended at max_tokens; 0 of none."""
    return sum(s.stop == "length" for s in answers) / len(answers) if answers else 0.0


def causes(answers: Sequence[Sample]) -> str:
    """The causes of errors with their counts, the most frequent first: "math: stopped after 10 s (2), exact: ... (1)".

    Empty without errors; at most three are listed.
    """
    counts = Counter(error for s in answers if (error := error_of(s)))
    listed = [f"{cause} ({count})" for cause, count in counts.most_common(3)]
    return ", ".join([*listed, "..."] if len(counts) > 3 else listed)


def groups_of(rolled: Sequence[Rolled], fate: Fate) -> Iterator[Group]:
    """The graded answers of the groups of one fate, in order."""
    return (group.graded for group in rolled if group.fate == fate)
