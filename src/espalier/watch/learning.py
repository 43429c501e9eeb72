"""Training that has nothing left to learn, or learns nothing: memorised pairs, no movement, margins beyond use."""

from __future__ import annotations

import math
from collections.abc import Sequence

from espalier.watch.finding import Finding, finding
from espalier.watch.history import History

ALL, SMALL = 0.999, 0.02  # accuracy and loss of pairs that are all ordered with certainty
HELD_OUT = 0.95  # held-out accuracy from which on pairs are easy rather than known by heart
STILL = 1e-3  # a loss or margin that has not moved
SATURATED = 20.0  # sigma of it is 1 - 2e-9: such a pair has no gradient left
MOVED = 0.05  # a mean reward at which a policy has left its reference


def certain(history: History, terms: Sequence[str]) -> Finding | None:
    """Every training pair is ordered with certainty: `memorised`, or `separable` if it is not from memory.

    Held-out pairs decide which; without any the epoch does: in the first one a step's pairs were never trained on, so
    they are as good. terms: the logged losses of pairs, of which every one must be small.
    """
    accuracy, largest = history.mean("accuracy"), _largest_loss(history, terms)
    if accuracy is None or largest is None or accuracy < ALL or largest[1] > SMALL:
        return None
    name, loss = largest
    # An unknown epoch counts as a late one.
    first_epoch, epoch = (history.last[place].get("epoch", math.inf) for place in (0, -1))
    numbers = {"accuracy": accuracy, "loss": loss}
    if math.isfinite(epoch):
        numbers["epoch"] = epoch
    if history.held_out is not None:
        numbers |= {"eval_accuracy": history.held_out[1], "eval_step": float(history.held_out[0])}
    elif first_epoch <= 1 < epoch:
        # A window of both new pairs and known ones shows neither.
        return None
    seen = f"accuracy {accuracy:.4g} and mean {name} {loss:.4f} <= {SMALL} over {history.last_steps()}"
    if history.held_out is None and epoch <= 1:
        return _separable(history, numbers, seen, "this is the first epoch, so these pairs were new")
    if history.held_out is not None and history.held_out[1] >= HELD_OUT:
        return _separable(history, numbers, seen, "held-out accuracy is as high")
    return _memorised(history, numbers, seen, epoch)


def _largest_loss(history: History, terms: Sequence[str]) -> tuple[str, float] | None:
    """Name and mean of the largest of the logged losses of pairs; the whole loss if none is logged by itself."""
    means: dict[str, float] = {}
    for name in terms:
        mean = history.mean(name)
        if mean is not None:
            means[name] = mean
    whole = history.mean("loss")
    # A loss with a likelihood term (nll) never gets to 0 and says nothing about the pairs.
    if not means and whole is not None and history.mean("nll") is None:
        means["loss"] = whole
    return max(means.items(), key=lambda item: item[1], default=None)


def _separable(history: History, numbers: dict[str, float], seen: str, reason: str) -> Finding:
    return finding(
        history,
        "separable",
        numbers,
        seen=f"every training pair is ordered with certainty, and not from memory: {seen}; {reason}.",
        meaning="Little is left to learn from such pairs.",
        advice="If they should be hard, look for what gives the chosen answers away (length, markup).",
    )


def _memorised(history: History, numbers: dict[str, float], seen: str, epoch: float) -> Finding:
    if math.isfinite(epoch):
        seen += f"; epoch {epoch:.2f}"
        if epoch > 1:
            seen += ", so these pairs were trained on before"
    advice = "Train fewer epochs, lower lr, or use label_smoothing."
    if history.held_out is None:
        advice += " Nothing is held out to compare with: set eval_fraction."
    return finding(
        history,
        "memorised",
        numbers,
        seen=f"the training pairs are memorised: {seen}.",
        meaning="The preference loss has almost no gradient left; further steps mostly move the policy away.",
        advice=advice,
    )


def stuck(history: History, warmup: int) -> Finding | None:
    """Nothing has moved since the start."""
    loss, margin, start = history.mean("loss"), history.mean("margin"), history.first[0]
    if loss is None or margin is None or history.seen < warmup + 2 * history.window:
        return None
    loss_moved = abs(loss - start["loss"]) > STILL * max(1.0, abs(start["loss"]))
    # With a likelihood term (nll) the loss falls although the pairs do not move: there the margin alone decides.
    if loss_moved and history.mean("nll") is None:
        return None
    if max(abs(margin), abs(start.get("margin", math.inf))) > STILL:
        return None
    seen = f"nothing is learned: mean loss {loss:.4f}, as at the start, and margin {margin:.1e} over"
    return finding(
        history,
        "stuck",
        {"loss": loss, "margin": margin},
        seen=f"{seen} {history.last_steps()}; {warmup} of the {history.seen} steps were warm-up.",
        meaning="The policy does not yet distinguish chosen from rejected answers.",
        advice=(
            "Raise lr. Check that the policy's weights are trained, that the reference does not move with "
            "it, and that chosen and rejected answers differ."
        ),
    )


def exploding(history: History) -> Finding | None:
    """Margins at which nothing more is learned and the policy only moves away."""
    margin = history.mean("margin")
    if margin is None or abs(margin) <= SATURATED:
        return None
    favour = "" if margin > 0 else ", in favour of the rejected answers,"
    return finding(
        history,
        "exploding",
        {"margin": margin},
        size=abs(margin) / SATURATED,
        seen=f"the mean margin is {margin:.3g}{favour} over {history.last_steps()}.",
        meaning=f"Beyond {SATURATED:g} a sigmoid loss has no gradient, and the policy is far from its start.",
        advice=(
            "Lower lr or train fewer steps. Raise beta if the policy should stay nearer to its start; "
            "for a reward model set centering."
        ),
    )


def kl_zero(history: History, warmup: int) -> Finding | None:
    """KTO's reference point stays at 0, the lower bound of max(0, .)."""
    rewards = []
    for side in ("good", "bad", "chosen", "rejected"):
        mean = history.mean(f"rewards_{side}")
        if mean is not None:
            rewards.append(abs(mean))
    largest = max(rewards, default=0.0)
    if history.seen < warmup + history.window or largest < MOVED:
        return None
    if any(numbers.get("kl") != 0.0 for numbers in history.last):
        return None
    return finding(
        history,
        "kl_zero",
        {"kl": 0.0, "reward": largest},
        seen=f"KTO's kl is 0 in all of {history.last_steps()}, while mean rewards reach {largest:.3g}.",
        meaning=(
            "Answers to other prompts have become less likely than under the reference, and the estimate "
            "is cut off at 0, so good and bad answers are compared with 0."
        ),
        advice=(
            "Raise samples_per_step so that a step has many prompts, or lower lr. "
            "Compare rewards_good with rewards_bad."
        ),
    )
