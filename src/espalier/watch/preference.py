"""Watches preference training: what moves the wrong way, what stands still, what is too good.

Everything is judged by means over a window of steps, from the numbers that a run writes to metrics.jsonl, so that a
resumed run and a report come to the same findings.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

WINDOW = 20
AGAIN = 2.0
FALL, REWARD = 0.05, 0.5  # a shift by 5 % of the first log-probability, or by half a unit of reward
CERTAIN = 3.0  # standard errors
ALL, SMALL = 0.999, 0.02  # accuracy and loss of pairs that are all told apart
HELD_OUT = 0.95  # held-out accuracy at which pairs are easy rather than known by heart
STILL = 1e-3
SATURATED = 20.0  # sigma of it is 1 - 2e-9: such a pair has no gradient left
MOVED = 0.05  # a mean reward at which a policy has left its reference

PAIR_TERMS = (
    *("sigmoid", "sigmoid_norm", "robust", "ipo", "hinge", "apo_zero", "apo_down", "plackett_luce"),  # DPO
    *("simpo", "cpo", "odds_ratio", "bradley_terry"),
)
"""Losses of pairs and orders, as they are logged: without their weight in the loss, and without what stands beside."""

Numbers = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something worth saying. `size` is how many times the limit it is; it is said again when that has doubled."""

    kind: str
    step: int
    size: float
    numbers: dict[str, float]
    text: str


@dataclass(frozen=True, slots=True)
class _Shift:
    """A quantity in the first window and in the last; `sure` where they differ by more than noise."""

    first: float
    now: float
    error: float

    @property
    def by(self) -> float:
        return self.now - self.first

    @property
    def sure(self) -> bool:
        return abs(self.by) > CERTAIN * self.error


class PreferenceWatch:
    """Is fed (step, numbers) and returns lines to be shown, each finding once and again when it is twice as large.

    Of the numbers it reads `loss`, `accuracy`, `margin`, `rewards_chosen`, `rewards_rejected`, `logprobs_chosen`,
    `logprobs_rejected`, with `length_chosen` and `length_rejected` (then log-probabilities count a token), `nll`,
    `PAIR_TERMS`, `epoch`, `kl`, and `eval_accuracy`; what is missing is not judged. Of single answers it reads `good`,
    the share of good ones, and rewards and log-probabilities of `good` and `bad`, which are sums over a side divided by
    all answers: divided by the share they are means, and stand for those of `chosen` and `rejected`.

    window: steps whose mean is taken; a shift is the last window against the first, and counts where it exceeds 3
    standard errors of both means. warmup: steps in which the learning rate grows and nothing need move.

    chosen_falls, both_fall, rejected_rises: log-probability shifted by more than 5 % of the first, or the reward by 0.5
    memorised, separable:  accuracy >= 0.999 with a mean loss <= 0.02 over a window, of each of `PAIR_TERMS` where one
                           is logged; separable where held-out accuracy
                           is 0.95 or more, or, with nothing held out, where the window is in the first epoch
    stuck:                 a window after warmup, |margin| <= 0.001 and the loss within 0.001 (relative, from 1 on) of
                           the first step's, where that began at margin 0 (DPO: ln 2)
    exploding:             |margin| > 20
    kl_zero:               kl 0 in every step of a window after warmup, while rewards have moved by 0.05
    """

    def __init__(self, *, window: int = WINDOW, warmup: int = 0):
        if window < 2:
            raise ValueError(f"window: got {window}, expected 2 steps or more")
        self.window, self.warmup = window, warmup
        self.findings: list[Finding] = []
        self._first: list[dict[str, float]] = []
        self._last: deque[dict[str, float]] = deque(maxlen=window)
        self._steps: deque[int] = deque(maxlen=window)
        self._began = self._seen = 0
        self._held_out: tuple[int, float] | None = None
        self._said: dict[str, float] = {}

    @classmethod
    def replay(cls, lines: Iterable[Mapping[str, Any]], **settings: Any) -> PreferenceWatch:
        """The watch as it stood after these lines of metrics.jsonl: what it said then it does not say again."""
        watch = cls(**settings)
        for line in lines:
            watch.see(int(line["step"]), line)
        return watch

    def see(self, step: int, numbers: Mapping[str, Any]) -> list[str]:
        """Take the numbers of a step or of an evaluation after it; return what is to be shown."""
        known = {name: value for name, raw in numbers.items() if (value := _float(raw)) is not None}
        if "eval_accuracy" in known:
            self._held_out = (step, known["eval_accuracy"])
        if "loss" not in known:
            return []
        known |= _sides(known)
        self._began = self._began or step
        self._seen += 1
        if len(self._first) < self.window:
            self._first.append(known)
        self._last.append(known)
        self._steps.append(step)
        if len(self._last) < self.window:
            return []
        return [finding.text for finding in self._new()]

    def _new(self) -> Iterator[Finding]:
        """Findings that were not made yet, or were half as large."""
        judges: tuple[Callable[[], Finding | None], ...] = (
            self._drift, self._rise, self._memorised, self._stuck, self._exploding, self._kl,
        )  # fmt: skip
        for judge in judges:
            found = judge()
            if found is not None and found.size >= AGAIN * self._said.get(found.kind, 0.0):
                self._said[found.kind] = found.size
                self.findings.append(found)
                yield found

    # ------------------------------------------------------------------------------------------------- what is judged

    def _drift(self) -> Finding | None:
        """Chosen answers become less likely, alone or with the rejected ones."""
        chosen, rejected = self._size("chosen", -1), self._size("rejected", -1)
        shift = self._logprobs("chosen")
        if not chosen or shift is None:
            return None
        margin = self._shift(lambda n: n.get("margin"))
        grew = margin is not None and margin.sure and margin.by > 0
        labelled = "good" in self._last[-1]
        good, bad = ("good", "bad") if labelled else ("chosen", "rejected")
        lines = [f"{good} answers have become less likely ({self._words('chosen')})"]
        other = self._logprobs("rejected")
        if other is not None:
            lines.append(f"{bad} ones {'too' if rejected else 'have not'} ({self._words('rejected')})")
        if margin is not None:
            lines.append(f"the margin went from {margin.first:.3g} to {margin.now:.3g}")
        if labelled and grew:
            verdict = (
                "Every answer has a loss of its own here, so good ones should rise. They fall where bad ones weigh "
                "more (imbalance below 0) or share most of their tokens; a concern when sampled answers get worse."
            )
        elif not grew:
            verdict = (
                "This is a concern: the margin does not grow, so nothing is gained for it. Lower lr, and look for "
                "pairs whose sides are mixed up."
            )
        elif rejected:
            verdict = (
                "Expected for DPO and its relatives: only the difference of the two is in the loss, so both may fall "
                "while the margin grows, most of all where chosen and rejected share most of their tokens. A concern "
                "when held-out accuracy falls, or when sampled answers get worse or longer."
            )
        else:
            verdict = (
                "Expected where the pairs' answers are not ones that the policy would give; a concern when held-out "
                "accuracy falls or sampled answers get worse."
            )
        nearer = "a larger beta or a lower lr keeps the policy nearer to where it began"
        against = (
            f"more weight on good answers (kto: desirable_weight) holds them up, {nearer}."
            if labelled
            else f"sft_coef (RPO) holds chosen answers up, {nearer}, apo_zero raises chosen."
        )
        text = f"{', '.join(lines)} ({self._span()}). {verdict}{self._held()} Against it: {against}"
        numbers = {"chosen_first": shift.first, "chosen_now": shift.now}
        numbers |= {"rejected_first": other.first, "rejected_now": other.now} if other is not None else {}
        numbers |= {"margin_first": margin.first, "margin_now": margin.now} if margin is not None else {}
        return self._finding("both_fall" if rejected else "chosen_falls", chosen, numbers, text)

    def _rise(self) -> Finding | None:
        """Rejected answers become more likely."""
        size, shift = self._size("rejected", +1), self._logprobs("rejected")
        if not size or shift is None:
            return None
        margin = self._shift(lambda n: n.get("margin"))
        grew = margin is not None and margin.sure and margin.by > 0
        verdict = (
            "The margin grows all the same, so chosen answers rise faster: expected where both share most of their "
            "tokens, and with a likelihood term."
            if grew
            else "This is a concern: the margin does not grow. Are chosen and rejected mixed up, or is the likelihood "
            "term much larger than the preference term?"
        )
        other = "bad" if "good" in self._last[-1] else "rejected"
        text = f"{other} answers have become more likely ({self._words('rejected')}; {self._span()}). {verdict}"
        numbers = {"rejected_first": shift.first, "rejected_now": shift.now}
        return self._finding("rejected_rises", size, numbers, text + self._held())

    def _memorised(self) -> Finding | None:
        """Every training pair is told apart with certainty. Whether that is memory is judged by held-out pairs, and
        without any by the epoch: in the first one a step's pairs were never trained on, so they are as good."""
        accuracy = self._mean("accuracy")
        terms = {name: x for name in PAIR_TERMS if (x := self._mean(name)) is not None}
        if not terms and self._mean("nll") is None and (whole := self._mean("loss")) is not None:
            terms = {"loss": whole}  # a likelihood in it would never get to 0
        if accuracy is None or accuracy < ALL or not terms:
            return None
        name, loss = max(terms.items(), key=lambda item: item[1])
        if loss > SMALL:
            return None
        how = f"mean {name} {loss:.4f} <= {SMALL}"
        began, epoch = (self._last[k].get("epoch", math.inf) for k in (0, -1))  # unknown is late
        seen = f"accuracy {accuracy:.4g} and {how} over {self._span(last=True)}"
        numbers = {"accuracy": accuracy, "loss": loss} | ({"epoch": epoch} if math.isfinite(epoch) else {})
        if self._held_out is not None:
            numbers |= {"eval_accuracy": self._held_out[1], "eval_step": float(self._held_out[0])}
        elif began <= 1 < epoch:  # a window of new pairs and old ones says neither
            return None
        well = self._held_out is not None and self._held_out[1] >= HELD_OUT
        if well or (self._held_out is None and epoch <= 1):
            why = "held-out accuracy is as high" if well else "this is the first epoch, so these pairs were new"
            text = (
                f"the training pairs are told apart entirely, and not from memory: {seen}; {why}.{self._held()} "
                "Little is left to learn from such pairs; if they should be hard, look for what gives them away "
                "(length, markup)."
            )
            return self._finding("separable", 1.0, numbers, text)
        unknown = "" if self._held_out is not None else " Nothing is held out to compare with: give eval_fraction."
        since = f"; epoch {epoch:.2f}" if math.isfinite(epoch) else ""
        since += ", so these pairs were trained on before" if 1 < epoch < math.inf else ""
        text = (
            f"the training pairs are memorised: {seen}{since}.{self._held()}{unknown} Train fewer epochs, lower lr, "
            "or use label_smoothing; further steps mostly move the policy away."
        )
        return self._finding("memorised", 1.0, numbers, text)

    def _stuck(self) -> Finding | None:
        """Nothing has moved since the start."""
        loss, margin, start = self._mean("loss"), self._mean("margin"), self._first[0]
        if loss is None or margin is None or self._seen < self.warmup + 2 * self.window:
            return None
        near = abs(loss - start["loss"]) <= STILL * max(1.0, abs(start["loss"]))
        at_start = near or self._mean("nll") is not None
        if not at_start or max(abs(margin), abs(start.get("margin", math.inf))) > STILL:
            return None
        text = (
            f"nothing is learned: mean loss {loss:.4f}, where it began, and margin {margin:.1e} over "
            f"{self._span(last=True)}, and {self.warmup} of the {self._seen} steps were warm-up. Raise lr; see that "
            "the policy's weights are trained, that the reference does not move with it, and that chosen and rejected "
            "differ."
        )
        return self._finding("stuck", 1.0, {"loss": loss, "margin": margin}, text)

    def _exploding(self) -> Finding | None:
        """Margins at which nothing more is learned and the policy only moves away."""
        margin = self._mean("margin")
        if margin is None or abs(margin) <= SATURATED:
            return None
        way = "" if margin > 0 else ", in favour of the rejected answers"
        text = (
            f"the mean margin is {margin:.3g}{way} over {self._span(last=True)}; beyond {SATURATED:g} a sigmoid loss "
            "has no gradient and the policy is far from where it began. Lower lr, train fewer steps, or raise beta if "
            "the policy should stay nearer; for a reward model give centering."
        )
        return self._finding("exploding", abs(margin) / SATURATED, {"margin": margin}, text)

    def _kl(self) -> Finding | None:
        """KTO's reference point stays where max(0, .) puts it."""
        rewards = [abs(m) for side in ("good", "bad", "chosen", "rejected") if (m := self._mean(f"rewards_{side}"))]
        if self._seen < self.warmup + self.window or not rewards or max(rewards) < MOVED:
            return None
        if any(n.get("kl") != 0.0 for n in self._last):
            return None
        text = (
            f"KTO's kl is 0 in every step of {self._span(last=True)}, while mean rewards reach {max(rewards):.3g}: "
            "answers to other prompts have become less likely than under the reference, and the estimate is cut off "
            "at 0. Then good and bad answers are held against 0. Raise samples_per_step so that prompts are many, or "
            "lower lr; compare rewards_good with rewards_bad."
        )
        return self._finding("kl_zero", 1.0, {"kl": 0.0, "reward": max(rewards)}, text)

    # ----------------------------------------------------------------------------------------------------- arithmetic

    def _logprobs(self, side: str) -> _Shift | None:
        """Log-probabilities of a side: nats a token where lengths are known, else nats an answer."""
        return self._shift(lambda n: _per_token(n, side))

    def _reward(self, side: str) -> _Shift | None:
        return self._shift(lambda n: n.get(f"rewards_{side}"))

    def _size(self, side: str, way: int) -> float:
        """How many times the limit a side moved in the direction `way`; 0 below it. The reward counts too: it is held
        against the reference, so it is not noisy with the length of the answers."""
        found = 0.0
        shift = self._logprobs(side)
        if shift is None:
            return 0.0
        for some, limit in ((shift, FALL * abs(shift.first)), (self._reward(side), REWARD)):
            if some is not None and some.sure and some.by * way > limit > 0:
                found = max(found, abs(some.by) / limit)
        return found

    def _shift(self, value: Callable[[Numbers], float | None]) -> _Shift | None:
        """The last window against the first; None while they overlap, or where a step lacks the quantity."""
        if self._seen < 2 * self.window:
            return None
        first, now = ([value(n) for n in some] for some in (self._first, self._last))
        known = [[x for x in some if x is not None] for some in (first, now)]
        if any(len(some) < self.window for some in known):
            return None
        (a, va), (b, vb) = (_moments(some) for some in known)
        return _Shift(a, b, math.sqrt((va + vb) / self.window))

    def _mean(self, name: str) -> float | None:
        values = [n[name] for n in self._last if name in n]
        return sum(values) / len(values) if len(values) == self.window else None

    # ---------------------------------------------------------------------------------------------------------- words

    def _finding(self, kind: str, size: float, numbers: dict[str, float], text: str) -> Finding:
        return Finding(kind, self._steps[-1], size, numbers, text)

    def _words(self, side: str) -> str:
        """Log-probability and reward of a side, then and now: the reward can be what tells, see `_size`."""
        unit = "nats a token" if f"length_{side}" in self._last[-1] else "nats an answer"
        shifts = ((self._logprobs(side), f" {unit}"), (self._reward(side), " of reward"))
        said = (f"{x.first:.4g} to {x.now:.4g}{what}" for x, what in shifts if x is not None)
        return f"log-probability {', '.join(said)}"

    def _span(self, last: bool = False) -> str:
        now = f"steps {self._steps[0]} to {self._steps[-1]}"
        return now if last else f"means of the first {self.window} steps from step {self._began} on, and of {now}"

    def _held(self) -> str:
        return f" Held-out accuracy: {self._held_out[1]:.1%} at step {self._held_out[0]}." if self._held_out else ""


def explain(history: Iterable[Mapping[str, Any]], **settings: Any) -> list[dict[str, Any]]:
    """The findings of a whole run, from the lines of metrics.jsonl: kind, step, size, numbers, text. `settings` are
    those of `PreferenceWatch`."""
    return [asdict(finding) for finding in PreferenceWatch.replay(history, **settings).findings]


def _sides(numbers: Numbers) -> dict[str, float]:
    """Of single answers, what the sides of pairs are called: means over the good ones as chosen, over the bad ones as
    rejected, and the margin of their rewards, to which BCO's moving `delta` is added back. A side without an answer
    has none.

    >>> _sides({"good": 0.25, "rewards_good": 0.5, "rewards_bad": -0.75})
    {'rewards_chosen': 2.0, 'rewards_rejected': -1.0, 'margin': 3.0}
    """
    found: dict[str, float] = {}
    if "good" in numbers:
        for side, name, share in (("chosen", "good", numbers["good"]), ("rejected", "bad", 1 - numbers["good"])):
            for what, shift in (("rewards", numbers.get("delta", 0.0)), ("logprobs", 0.0)):
                if share > 0 and (x := numbers.get(f"{what}_{name}")) is not None:
                    found[f"{what}_{side}"] = x / share + shift
        if "rewards_chosen" in found and "rewards_rejected" in found:
            found["margin"] = found["rewards_chosen"] - found["rewards_rejected"]
    return found


def _per_token(numbers: Numbers, side: str) -> float | None:
    said, length = numbers.get(f"logprobs_{side}"), numbers.get(f"length_{side}", 1.0)
    return said / length if said is not None and length > 0 else None


def _moments(values: list[float]) -> tuple[float, float]:
    """Mean and variance (of n - 1)."""
    mean = sum(values) / len(values)
    return mean, sum((x - mean) ** 2 for x in values) / (len(values) - 1)


def _float(value: Any) -> float | None:
    """A finite number; metrics.jsonl writes others as text, and they say nothing about means."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
