"""Answers whose likelihood moves the wrong way: chosen ones fall, rejected ones rise."""

from __future__ import annotations

from espalier.watch.finding import Finding, finding
from espalier.watch.history import History, Shift

FALL, REWARD = 0.05, 0.5  # a shift by 5 % of the first log-probability, or by half a unit of reward
NEARER = "A larger beta or a lower lr keeps the policy nearer to its start."


def chosen_falls(history: History) -> Finding | None:
    """Chosen answers become less likely, alone (`chosen_falls`) or with the rejected ones (`both_fall`)."""
    size, chosen = moved(history, "chosen", -1), history.logprobs("chosen")
    if not size or chosen is None:
        return None
    both = bool(moved(history, "rejected", -1))
    rejected, margin = history.logprobs("rejected"), history.margin()
    good, bad = _names(history)
    seen = f"{good} answers have become less likely: {_words(history, 'chosen')}"
    if rejected is not None:
        seen += f"; {bad} answers {'too' if both else 'have not'}: {_words(history, 'rejected')}"
    if margin is not None:
        seen += f"; margin {margin.first:.3g} to {margin.now:.3g}"
    return finding(
        history,
        "both_fall" if both else "chosen_falls",
        _numbers(chosen=chosen, rejected=rejected, margin=margin),
        size=size,
        seen=f"{seen} ({history.both_windows()}).",
        meaning=_meaning_of_a_fall(history, both),
        advice=_advice_on_a_fall(history),
    )


def _meaning_of_a_fall(history: History, both: bool) -> str:
    if not margin_grows(history):
        return "This is a problem: the margin does not grow, so nothing is gained in return."
    if history.single_answers:
        return (
            "In this loss every answer has a term of its own, so good answers should become more likely. They become "
            "less likely if bad answers weigh more (imbalance below 0) or share most of their tokens with good ones. "
            "It is a problem if sampled answers get worse."
        )
    if both:
        return (
            "Expected for DPO and its relatives: only the difference of the two is in the loss, so both may become "
            "less likely while the margin grows, most of all if chosen and rejected answers share most of their "
            "tokens. It is a problem if held-out accuracy falls, or if sampled answers get worse or longer."
        )
    return (
        "Expected if the chosen answers are not ones that the policy would give. It is a problem if held-out accuracy "
        "falls or sampled answers get worse."
    )


def _advice_on_a_fall(history: History) -> str:
    first = "" if margin_grows(history) else f"Lower lr, and look for {_mixed_up(history)}. "
    if history.single_answers:
        return f"{first}To hold good answers up, give them more weight (kto: desirable_weight). {NEARER}"
    return f"{first}To hold chosen answers up, set sft_coef (RPO) or use the loss apo_zero, which raises them. {NEARER}"


def rejected_rises(history: History) -> Finding | None:
    """Rejected answers become more likely."""
    size, rejected = moved(history, "rejected", +1), history.logprobs("rejected")
    if not size or rejected is None:
        return None
    _, bad = _names(history)
    if margin_grows(history):
        meaning = (
            "The margin grows all the same, so chosen answers rise faster. Expected if both share most of their "
            "tokens, and with a likelihood term."
        )
        advice = "Nothing, unless held-out accuracy falls or sampled answers get worse; then lower lr."
    else:
        meaning = "This is a problem: the margin does not grow."
        advice = (
            f"Look for {_mixed_up(history)}, and for a likelihood term that is much larger than the preference term."
        )
    return finding(
        history,
        "rejected_rises",
        _numbers(rejected=rejected),
        size=size,
        seen=f"{bad} answers have become more likely: {_words(history, 'rejected')} ({history.both_windows()}).",
        meaning=meaning,
        advice=advice,
    )


def moved(history: History, side: str, direction: int) -> float:
    """How many times the limit a side moved in the direction (-1 down, 1 up); 0 below the limit."""
    size = 0.0
    logprobs, rewards = history.logprobs(side), history.rewards(side)
    if logprobs is None:
        return size
    # The reward counts too: it is relative to the reference, so it is not noisy with the length of the answers.
    for shift, limit in ((logprobs, FALL * abs(logprobs.first)), (rewards, REWARD)):
        if shift is not None and shift.sure and shift.by * direction > limit > 0:
            size = max(size, abs(shift.by) / limit)
    return size


def margin_grows(history: History) -> bool:
    margin = history.margin()
    return margin is not None and margin.sure and margin.by > 0


def _names(history: History) -> tuple[str, str]:
    return ("good", "bad") if history.single_answers else ("chosen", "rejected")


def _mixed_up(history: History) -> str:
    """The fault of data that makes a margin shrink."""
    return "answers with the wrong label" if history.single_answers else "pairs whose two answers are mixed up"


def _numbers(**shifts: Shift | None) -> dict[str, float]:
    """The first and the last mean of each quantity."""
    numbers: dict[str, float] = {}
    for name, shift in shifts.items():
        if shift is not None:
            numbers |= {f"{name}_first": shift.first, f"{name}_now": shift.now}
    return numbers


def _words(history: History, side: str) -> str:
    """Log-probability and reward of a side, then and now: either can be the one that moved, see `moved`."""
    parts = []
    logprobs, rewards = history.logprobs(side), history.rewards(side)
    if logprobs is not None:
        unit = "token" if f"length_{side}" in history.last[-1] else "answer"
        parts.append(f"log-probability {logprobs.first:.4g} to {logprobs.now:.4g} nats per {unit}")
    if rewards is not None:
        parts.append(f"reward {rewards.first:.4g} to {rewards.now:.4g}")
    return ", ".join(parts)
