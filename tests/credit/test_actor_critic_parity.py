"""PPO against the formulas that other code has published, written here anew: the same on random numbers, but for the
differences that stand beside them."""

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from batches import batch_of
from espalier.algorithms.ppo import PPO
from espalier.credit import actor_critic
from espalier.losses import policy, values
from espalier.losses.ops import normalise
from espalier.losses.policy import Clip
from espalier.types import Outputs, Sample
from samples import sample

PROMPT, WIDTH = 3, 7
BETA, CLIP_SCORE, GAMMA, LAM = 0.1, 5.0, 0.98, 0.95


def numbers(seed: int) -> tuple[list[int], dict[str, Tensor], Tensor]:
    """Lengths of answers (one of them as long as a row), what stands at each place of a row, and scores."""
    rng, noise = random.Random(seed), torch.Generator().manual_seed(seed)
    lengths = [WIDTH, *(rng.randint(1, WIDTH - 1) for _ in range(4))]
    shape = (len(lengths), PROMPT + WIDTH - 1)
    rows = {name: torch.randn(shape, generator=noise, dtype=torch.float64) for name in ("log", "ref", "values")}
    return lengths, rows, 4 * torch.randn(len(lengths), generator=noise, dtype=torch.float64)


def samples_of(lengths: list[int], rows: dict[str, Tensor], scores: Tensor) -> list[Sample]:
    """The same as samples: entry t of a row is about token t + 1, before which its value is read."""
    made = []
    for i, n in enumerate(lengths):
        s = sample([5] * PROMPT, [6] * n, reward=float(scores[i]), group=i)
        for name, ours in (("log", "old_logprobs"), ("ref", "ref_logprobs"), ("values", "values")):
            s.streams[ours] = [0.0, *rows[name][i, : PROMPT + n - 1].tolist()]
        made.append(s)
    return made


class DeepSpeedChat:
    """`DeepSpeedPPOTrainer` of DeepSpeed-Chat: `compute_rewards`, what `train_rlhf` does next, and
    `get_advantages_and_returns`.

    Their action_mask leaves out padding, and the padding token is the end token: an answer of n tokens that has ended
    has n - 1 in it, and `ends` lies one behind them. So the end token has the score, a value and an advantage, as
    here; but the loss, which is over the mask, does not train it.
    """

    def compute_rewards(self, log: Tensor, ref: Tensor, score: Tensor, action_mask: Tensor) -> Tensor:
        rewards = -BETA * (log - ref)
        start = PROMPT - 1
        ends = start + action_mask[:, start:].sum(1) + 1
        clipped = torch.clamp(score, -CLIP_SCORE, CLIP_SCORE)
        for j in range(len(log)):
            rewards[j, start : ends[j]][-1] += clipped[j]
        return rewards

    def train_rlhf(self, rows: dict[str, Tensor], score: Tensor, action_mask: Tensor) -> tuple[Tensor, Tensor]:
        rewards = self.compute_rewards(rows["log"], rows["ref"], score, action_mask)
        old = rows["values"].clone()
        ends = PROMPT - 1 + action_mask[:, PROMPT - 1 :].sum(1) + 1
        for i in range(len(rewards)):
            rewards[i, ends[i] :] = 0
            old[i, ends[i] :] = 0
        return self.get_advantages_and_returns(old, rewards, PROMPT - 1)

    def get_advantages_and_returns(self, old: Tensor, rewards: Tensor, start: int) -> tuple[Tensor, Tensor]:
        lastgaelam: Any = 0
        backwards = []
        length = rewards.size()[-1]
        for t in reversed(range(start, length)):
            nextvalues: Any = old[:, t + 1] if t < length - 1 else 0.0
            delta = rewards[:, t] + GAMMA * nextvalues - old[:, t]
            lastgaelam = delta + GAMMA * LAM * lastgaelam
            backwards.append(lastgaelam)
        advantages = torch.stack(backwards[::-1], dim=1)
        return advantages, advantages + old[:, start:]


@pytest.mark.parametrize("seed", range(3))
def test_deepspeed_chat_credits_alike(seed: int) -> None:
    """Theirs are not whitened. A row that is full has no end token, and its last one has the score."""
    lengths, rows, scores = numbers(seed)
    made = samples_of(lengths, rows, scores)
    settings = PPO(beta=BETA, score_clip=CLIP_SCORE, gamma=GAMMA, lam=LAM, whiten_advantages=False)
    actor_critic.fill(settings, made, BETA)
    places = torch.arange(PROMPT + WIDTH - 1)
    action_mask = torch.stack([places < PROMPT - 1 + n - (n < WIDTH) for n in lengths])
    advantages, targets = DeepSpeedChat().train_rlhf(rows, scores, action_mask)
    for i, s in enumerate(made):
        n = lengths[i]
        assert s.streams["advantages"] == pytest.approx([0.0] * PROMPT + advantages[i, :n].tolist(), abs=1e-12)
        assert s.streams["returns"] == pytest.approx([0.0] * PROMPT + targets[i, :n].tolist(), abs=1e-12)
    assert scores.abs().max() > CLIP_SCORE or seed != 0


# -------------------------------------------------------------------------------------------------------------- TRL 0.x


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    return (x * mask).sum() / mask.sum()


def masked_whiten(x: Tensor, mask: Tensor, bessel: bool, shift_mean: bool = True) -> Tensor:
    """`trl.core.masked_whiten`, which has `bessel`: a variance over n - 1. Here it is over n."""
    mean, count = masked_mean(x, mask), mask.sum()
    var = masked_mean((x - mean) ** 2, mask)
    if bessel:
        var = var * count / (count - 1)
    whitened = (x - mean) * torch.rsqrt(var + 1e-8)
    return whitened if shift_mean else whitened + mean


def trl_compute_advantages(
    old: Tensor, rewards: Tensor, mask: Tensor, *, bessel: bool, whiten_rewards: bool = False
) -> tuple[Tensor, Tensor]:
    """`PPOTrainer.compute_advantages` of TRL 0.7 to 0.11: advantages and returns."""
    lastgaelam: Any = 0
    backwards = []
    old, rewards = old * mask, rewards * mask
    if whiten_rewards:
        rewards = masked_whiten(rewards, mask, bessel, shift_mean=False)
    length = rewards.shape[-1]
    for t in reversed(range(length)):
        nextvalues: Any = old[:, t + 1] if t < length - 1 else 0.0
        delta = rewards[:, t] + GAMMA * nextvalues - old[:, t]
        lastgaelam = delta + GAMMA * LAM * lastgaelam
        backwards.append(lastgaelam)
    advantages = torch.stack(backwards[::-1]).transpose(0, 1)
    return masked_whiten(advantages, mask, bessel), advantages + old


def trl_loss(
    old: dict[str, Tensor], logprobs: Tensor, vpreds: Tensor, mask: Tensor, advantages: Tensor, targets: Tensor
) -> dict[str, Tensor]:
    """`PPOTrainer.loss` of TRL 0.7 to 0.11, with cliprange 0.2, cliprange_value 0.3, vf_coef 0.1."""
    vpredclipped = torch.maximum(torch.minimum(vpreds, old["values"] + 0.3), old["values"] - 0.3)
    vf_losses1, vf_losses2 = (vpreds - targets) ** 2, (vpredclipped - targets) ** 2
    vf_loss = 0.5 * masked_mean(torch.max(vf_losses1, vf_losses2), mask)
    ratio = torch.exp(logprobs - old["log"])
    pg_losses, pg_losses2 = -advantages * ratio, -advantages * torch.clamp(ratio, 0.8, 1.2)
    pg_loss = masked_mean(torch.max(pg_losses, pg_losses2), mask)
    return {
        "policy": pg_loss,
        "value": vf_loss,
        "loss": pg_loss + 0.1 * vf_loss,
        "value_clipped": masked_mean(torch.gt(vf_losses2, vf_losses1).double(), mask),
        "ratio": masked_mean(ratio, mask),
    }


@pytest.mark.parametrize("whiten_rewards", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_trl_credits_alike(seed: int, whiten_rewards: bool) -> None:
    """In theirs whitened rewards are not 0 at padding, whence they reach the tokens before it: then all rows are full
    here. Scores stand at the last token of the mask, and are not clipped."""
    lengths, rows, scores = numbers(seed)
    if whiten_rewards:
        lengths = [WIDTH] * len(lengths)
    made = samples_of(lengths, rows, scores)
    settings = PPO(beta=BETA, score_clip=0.0, gamma=GAMMA, lam=LAM, whiten_rewards=whiten_rewards)
    actor_critic.fill(settings, made, BETA)
    mask = torch.stack([torch.arange(WIDTH) < n for n in lengths]).double()
    old = {name: row[:, PROMPT - 1 :] for name, row in rows.items()}
    rewards = -BETA * (old["log"] - old["ref"])
    for i, n in enumerate(lengths):
        rewards[i, n - 1] += scores[i]
    advantages, targets = trl_compute_advantages(
        old["values"], rewards, mask, bessel=False, whiten_rewards=whiten_rewards
    )
    for i, s in enumerate(made):
        n = lengths[i]
        assert s.streams["advantages"][PROMPT:] == pytest.approx(advantages[i, :n].tolist(), abs=1e-12)
        assert s.streams["returns"][PROMPT:] == pytest.approx(targets[i, :n].tolist(), abs=1e-12)
    if not whiten_rewards:
        theirs, _ = trl_compute_advantages(old["values"], rewards, mask, bessel=True)
        count = mask.sum()
        assert (theirs - advantages * ((count - 1) / count).sqrt())[mask > 0].abs().max() < 1e-8


@pytest.mark.parametrize("seed", range(3))
def test_trl_has_the_same_losses_and_gradients(seed: int) -> None:
    lengths, rows, _ = numbers(seed)
    noise = torch.Generator().manual_seed(seed + 100)
    old = {name: row[:, PROMPT - 1 :] for name, row in rows.items()}
    shape = old["log"].shape
    logprobs = (old["log"] + 0.3 * torch.randn(shape, generator=noise, dtype=torch.float64)).requires_grad_()
    vpreds = (old["values"] + 0.5 * torch.randn(shape, generator=noise, dtype=torch.float64)).requires_grad_()
    advantages, targets = (torch.randn(shape, generator=noise, dtype=torch.float64) for _ in range(2))
    mask = torch.stack([torch.arange(WIDTH) < n for n in lengths])
    theirs = trl_loss(old, logprobs, vpreds, mask.double(), advantages, targets)
    slopes = torch.autograd.grad(theirs["loss"], [logprobs, vpreds])
    # Ours have no padding. In TRL approxkl is half the squared log-ratio; here it is k3, with the same leading term.
    streams = {
        "old_logprobs": old["log"][mask],
        "values": old["values"][mask],
        "advantages": advantages[mask],
        "returns": targets[mask],
    }
    batch = batch_of(lengths, streams=streams)
    ours = [x.detach()[mask].requires_grad_() for x in (logprobs, vpreds)]
    outputs = Outputs(ours[0], values=ours[1])
    terms = policy.terms(outputs, batch, Clip(0.2, 0.2))
    terms |= values.value_terms(outputs, batch, clip=0.3, coef=0.1)
    loss, shares = normalise(terms, batch.totals)
    assert loss.item() == pytest.approx(theirs["loss"].item(), abs=1e-12)
    for name in ("policy", "value", "value_clipped", "ratio"):
        assert shares[name].item() == pytest.approx(theirs[name].item(), abs=1e-12), name
    assert 0 < theirs["value_clipped"] < 1
    for slope, got in zip(slopes, torch.autograd.grad(loss, ours), strict=True):
        assert (slope[mask] - got).abs().max() < 1e-14
        assert not slope[~mask].any()
