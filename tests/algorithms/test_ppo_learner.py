"""PPO through the learner, for the actor, a critic of its own and a shared backbone: micro-batches, masked tokens,
heads that start at 0, critics that start from a reward model, LoRA."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from espalier.algorithms.ppo import PPO
from espalier.assembly.critic_model import build_critic_model
from espalier.assembly.model import HeadSpec, build_model
from espalier.assembly.runs import RUNS
from espalier.config.options import build
from espalier.config.sections import ModelConfig, OptimConfig
from espalier.engines.learner import VALUE_HEAD, LearnerOptions, TorchLearner
from espalier.engines.protocols import Roles
from espalier.errors import ConfigError, ModelError
from espalier.loop.annotate import annotate
from espalier.models import heads
from espalier.models.load import load_model
from espalier.models.policy import Policy
from espalier.types import Batch, Outputs, Sample
from learners import learner
from reward_models import groups as judged
from reward_models import ours, source, trained, write
from samples import Groups, sample
from tiny import tiny_model

CPU = torch.device("cpu")
ALGORITHM = PPO(beta=0.3, value_clip=0.1, value_coef=0.5, ptx_coef=2.0)
WHO = ["actor", "critic", "shared"]


def rolled(*, texts: bool = False, algorithm: PPO = ALGORITHM) -> Groups:
    """Graded answers of 1 to 16 tokens to three prompts that are shared, the last answer cut, one with tokens of a
    tool; with `texts` also a given text."""
    rng = random.Random(0)
    groups = []
    for number in range(3):
        prompt = [rng.randrange(5, 128) for _ in range(20)]
        answers = [[rng.randrange(5, 128) for _ in range(rng.randint(1, 16))] for _ in range(4)]
        groups.append([sample(prompt, y, group=number, reward=rng.random(), key=number) for y in answers])
    groups[0][0].append([7, 8, 9], trained=False)
    groups[0][0].append([10, 11], trained=True)
    groups[-1][-1].stop = "length"
    for s in (s for group in groups for s in group):
        for name in algorithm.traits.needs:
            s.streams[name] = [(-4 if name.endswith("logprobs") else 0.3) - rng.random() for _ in s.tokens]
    algorithm.credit(groups, {})
    if texts:
        groups.append([sample([], list(range(30, 55)), part="ptx", key=9)])
    return groups


def made(who: str, *, budget: int = 100_000, dtype: torch.dtype = torch.float64) -> TorchLearner:
    """An actor, a critic or both in one; heads have a weight other than 0, which would leave the layers no gradient."""
    options = LearnerOptions(budget=budget)
    noise = torch.Generator().manual_seed(3)
    if who == "critic":
        model: Any = tiny_model("llama")
        heads.attach_value(model, 0.1 * torch.randn(32, generator=noise), bias=0.5)
        return TorchLearner(Policy(model.to(dtype), "forest", says="values"), OptimConfig(), options)
    both = learner("llama", dtype=dtype, budget=budget, policy={"value_head": who == "shared"})
    if both.policy.value_head is not None:
        both.policy.value_head.weight.data = 0.1 * torch.randn(1, 32, generator=noise).to(dtype)
    return both


def one_step(one: TorchLearner, who: str, groups: Groups, algorithm: PPO = ALGORITHM) -> tuple[Any, dict[str, Tensor]]:
    """The result and the gradient, whose update is not made."""

    def loss(outputs: Outputs, batch: Batch) -> Any:
        return algorithm.value_loss(outputs, batch) if who == "critic" else algorithm.loss(outputs, batch)

    result = one.forward_backward(groups, loss, {}, 0)
    slopes = {n: p.grad.clone() for n, p in one.optimizer.parameters().items() if p.grad is not None}
    assert len(slopes) == len(one.optimizer.parameters())
    return result, slopes


def every(groups: Groups) -> list[Sample]:
    return [s for group in groups for s in group]


@pytest.mark.parametrize("who", WHO)
def test_micro_batches_change_nothing(who: str) -> None:
    groups = rolled(texts=who != "critic")
    whole, slopes = one_step(made(who), who, groups)
    split, of_split = one_step(made(who, budget=40), who, groups)
    assert split.loss == pytest.approx(whole.loss, abs=1e-12)
    assert split.terms == pytest.approx(whole.terms, abs=1e-7)
    scale = max(slope.abs().max() for slope in slopes.values())
    for key, slope in slopes.items():
        assert (of_split[key] - slope).abs().max() < 1e-7 * scale, key  # weights are float32 in a batch


@pytest.mark.parametrize("who", WHO)
def test_streams_of_masked_tokens_change_no_bit(who: str) -> None:
    """1e6 where nothing is trained, and where tokens have no weight."""
    results = []
    for junk in (0.0, 1e6, -1e6):
        groups = rolled(texts=who != "critic")
        for s in every(groups):
            if s.part == "main":
                s.weights[20 + (len(s) - 20) // 2] = 0.0
            for stream in s.streams.values():
                stream[:] = [x if w else junk for x, w in zip(stream, s.weights, strict=True)]
        results.append(one_step(made(who), who, groups))
    for result, slopes in results[1:]:
        assert (result.loss, result.terms) == (results[0][0].loss, results[0][0].terms)
        assert all(torch.equal(slope, results[0][1][key]) for key, slope in slopes.items())


@pytest.mark.parametrize("who", WHO)
def test_an_answer_without_weight_is_as_good_as_none(who: str) -> None:
    """Its tokens leave the denominator, too."""
    algorithm = PPO(beta=0.3, mask_cut=True)
    groups = rolled(algorithm=algorithm)
    assert not any(groups[-1][-1].weights)
    result, slopes = one_step(made(who), who, groups, algorithm)
    groups[-1].pop()
    without, of_rest = one_step(made(who), who, groups, algorithm)
    assert result.loss == pytest.approx(without.loss, abs=1e-12)
    for key, slope in slopes.items():
        assert torch.allclose(slope, of_rest[key], atol=1e-12), key


@pytest.mark.parametrize("who", ["actor", "shared"])
def test_given_texts_beside_answers_without_weight_have_their_own_loss_alone(who: str) -> None:
    """Such answers are counted and do not run, so nothing that runs has the streams of answers."""
    groups = rolled(texts=True)
    for s in every(groups[:-1]):
        s.weights = [0.0] * len(s)
    one = made(who)
    result = one.forward_backward(groups[-1:], ALGORITHM.loss, {}, 0, silent=groups[:-1])
    assert result.terms["ptx"] > 0
    assert result.loss == pytest.approx(ALGORITHM.ptx_coef * result.terms["ptx"])
    assert all(result.terms[name] == 0 for name in set(result.terms) - {"ptx"})
    assert one.optimizer.parameters()["model.norm.weight"].grad is not None


def test_given_texts_change_nothing_of_the_answers_terms() -> None:
    alone, texts = (one_step(made("shared"), "shared", rolled(texts=texts))[0].terms for texts in (False, True))
    assert "ptx" not in alone and texts["ptx"] > 0
    assert {name: texts[name] for name in alone} == pytest.approx(alone, abs=1e-12)


def test_a_shared_backbone_has_the_gradient_of_both_losses() -> None:
    """That of the actor alone, plus value_coef times that of a critic with the same layers and head."""
    groups = rolled()
    _, both = one_step(made("shared"), "shared", groups)
    _, of_actor = one_step(made("actor"), "actor", groups)
    model: Any = tiny_model("llama")
    weight = made("shared").policy.value_head.weight[0].float()  # type: ignore[union-attr]
    heads.attach_value(model, weight.detach())
    critic = TorchLearner(Policy(model.double(), "forest", says="values"), OptimConfig(), LearnerOptions())
    _, of_critic = one_step(critic, "critic", groups)
    for name, slope in both.items():
        expected = of_actor.get(name, torch.zeros_like(slope))
        other = heads.WEIGHT if name == VALUE_HEAD else name
        expected = expected + ALGORITHM.value_coef * of_critic.get(other, torch.zeros_like(slope))
        assert (slope - expected).abs().max() < 1e-6, name


@pytest.mark.parametrize("who", ["critic", "shared"])
def test_the_value_behind_a_cut_answer_is_read_after_its_last_token(who: str) -> None:
    """0 behind one that ended; values, log-probabilities and entropy are those of a run that asks for none."""
    one = made(who)
    roles = Roles(made("actor") if who == "critic" else one, one)
    filled = []
    for bootstrap_cut in (False, True):
        groups = rolled()
        for s in every(groups):
            s.streams.clear()
        annotate(groups, PPO(beta=0.0, bootstrap_cut=bootstrap_cut), roles, {})
        filled.append(every(groups))
    longer = rolled()
    for s in every(longer):
        s.streams.clear()
        s.append([77], trained=True)
    behind = [outputs.values[-1] for outputs in one.say(longer, ["values"])]
    assert sum(s.stop == "length" for s in filled[1]) == 1
    for plain, s, value in zip(*filled, behind, strict=True):
        expected = value if s.stop == "length" else 0.0
        assert value and s.streams["bootstrap"] == [0.0] * (len(s) - 1) + [pytest.approx(expected, abs=1e-12)]
        assert "bootstrap" not in plain.streams
        for name in ("values", "old_logprobs", "entropy"):
            assert s.streams[name] == pytest.approx(plain.streams[name], abs=1e-12), name


# ------------------------------------------------------------------------------------------------------ how heads start


def probe() -> Groups:
    """One more trained token behind the answer, before which its last value is read."""
    groups = judged()
    for s in every(groups):
        s.reads = []
        s.append([9], trained=True)
    return groups


def last_values(policy: Policy) -> list[float]:
    one = TorchLearner(policy, OptimConfig(), LearnerOptions())
    return [said.values[-1] for said in one.say(probe(), ["values"])]


@pytest.mark.parametrize("shared", [False, True])
def test_a_fresh_head_says_zero(tmp_path: Path, shared: bool) -> None:
    config = ModelConfig(model=str(source(tmp_path)))
    head = None if shared else HeadSpec((), "response", says="values")
    one = TorchLearner(build_model(config, CPU, head=head, value_head=shared).policy, OptimConfig(), LearnerOptions())
    for s, said in zip(every(rolled()), one.say(rolled(), ["values"]), strict=True):
        assert said.values == [0.0] * len(s)
    name = VALUE_HEAD if shared else heads.WEIGHT
    assert name in one.optimizer.parameters()


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (0.75, -2.0)])
def test_a_critic_from_a_reward_model_says_its_score_where_that_is_read(
    tmp_path: Path, weights: tuple[float, ...]
) -> None:
    """Scale and bias of each dimension included, from memory and from an exported folder (whose scale is folded)."""
    loaded = trained(source(tmp_path / "base"), 2)
    calibration = heads.calibration_of(loaded.model)
    assert all(abs(b) > 0.01 for b in calibration.bias) and all(abs(s - 1) > 0.01 for s in calibration.scale)
    expected = (ours(loaded.model).double() @ torch.tensor(weights, dtype=torch.float64)).tolist()
    folder = write(loaded, tmp_path / "rm")
    heads.attach_value(loaded.model, *heads.as_value(loaded.model, weights))
    assert last_values(Policy(loaded.model, "forest", says="values")) == pytest.approx(expected, abs=1e-5)
    head = HeadSpec((), "response", trained=False, says="values", weights=weights)
    built = build_model(ModelConfig(model=str(folder)), CPU, head=head)
    assert last_values(built.policy) == pytest.approx(expected, abs=1e-5)


def test_a_head_of_other_dimensions_is_refused(tmp_path: Path) -> None:
    loaded = trained(source(tmp_path), 2)
    with pytest.raises(ModelError, match="the head has 2 dimensions, got 1 weights for them"):
        heads.as_value(loaded.model, (1.0,))
    with pytest.raises(ModelError, match=r"a value head got a weight of shape \(5,\); expected \[32\]"):
        heads.attach_value(loaded.model, torch.zeros(5))


def critic_of(folder: Path, **given: Any) -> Any:
    """The critic's model of a run of this policy."""
    settings = {"model": str(folder), "data": ["d"], "out": "o", "reward": ["numeric"], **given}
    config = build(RUNS["ppo"], settings)
    return build_critic_model(config, load_model(ModelConfig(model=str(folder))), CPU)


def test_a_run_s_critic_starts_from_the_reward_model_it_names(tmp_path: Path) -> None:
    base = source(tmp_path / "base")
    loaded = trained(base, 1)
    expected = ours(loaded.model)[:, 0].tolist()
    folder = write(loaded, tmp_path / "run" / "model")
    for critic in (folder, folder.parent):
        assert last_values(critic_of(base, critic=str(critic)).policy) == pytest.approx(expected, abs=1e-5)
    assert last_values(critic_of(base).policy) == [0.0] * 4
    assert critic_of(base, critic="shared") is None
    with pytest.raises(ConfigError, match="without a scalar head; expected a reward model"):
        critic_of(base, critic=str(base))


# ---------------------------------------------------------------------------------------------------------------- LoRA


@pytest.mark.parametrize("critic", ["policy", "reward model"])
def test_under_lora_a_critic_has_an_adapter_of_its_own(tmp_path: Path, critic: str) -> None:
    """It starts where its base is, trains its adapter and head, and leaves the base as it was."""
    base = source(tmp_path / "base")
    expected, given = [0.0] * 4, "policy"
    if critic != "policy":
        loaded = trained(base, 1)
        expected = ours(loaded.model)[:, 0].tolist()
        given = str(write(loaded, tmp_path / "rm"))
    model = critic_of(base, critic=given, lora_rank="4")
    one = TorchLearner(model.policy, OptimConfig(), LearnerOptions())
    names = set(one.optimizer.parameters())
    assert heads.WEIGHT in names and len(names) > 2
    assert all("lora" in name for name in names - {heads.WEIGHT})
    assert [said.values[-1] for said in one.say(probe(), ["values"])] == pytest.approx(expected, abs=1e-5)
    frozen = {n: p.clone() for n, p in model.policy.model.named_parameters() if n not in names}
    for step in range(2):  # the first moves only one half of an adapter, and a head of 0 no adapter at all
        one.forward_backward(rolled(), ALGORITHM.value_loss, {}, step)
        one.optim_step(0.01)
    result = one.forward_backward(rolled(), ALGORITHM.value_loss, {}, 2)
    assert result.loss > 0
    assert all(p.grad is not None and p.grad.any() for p in one.optimizer.parameters().values())
    after = dict(model.policy.model.named_parameters())
    assert all(torch.equal(p, after[n]) for n, p in frozen.items())


def test_under_lora_a_shared_critic_s_head_stands_beside_the_adapter(tmp_path: Path) -> None:
    config = ModelConfig(model=str(source(tmp_path)), lora_rank=4)
    one = TorchLearner(build_model(config, CPU, value_head=True).policy, OptimConfig(), LearnerOptions())
    names = set(one.optimizer.parameters())
    assert VALUE_HEAD in names and all("lora" in name for name in names - {VALUE_HEAD})


@pytest.mark.parametrize("who", ["actor", "critic", "shared"])
def test_micro_batches_change_nothing_under_lora(tmp_path: Path, who: str) -> None:
    base = source(tmp_path)
    results = []
    for budget in (40, 100_000):
        head = HeadSpec((), "response", says="values") if who == "critic" else None
        config = ModelConfig(model=str(base), lora_rank=4)
        policy = build_model(config, CPU, head=head, value_head=who == "shared").policy.double()
        noise = torch.Generator().manual_seed(0)
        for p in policy.parameters():
            if p.requires_grad:
                p.data += 0.05 * torch.randn(p.shape, generator=noise, dtype=torch.float64)
        one = TorchLearner(policy, OptimConfig(), LearnerOptions(budget=budget))
        results.append(one_step(one, who, rolled(texts=who != "critic")))
    (split, of_split), (whole, slopes) = results
    assert split.terms == pytest.approx(whole.terms, abs=1e-7)
    scale = max(slope.abs().max() for slope in slopes.values())
    assert scale > 1e-4
    for key, slope in slopes.items():
        assert (of_split[key] - slope).abs().max() < 1e-6 * scale, key
