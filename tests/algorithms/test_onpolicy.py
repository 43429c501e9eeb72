"""What algorithms over rollouts share: traits, fates, refused settings, KL and entropy terms."""

from typing import Any

import pytest
import torch

from batches import batch_of
from espalier.algorithms.dapo import DAPO
from espalier.algorithms.dr_grpo import DrGRPO
from espalier.algorithms.grpo import GRPO
from espalier.algorithms.gspo import GSPO
from espalier.algorithms.onpolicy import OnPolicy
from espalier.algorithms.raft import RAFT
from espalier.algorithms.rloo import RLOO
from espalier.errors import ConfigError
from espalier.outcomes import Graded, Outcome
from espalier.types import Outputs, Sample
from samples import sample

FAMILY: tuple[type[OnPolicy], ...] = (GRPO, DrGRPO, RLOO, DAPO, GSPO)


def rolled(*scores: float, **fields: Any) -> list[Sample]:
    """Answers of one, two, ... tokens to one prompt."""
    return [sample([5, 6], range(7, 8 + n), reward=score, **fields) for n, score in enumerate(scores)]


@pytest.mark.parametrize("algorithm", FAMILY)
def test_a_step_of_one_update_without_kl_needs_nothing(algorithm: type[OnPolicy]) -> None:
    traits = algorithm().traits
    assert (traits.consumes, traits.needs) == ("task", ())
    assert traits.online is not None
    assert (traits.online.least_group, traits.online.entropy, traits.online.always) == (2, False, False)
    assert traits.online.refills == (algorithm is DAPO)


def test_streams_are_needed_for_the_kl_and_for_later_updates() -> None:
    assert GRPO(beta=0.1).traits.needs == ("ref_logprobs",)
    assert GRPO(beta=0.1, kl_in="reward").traits.needs == ("ref_logprobs", "old_logprobs")
    assert GRPO(rollout_epochs=2).traits.needs == ("old_logprobs",)
    assert GRPO(minibatches=2).traits.needs == ("old_logprobs",)
    assert GRPO(old="sampler").traits.needs == ("old_logprobs",)


def test_nothing_is_silent_beside_another_gradient() -> None:
    equal = rolled(0.5, 0.5)
    assert GRPO().keep(equal) == "silent"
    assert GRPO().keep(rolled(0.5, 0.6)) == "keep"
    for other in (GRPO(beta=0.1), GRPO(entropy_coef=0.01)):
        assert other.keep(equal) == "keep"
        assert other.traits.online is not None
        assert other.traits.online.always
    with_kl = GRPO(beta=0.1, kl_in="reward")
    assert with_kl.keep(equal) == "keep"
    assert with_kl.traits.online is not None
    assert not with_kl.traits.online.always


def test_a_group_is_silent_only_if_its_advantages_are_zero() -> None:
    """Rewards 1, 0 and 0, 1 have equal sums, which each reward's own scale tells apart."""
    group = rolled(1.0, 1.0)
    group[0].outcome = Outcome(1.0, {"a": Graded(1.0), "b": Graded(0.0)})
    group[1].outcome = Outcome(1.0, {"a": Graded(0.0), "b": Graded(1.0)})
    assert GRPO().keep(group) == "silent"
    assert GRPO(reward_norm="each").keep(group) == "keep"


def test_dapo_drops_groups_whose_rewards_are_exactly_equal() -> None:
    assert DAPO().keep(rolled(1.0, 1.0, 1.0)) == "drop"
    assert DAPO(beta=0.1).keep(rolled(1.0, 1.0, 1.0)) == "drop"
    assert DAPO().keep(rolled(1.0, 1.0, 1.0 + 1e-12)) == "keep"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kl_gradient": "naive"}, "kl_gradient is given, but beta is 0"),
        ({"sync_every": 5}, "sync_every is given, but beta is 0"),
        ({"beta": 0.1, "kl": "k2"}, "give kl_gradient naive, or kl k3"),
        ({"beta": 0.1, "kl_gradient": "sequence", "kl": "k1"}, "reads no estimator; drop kl"),
        ({"beta": 0.1, "kl_in": "reward", "kl_gradient": "naive"}, "kl_in is reward; drop one"),
        ({"beta": 0.1, "sync_alpha": 0.5}, "sync_every is 0; give both or none"),
        ({"clip_dual": 1.1}, "expected more than 1 \\+ clip_high"),
        ({"clip_low": 1.0}, "clip_low"),
        ({"scale": "none", "advantage": "sign"}, "drop scale"),
        ({"reward_norm": "each", "scale": "none"}, "scale is for reward_norm after"),
        ({"reward_norm": "each", "advantage": "winners"}, "advantage is for reward_norm after"),
        ({"reward_norm": "each", "beta": 0.1, "kl_in": "reward"}, "set kl_in loss"),
    ],
)
def test_settings_that_do_nothing_are_refused_with_the_way_out(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GRPO(**settings)


def test_kl_k2_is_allowed_where_nothing_differentiates_it_with_the_ratio() -> None:
    assert GRPO(beta=0.1, kl="k2", kl_gradient="naive").kl == "k2"
    assert RLOO(beta=0.1, kl="k2").kl_in == "reward"


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"top_share": 0.5}, "best keeps one"), ({"margin": 1.0, "select": "top"}, "for select batch")],
)
def test_raft_refuses_what_its_selection_does_not_read(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RAFT(**settings)


@pytest.mark.parametrize(
    ("algorithm", "factors"),
    [
        (GRPO, [1 / 2 / 2, 1 / 2 / 2, 1 / 2]),  # of two sequences, of their tokens
        (GSPO, [1 / 2 / 2, 1 / 2 / 2, 1 / 2]),
        (DrGRPO, [1 / 8 / 2] * 3),  # of max_tokens, of two sequences
        (RLOO, [1 / 2] * 3),  # a sum a sequence, of two
        (DAPO, [1 / 3] * 3),  # of all tokens
    ],
)
def test_kl_and_entropy_are_summed_as_the_policy_is(algorithm: type[OnPolicy], factors: list[float]) -> None:
    """Log-ratios to the reference 1, 2, 4 in naive k1, entropies 1, 3, 5: each times its token's share."""
    from espalier.losses.ops import normalise

    streams = {"advantages": torch.zeros(3), "ref_logprobs": torch.tensor([-2.0, -4.0, -8.0], dtype=torch.float64)}
    batch = batch_of([2, 1], streams=streams, state={"max_tokens": 8})
    logprobs = torch.tensor([-1.0, -2.0, -4.0], dtype=torch.float64, requires_grad=True)
    made = algorithm(beta=0.5, kl_in="loss", kl="k1", kl_gradient="naive", entropy_coef=0.1)
    terms = made.loss(Outputs(logprobs, entropy=torch.tensor([1.0, 3.0, 5.0], dtype=torch.float64)), batch)
    loss, shares = normalise(terms, batch.totals)
    kl = sum(x * f for x, f in zip((1, 2, 4), factors, strict=True))
    entropy = sum(x * f for x, f in zip((1, 3, 5), factors, strict=True))
    assert loss.item() == pytest.approx(0.5 * kl - 0.1 * entropy)
    assert shares["kl"].item() == pytest.approx(7 / 3)
    assert shares["entropy"].item() == pytest.approx(3)


def test_the_kl_in_the_reward_is_taken_from_the_score() -> None:
    """Old less reference: 0.5 + 0.5 and 1; at beta 0.1 scores 1 and 0 become 0.9 and -0.1."""
    group = [sample([5], [6, 7], reward=1.0), sample([5], [8], reward=0.0)]
    for s, old in zip(group, ([0.0, -1.0, -1.0], [0.0, -2.0]), strict=True):
        s.streams["old_logprobs"] = old
        s.streams["ref_logprobs"] = [-3.0, -1.5, -1.5][: len(s)] if len(s) == 3 else [-3.0, -3.0]
    algorithm = GRPO(beta=0.1, kl_in="reward", scale="none")
    assert algorithm.scores([group]) == [pytest.approx([0.9, -0.1])]
    algorithm.credit([group], {})
    assert group[0].streams["advantages"] == pytest.approx([0, 0.5, 0.5])
