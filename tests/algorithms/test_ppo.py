"""PPO by hand: what it needs, what it refuses, moving numbers, given texts, a shared backbone."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from batches import batch_of
from espalier.algorithms.ppo import PPO
from espalier.algorithms.traits import Stream
from espalier.assembly.runs import RUNS, RunConfig
from espalier.config.critic_section import CriticConfig, PtxConfig
from espalier.config.options import build
from espalier.errors import ConfigError
from espalier.losses.ops import normalise
from espalier.types import Batch, Outputs
from losses_by_hand import value, wide
from samples import Groups, sample

# ----------------------------------------------------------------------------------------------------- traits, refusals


@pytest.mark.parametrize(
    ("fields", "needs"),
    [
        ({}, ("ref_logprobs", "old_logprobs", "values")),
        ({"beta": 0.0}, ("old_logprobs", "values")),
        ({"beta": 0.0, "minibatches": 1}, ("values",)),
        ({"kl_in": "loss", "minibatches": 1}, ("ref_logprobs", "values")),
        ({"kl_in": "loss", "minibatches": 1, "kl_band": "warn"}, ("ref_logprobs", "values", "old_logprobs")),
        ({"kl_in": "loss", "minibatches": 1, "kl_control": "adaptive"}, ("ref_logprobs", "values", "old_logprobs")),
        ({"minibatches": 1}, ("ref_logprobs", "old_logprobs", "values")),
    ],
)
def test_the_streams_that_it_needs(fields: dict[str, Any], needs: tuple[Stream, ...]) -> None:
    assert PPO(**fields).traits.needs == needs


def test_traits() -> None:
    online = PPO(bootstrap_cut=True, rollout_epochs=3).traits.online
    assert online is not None
    assert (online.least_group, online.least_step, online.epochs, online.minibatches) == (1, 1, 3, 4)
    assert online.bootstraps and not online.siblings
    assert {"beta", "kl_answer", "kl_token", "explained_variance"} <= set(online.shows)
    assert PPO().traits.online.bootstraps is False  # type: ignore[union-attr]
    assert PPO(beta=0.0).keep([sample([5], [6], reward=1.0)] * 2) == "keep"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kl_per": "answer", "kl_in": "loss"}, "kl_per is about the KL in the reward, and there is none; drop kl_per"),
        ({"kl_per": "mean", "beta": 0.0}, "kl_per is about the KL in the reward"),
        ({"kl_in": "loss", "beta": 0.0}, "kl_in is given, but beta is 0"),
        ({"kl_control": "adaptive", "beta": 0.0}, "kl_control is given, but beta is 0, so there is no KL; give beta"),
        ({"kl_band": "warn", "beta": 0.0}, "kl_band is given, but beta is 0"),
        ({"kl_target": 3.0}, "kl_target is for kl_control adaptive, and it is fixed; drop kl_target"),
        ({"kl_horizon": 3.0, "kl_band": "adapt"}, "kl_horizon is for kl_control adaptive"),
        ({"kl_low": 0.02}, "kl_low is for kl_band, which is off; give kl_band, or drop kl_low"),
        ({"kl_high": 0.2, "kl_control": "adaptive"}, "kl_high is for kl_band, which is off"),
        ({"kl_band": "warn", "kl_low": 0.05}, "kl_low: got 0.05, expected less than kl_high 0.05"),
        ({"kl_control": "adaptive", "kl_band": "adapt"}, "both move beta; drop one"),
        ({"lam": 0.5, "gamma": 0.0}, "lam is given, but gamma is 0, so that no later reward counts; drop lam"),
        ({"kl_gradient": "naive"}, "kl_gradient is about the KL in the loss, and kl_in is reward"),
        ({"clip_dual": 1.1}, "clip_dual: got 1.1, expected more than 1 \\+ clip_high"),
        ({"lam": 1.5}, "lam"),
        ({"gamma": -0.1}, "gamma"),
        ({"value_clip": -1.0}, "value_clip"),
        ({"value_coef": 0.0}, "value_coef"),
    ],
)
def test_settings_that_do_nothing_are_refused_with_the_way_out(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PPO(**fields)


def config(**given: Any) -> RunConfig:
    return build(RUNS["ppo"], {"model": "m", "data": ["d"], "out": "o", "reward": ["numeric"], **given})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"value_coef": "0.5"}, "value_coef is given, but the critic has weights and an optimizer of its own"),
        ({"value_coef": "0.5", "critic": "rm"}, "give critic: shared, or drop value_coef"),
        ({"ptx_coef": "2"}, "ptx_coef is given, but there is no ptx_data whose loss it would weigh"),
        ({"ptx_share": "0.2"}, "ptx_share is given, but there is no ptx_data"),
        ({"critic_warmup": "9", "steps": "9"}, "critic_warmup: got 9 of 9 steps, in which the policy would never be"),
        ({"critic": "rm", "adapter": "a"}, "got rm with adapter, which belongs to the policy's base"),
        ({"critic": "shared", "critic_lr": "1e-5"}, "critic_lr is given, but the critic shares the policy's weights"),
        ({"critic": "shared", "critic_warmup": "1"}, "give another critic, or drop critic_warmup"),
        ({"critic": "shared", "critic_pretrain": "1"}, "give another critic, or drop critic_pretrain"),
        ({"ptx_data": ["t"], "ptx_share": "1"}, "ptx_share"),
    ],
)
def test_runs_that_mean_nothing_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**given)


def test_runs_that_mean_something_are_not() -> None:
    assert config(critic="shared", value_coef="0.5").algorithm == PPO(value_coef=0.5)
    assert config(ptx_data=["t"], ptx_coef="2", ptx_share="0.2").ptx.ptx_share == 0.2
    assert config(critic_warmup="8", steps="9").critic == CriticConfig(critic_warmup=8)
    assert config(critic_warmup="8").critic.critic_warmup == 8
    assert config(critic="rm", critic_lr="1e-5", critic_pretrain="2").critic.critic == "rm"
    assert PtxConfig().ptx_share == 0.1


# -------------------------------------------------------------------------------------------------------------- credit


def rolled(ratios: list[list[float]], **fields: Any) -> Groups:
    """An answer for each list of old less reference, score 1 and values 0; each is a group."""
    groups: Groups = []
    for number, of_answer in enumerate(ratios):
        s = sample([5, 4], [6 + k for k in range(len(of_answer))], reward=1.0, group=number, **fields)
        s.streams["old_logprobs"] = [1e6, -1e6, *(x - 2 for x in of_answer)]
        s.streams["ref_logprobs"] = [-1e6, 1e6, *(-2.0 for _ in of_answer)]
        s.streams["values"] = [1e6, 1e6, *(0.0 for _ in of_answer)]
        groups.append([s])
    return groups


def test_a_step_says_what_it_was_like() -> None:
    """KL of 3 and 1 nats an answer, 4 over 4 tokens; beta 0.1 takes 0.3 and 0.1 from scores of 1."""
    state = PPO(beta=0.1).credit(rolled([[1, 2, 0], [1]]), {"max_tokens": 4.0})
    expected = {"max_tokens": 4.0, "beta": 0.1, "beta_next": 0.1, "kl_answer": 2, "kl_token": 1, "kl_above": 1}
    assert {name: state[name] for name in expected} == pytest.approx(expected)
    assert state["reward_shaped"] == pytest.approx(0.8)
    assert (state["kl_below"], state["unexplained"], state["value_mean"]) == (0, 0, 0)
    assert "kl_token" not in PPO(beta=0.0).credit(rolled([[1]]), {})


def test_the_adaptive_strength_moves_from_step_to_step() -> None:
    """Twice the target counts as 1.2 of it: with 2 answers of a horizon of 10, 1.04 times beta, in the next step."""
    algorithm = PPO(beta=0.1, kl_control="adaptive", kl_target=2.0, kl_horizon=10.0, whiten_advantages=False)
    groups = rolled([[4.0], [4.0]])
    state = algorithm.credit(groups, {})
    assert (state["beta"], state["beta_next"]) == (0.1, pytest.approx(0.104))
    assert groups[0][0].streams["advantages"][2] == pytest.approx(1 - 0.1 * 4)
    groups = rolled([[-9.0], [-9.0]])
    state = algorithm.credit(groups, state)
    assert (state["beta"], state["beta_next"]) == (pytest.approx(0.104), pytest.approx(0.104 * 0.96))
    assert groups[0][0].streams["advantages"][2] == pytest.approx(1 + 0.104 * 9)


def test_the_strength_in_the_loss_is_that_of_the_step() -> None:
    algorithm = PPO(beta=0.1, kl_in="loss", kl_control="adaptive", kl_gradient="naive", kl="k1")
    streams = {name: wide([0, 0]) for name in ("advantages", "old_logprobs")} | {"ref_logprobs": wide([-1, -3])}
    batch = batch_of([2], streams=streams, state={"beta": 0.4, "beta_next": 9.0})
    loss, _, shares = value(algorithm, [0, 0], batch)
    assert shares["kl_loss"] == 2
    assert loss == pytest.approx(0.4 * 2)


def test_the_band_moves_the_strength_and_counts_steps_outside() -> None:
    algorithm = PPO(beta=0.3, kl_band="adapt", kl_low=0.5, kl_high=1.0)
    state: dict[str, float] = {}
    seen = []
    for kl in (2.0, 2.0, 0.7, 0.1):
        state = algorithm.credit(rolled([[kl]]), state)
        seen.append((round(state["beta"], 6), round(state["beta_next"], 6), state["kl_above"], state["kl_below"]))
    assert seen == [(0.3, 0.45, 1, 0), (0.45, 0.675, 2, 0), (0.675, 0.675, 0, 0), (0.675, 0.45, 0, 1)]
    assert algorithm.remarks(state) == [] and algorithm.ends({**state, "kl_above": 1.0}) == ""


def test_given_texts_are_not_credited() -> None:
    groups = [*rolled([[1.0]]), [sample([], [7, 8], part="ptx")]]
    PPO().credit(groups, {})
    assert set(groups[1][0].streams) == set()
    assert "advantages" in groups[0][0].streams


def test_cut_answers_stay_in_the_whitening_and_lose_their_weight() -> None:
    free, cut = rolled([[0.0, 0.0], [0.0]]), rolled([[0.0, 0.0], [0.0]])
    for groups in (free, cut):
        groups[1][0].stop = "length"
        groups[1][0].reward = -1.0
    PPO().credit(free, {})
    PPO(mask_cut=True).credit(cut, {})
    assert [g[0].streams["advantages"] for g in free] == [g[0].streams["advantages"] for g in cut]
    assert cut[1][0].weights == [0, 0, 0] and free[1][0].weights != [0, 0, 0]


# ------------------------------------------------------------------------------------------------ stop(), remarks, ends


def test_it_stops_beyond_one_and_a_half_times_the_limit() -> None:
    assert not PPO().stop({"approx_kl": 1e9})
    algorithm = PPO(stop_kl=0.1)
    assert [algorithm.stop({"approx_kl": x}) for x in (0.0, 0.15, 0.151)] == [False, False, True]
    assert not algorithm.stop({})


def test_remarks_are_made_once_when_there_is_something_to_say() -> None:
    algorithm = PPO(kl_band="warn")
    above = {"kl_token": 0.07, "kl_above": 1.0}
    assert algorithm.remarks(above) == [
        "KL to the reference is 0.070 nats a token, above the band 0.01 to 0.05; a larger beta holds it back"
    ]
    assert algorithm.remarks({**above, "kl_above": 2.0}) == []
    (below,) = algorithm.remarks({"kl_token": 0.0, "kl_below": 20.0})
    assert "below the band 0.01 to 0.05 for 20 steps; a smaller beta lets it learn" in below
    assert algorithm.remarks({"kl_below": 19.0}) == algorithm.remarks({"kl_below": 21.0}) == []
    (line,) = PPO().remarks({**above, "unexplained": 20.0})
    assert line.startswith("explained variance has been below 0 for 20 steps")
    assert PPO().remarks({"unexplained": 19.0}) == PPO().remarks({"unexplained": 21.0}) == []


def test_the_band_ends_a_run_above_it() -> None:
    above = {"kl_token": 0.07, "kl_above": 1.0}
    expected = "KL to the reference is 0.070 nats a token, above kl_high 0.05"
    assert PPO(kl_band="stop").ends(above) == expected
    assert PPO(kl_band="stop").ends({"kl_token": 0.0, "kl_above": 0.0, "kl_below": 50.0}) == ""
    assert PPO(kl_band="stop").ends({}) == PPO(kl_band="warn").ends(above) == PPO().ends(above) == ""


# ---------------------------------------------------------------------------------------------------------------- loss


def answered(**streams: list[float]) -> Batch:
    numbers = {"advantages": [1, 1, -2], "old_logprobs": [-1, -1, -1], "ref_logprobs": [-1, -1, -1], **streams}
    return batch_of([2, 1], streams={name: wide(x) for name, x in numbers.items()})


LOGPROBS = [-1 + math.log(1.1), -1 + math.log(1.5), -1]


def test_every_token_weighs_the_same_and_ratios_are_clipped() -> None:
    """Ratios 1.1, 1.5 and 1 at A = 1, 1, -2 over three tokens; the KL in the reward is no term."""
    loss, slope, shares = value(PPO(), LOGPROBS, answered())
    assert loss == pytest.approx((-1.1 - 1.2 + 2) / 3)
    assert slope == pytest.approx([-1.1 / 3, 0, 2 / 3])
    assert "kl_loss" not in shares and "value" not in shares and "ptx" not in shares
    # k3 of ref / pi, the reference's being -1.
    assert shares["kl"] == pytest.approx(sum(math.exp(-x - 1) - 1 + x + 1 for x in LOGPROBS) / 3)


def with_texts() -> Batch:
    """The same, and a given text of two tokens with the weights 1 and 3."""
    plain = answered()
    streams = {name: torch.cat([x, wide([0, 0])]) for name, x in plain.streams.items()}
    batch = batch_of([2, 1, 2], streams=streams, weights=wide([1, 1, 1, 1, 3]))
    totals = {**plain.totals, ("tokens", "ptx"): 4.0, ("sequences", "ptx"): 1.0, ("groups", "ptx"): 1.0}
    return replace(batch, parts=["main", "main", "ptx"], totals=totals)


def test_given_texts_have_a_denominator_of_their_own() -> None:
    """Their mean loss is (1 x 2 + 3 x 0.5) / 4, times 5, whatever the answers come to."""
    loss, slope, shares = value(PPO(ptx_coef=5.0), [*LOGPROBS, -2, -0.5], with_texts())
    assert shares["policy"] == pytest.approx((-1.1 - 1.2 + 2) / 3)
    assert shares["ptx"] == pytest.approx(0.875)
    assert loss == pytest.approx(-0.1 + 5 * 0.875)
    assert slope == pytest.approx([-1.1 / 3, 0, 2 / 3, -5 / 4, -15 / 4])
    alone = value(PPO(), LOGPROBS, answered())[2]
    assert {name: shares[name] for name in alone} == pytest.approx(alone)


def shared(algorithm: PPO, batch: Batch, said: list[float]) -> tuple[float, list[float], list[float], dict[str, float]]:
    """Loss, gradients in log-probabilities and values, terms."""
    logprobs = [*LOGPROBS, -2.0, -0.5][: len(said)]
    leaves = [wide(logprobs).requires_grad_(), wide(said).requires_grad_()]
    loss, shares = normalise(algorithm.loss(Outputs(leaves[0], values=leaves[1]), batch), batch.totals)
    slopes = torch.autograd.grad(loss, leaves)
    return loss.item(), slopes[0].tolist(), slopes[1].tolist(), {n: x.item() for n, x in shares.items()}


def test_a_shared_backbone_adds_its_critic_s_loss() -> None:
    """Values 1, 2, 0 before returns 3, 2, -1, unclipped: (4 + 0 + 1) / 2 over 3 tokens, of which 0.25 counts."""
    batch = answered(values=[1, 2, 0], returns=[3, 2, -1])
    loss, slope, of_values, shares = shared(PPO(value_coef=0.25, value_clip=0.0), batch, [1, 2, 0])
    assert shares["value"] == pytest.approx(2.5 / 3)
    assert loss == pytest.approx(-0.1 + 0.25 * 2.5 / 3)
    assert slope == pytest.approx([-1.1 / 3, 0, 2 / 3])
    assert of_values == pytest.approx([0.25 * -2 / 3, 0, 0.25 * 1 / 3])


def test_a_critic_of_its_own_has_the_whole_loss_and_its_clip() -> None:
    """Value_coef is about a shared backbone. Old values 0, clip 0.5: the first is held."""
    batch = answered(values=[0, 2, 0], returns=[3, 2, -1])
    outputs = Outputs(wide([0, 0, 0]), values=wide([1, 2, 0]))
    loss, shares = normalise(PPO(value_coef=0.25, value_clip=0.5).value_loss(outputs, batch), batch.totals)
    assert loss.item() == pytest.approx((2.5**2 / 2 + 0.5) / 3)
    assert shares["value_clipped"].item() == pytest.approx(1 / 3)


def test_the_value_of_a_given_text_is_in_no_loss() -> None:
    plain = with_texts()
    streams = {**plain.streams, "values": wide([1, 2, 0, 1e6, -1e6]), "returns": wide([3, 2, -1, -1e6, 1e6])}
    _, _, of_values, shares = shared(PPO(value_clip=0.0), replace(plain, streams=streams), [1, 2, 0, 7, 7])
    assert shares["value"] == pytest.approx(2.5 / 3)
    assert of_values[3:] == [0, 0]
