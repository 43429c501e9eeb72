"""Watches preference training: what moves the wrong way, what stands still, what is too good.

Everything is judged by means over a window of steps, from the numbers that a run writes to metrics.jsonl, so that a
resumed run and a report come to the same findings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from espalier.losses.variants import VARIANTS
from espalier.watch.finding import Finding
from espalier.watch.history import History, as_sides, finite_numbers
from espalier.watch.learning import certain, exploding, kl_zero, stuck
from espalier.watch.likelihoods import chosen_falls, rejected_rises

WINDOW = 20
AGAIN = 2.0  # a finding is reported again when it is so many times as large

PAIR_TERMS = (*VARIANTS, "simpo", "cpo", "odds_ratio", "bradley_terry")
"""Names under which losses of pairs and orders are logged, without their weight in the loss and without other terms."""


class PreferenceWatch:
    """Takes (step, numbers) and returns lines to be shown, each finding once and again when it is twice as large.

    Of the numbers it reads `loss`, `accuracy`, `margin`, `rewards_chosen`, `rewards_rejected`, `logprobs_chosen`,
    `logprobs_rejected`, with `length_chosen` and `length_rejected` (then log-probabilities are per token), `nll`,
    `PAIR_TERMS`, `epoch`, `kl`, and `eval_accuracy`; what is missing is not judged. Of single answers it reads `good`,
    the share of good ones, and rewards and log-probabilities of `good` and `bad`, which are sums over a side divided by
    all answers: divided by the share they are means, and stand for those of `chosen` and `rejected`.

    window: steps whose mean is taken; a shift is the last window against the first, and counts if it exceeds 3
    standard errors of both means. warmup: steps in which the learning rate grows and nothing need move. Raises
    ValueError for a window below 2.

    chosen_falls, both_fall, rejected_rises: log-probability shifted by more than 5 % of the first, or the reward by 0.5
    memorised, separable:  accuracy >= 0.999 with a mean loss <= 0.02 over a window, of each of `PAIR_TERMS` if one
                           is logged; separable if held-out accuracy is 0.95 or more, or, with nothing held out, if the
                           window is in the first epoch
    stuck:                 a window after warmup, |margin| <= 0.001 and the loss within 0.001 (relative, from 1 on) of
                           the first step's, if that began at margin 0 (DPO: ln 2)
    exploding:             |margin| > 20
    kl_zero:               kl 0 in every step of a window after warmup, while rewards have moved by 0.05
    """

    def __init__(self, *, window: int = WINDOW, warmup: int = 0):
        if window < 2:
            raise ValueError(f"window: got {window}, expected 2 steps or more")
        self.warmup = warmup
        self.history = History(window)
        self.findings: list[Finding] = []
        self._reported: dict[str, float] = {}

    @classmethod
    def replay(cls, lines: Iterable[Mapping[str, Any]], **settings: Any) -> PreferenceWatch:
        """The watch as it stood after these lines of metrics.jsonl: what it reported then it does not report again."""
        watch = cls(**settings)
        for line in lines:
            watch.see(int(line["step"]), line)
        return watch

    def see(self, step: int, numbers: Mapping[str, Any]) -> list[str]:
        """Take the numbers of a step or of an evaluation after it; return the lines to be shown."""
        known = finite_numbers(numbers)
        if "eval_accuracy" in known:
            self.history.held_out = (step, known["eval_accuracy"])
        # Lines without a loss are evaluations.
        if "loss" not in known:
            return []
        self.history.add(step, known | as_sides(known))
        if not self.history.full:
            return []
        lines = []
        for finding in self._judge():
            if finding.size >= AGAIN * self._reported.get(finding.kind, 0.0):
                self._reported[finding.kind] = finding.size
                self.findings.append(finding)
                lines.append(finding.text)
        return lines

    def _judge(self) -> list[Finding]:
        """Everything that can be found at the last step."""
        findings = (
            chosen_falls(self.history),
            rejected_rises(self.history),
            certain(self.history, PAIR_TERMS),
            stuck(self.history, self.warmup),
            exploding(self.history),
            kl_zero(self.history, self.warmup),
        )
        return [finding for finding in findings if finding is not None]


def explain(history: Iterable[Mapping[str, Any]], **settings: Any) -> list[dict[str, Any]]:
    """The findings of a whole run, from the lines of metrics.jsonl: kind, step, size, numbers, text. `settings` are
    those of `PreferenceWatch`."""
    return [asdict(finding) for finding in PreferenceWatch.replay(history, **settings).findings]
