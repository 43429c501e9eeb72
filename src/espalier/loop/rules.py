"""When a run stops because its rollouts can teach it nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from espalier.errors import CheckError, EspalierError
from espalier.loop.rolled import Rolled, all_equal, answers_of, causes, error_of, score_of, share_cut

CHECKS = ("length", "stop")
"""Names by which `skip_checks` turns a rule off."""
MOST_CUT = 0.5
"""Share of the first rollout that may end at max_tokens."""
STOPLESS = 3
"""Rollouts without a stop token after which the run ends."""
EQUAL = 20
"""Rollouts in a row in which every group's scores are equal after which the run ends."""
LIFELESS = 3
"""Steps in a row in which even the refilled groups are all dropped after which the run ends."""
WINDOW = 200
"""Answers among which errors are counted."""


class Rules:
    """Looks at each step's groups.

    refills: dropped groups are replaced. across: answers to different prompts are compared with each other. skip: names
    of `CHECKS` that are noted only. max_error_share: of the last 200 answers; None leaves errors uncounted.

    All that a verdict depends on is the step's groups and `counts`, which a checkpoint holds, so a resumed run stops
    where the run that was not interrupted would have.
    """

    def __init__(
        self,
        *,
        refills: bool,
        across: bool = False,
        skip: Collection[str] = (),
        max_error_share: float | None = None,
    ):
        self.refills, self.across, self.skip, self.max_error_share = refills, across, skip, max_error_share
        self.rollouts = 0
        self.stopless = 0
        self.equal = 0
        self.lifeless = 0
        # One bit for each of the last answers, the newest lowest, behind a leading 1.
        self.window = 1

    def counts(self) -> dict[str, int]:
        """What a checkpoint must hold."""
        return {
            "rollouts": self.rollouts,
            "rollouts_stopless": self.stopless,
            "rollouts_equal": self.equal,
            "rollouts_lifeless": self.lifeless,
            "rollouts_errors": self.window,
        }

    def restore(self, counts: Mapping[str, int]) -> None:
        """Take what `counts` returned; what is missing counts from the start."""
        self.rollouts = counts.get("rollouts", 0)
        self.stopless = counts.get("rollouts_stopless", 0)
        self.equal = counts.get("rollouts_equal", 0)
        self.lifeless = counts.get("rollouts_lifeless", 0)
        self.window = counts.get("rollouts_errors", 1)

    def judge(self, groups: Sequence[Rolled], best: float | None) -> list[str]:
        """Count a step's groups, all of them, in the order of their requests; returns lines for the user. `best` is
        the highest score that the rewards declare, None if one declares none.

        Raises CheckError if too many of the first answers were cut, or none of the first rollouts had a stop token;
        EspalierError if too many answers could not be graded, or nothing could be learned for too long.
        """
        self.rollouts += 1
        notes = self._stops(groups)
        self._errors(groups)
        self._scores(groups, best)
        return notes

    def _stops(self, groups: Sequence[Rolled]) -> list[str]:
        answers = answers_of(groups)
        notes = []
        cut = share_cut(answers)
        if self.rollouts == 1 and cut > MOST_CUT:
            notes += self._refuse(
                "length",
                f"{cut:.0%} of the first answers were cut at max_tokens before they ended, so most of them would be "
                "judged, and trained, without their end. Raise --max-tokens, or give prompts that ask for less",
            )
        self.stopless = self.stopless + 1 if not any(s.stop == "stop" for s in answers) else 0
        if self.rollouts == STOPLESS == self.stopless:
            notes += self._refuse(
                "stop",
                f"none of the answers of the first {STOPLESS} rollouts had a stop token. Raise --max-tokens if they "
                "are longer than that; else look at the answers in samples.jsonl, and at the stop ids that the start "
                "printed: a base model that never ends its turns needs `espalier sft` first",
            )
        return notes

    def _refuse(self, check: str, problem: str) -> list[str]:
        if check in self.skip:
            return [problem]
        raise CheckError(f"{problem}, or go on with --skip-checks {check}")

    def _errors(self, groups: Sequence[Rolled]) -> None:
        if self.max_error_share is None:
            return
        for s in answers_of(groups):
            self.window = self.window << 1 | bool(error_of(s))
            if self.window.bit_length() > WINDOW + 1:
                self.window = self.window & ((1 << WINDOW) - 1) | 1 << WINDOW
            count = self.window.bit_length() - 1
            errors = self.window.bit_count() - 1
            # Before the window is full its share is of the whole window, or the first error would end the run.
            if error_of(s) and errors > self.max_error_share * WINDOW:
                raise EspalierError(
                    f"{errors} of the last {count} answers could not be graded; the causes in this step: "
                    f"{causes(answers_of(groups))}. More than max_error_share ({self.max_error_share:g} of {WINDOW}) "
                    "is a fault of the grader, not of the answers: repair it, raise --reward-timeout if it is slow, "
                    "then continue with --resume"
                )

    def _scores(self, groups: Sequence[Rolled], best: float | None) -> None:
        compared = [group for group in groups if group.equal is not None]
        if self.refills:
            self.lifeless = 0 if any(group.fate == "keep" for group in groups) else self.lifeless + 1
            if self.lifeless >= LIFELESS:
                raise EspalierError(
                    f"{LIFELESS} steps in a row, with all their refills, had no group to learn from"
                    f"{_levels(compared)}. Give tasks that the model solves sometimes (`espalier rollout` shows the "
                    "share of dead groups), a larger --group-size, or a reward that distinguishes more"
                )
        whole = all_equal([s for group in groups for s in group.graded])
        if whole is None or not (self.across or compared):
            return
        equal = whole if self.across else all(group.equal for group in compared)
        compared = list(groups) if self.across else compared
        at_best = all(score_of(s) == best for group in compared for s in group.graded)
        self.equal = self.equal + 1 if equal and not at_best else 0
        if self.equal >= EQUAL:
            raise EspalierError(
                f"{EQUAL} rollouts in a row had equal scores{'' if self.across else ' within every group'}, so nothing "
                "was learned from them"
                f"{_levels(compared)}. Look at samples.jsonl: tasks may be too hard or too easy, the reward may not "
                "read the answers' form, or --temperature may be so low that all answers to a prompt are the same"
            )


def _levels(groups: Sequence[Rolled]) -> str:
    """The scores of the last groups in brackets, if they are few."""
    scores = sorted({score_of(s) for group in groups for s in group.graded})
    if not scores:
        return ""
    if len(scores) <= 3:
        return f" (the last one's scores: {', '.join(f'{score:g}' for score in scores)})"
    return f" (the last one's scores lie from {scores[0]:g} to {scores[-1]:g})"
