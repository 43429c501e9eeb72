"""The reference in memory: the start's numbers whatever is trained, and the live weights' bits untouched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor

from espalier.engines.learner import LearnerOptions, TorchLearner
from espalier.engines.reference import FILE, ModelReference, StartReference
from espalier.errors import CheckpointError, ConfigError
from espalier.models.policy import Policy
from preferences import furthest, make, pair_groups, policy_logprobs, train
from samples import Groups
from tiny import tiny_model

GROUPS = pair_groups()


def by_transformers(model: Any, groups: Groups) -> list[list[float]]:
    """One forward a sample with transformers' own attention, shifted here."""
    out = []
    for s in (s for g in groups for s in g):
        with torch.no_grad():
            log_p = model(input_ids=torch.tensor([s.tokens])).logits[0].log_softmax(-1)
        said = [0.0, *log_p[:-1].gather(-1, torch.tensor(s.tokens[1:])[:, None])[:, 0].tolist()]
        out.append([x if trained else 0.0 for x, trained in zip(said, s.mask, strict=True)])
    return out


def bits(learner: TorchLearner) -> dict[str, Tensor]:
    live = {f"live {n}": p.detach().clone() for n, p in learner.policy.model.named_parameters()}
    return live | {f"master {n}": p.detach().clone() for n, p in learner.optimizer.parameters().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_at_the_start_the_reference_is_the_policy_to_the_bit(compute: torch.dtype) -> None:
    learner = make(compute=compute)
    said = StartReference(learner).logprobs(GROUPS)
    assert said == policy_logprobs(learner, GROUPS)
    if compute == torch.float32:
        assert furthest(said, by_transformers(tiny_model("llama"), GROUPS)) < 1e-5


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_training_moves_the_policy_and_neither_the_reference_nor_the_exchange_moves_more(compute: torch.dtype) -> None:
    learner = make(compute=compute)
    reference, start = StartReference(learner), policy_logprobs(learner, GROUPS)
    train(learner, GROUPS)
    before, now = bits(learner), policy_logprobs(learner, GROUPS)
    assert reference.logprobs(GROUPS) == start and reference.logprobs(GROUPS) == start
    assert same(bits(learner), before) and policy_logprobs(learner, GROUPS) == now
    assert furthest(now, start) > 0.1
    train(learner, GROUPS, 1)  # the optimizer still holds what the model computes with
    assert furthest(policy_logprobs(learner, GROUPS), now) > 0.01
    assert reference.logprobs(GROUPS) == start


def test_an_error_in_the_forward_leaves_the_live_weights_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = make()
    reference, start = StartReference(learner), policy_logprobs(learner, GROUPS)
    train(learner, GROUPS)
    before = bits(learner)

    def fail(*_: Any, **__: Any) -> Any:
        assert not same(bits(learner), before), "the forward runs on the live weights"
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(Policy, "forward", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            reference.logprobs(GROUPS)
    assert same(bits(learner), before)
    assert reference.logprobs(GROUPS) == start


def test_bfloat16_stays_within_a_measured_bound_of_float32() -> None:
    """Measured over three families and three seeds: 0.006 to 0.019 nats on average and 0.02 to 0.09 at most, on
    log-probabilities of 5.4 nats."""
    exact = StartReference(make()).logprobs(GROUPS)
    low = StartReference(make(compute=torch.bfloat16)).logprobs(GROUPS)
    apart = [abs(x - y) for a, b in zip(exact, low, strict=True) for x, y in zip(a, b, strict=True) if x]
    assert 1e-3 < sum(apart) / len(apart) < 0.03 and max(apart) < 0.15


# ---------------------------------------------------------------------------------------------------------------- LoRA


def test_under_a_new_adapter_the_reference_is_the_base_model() -> None:
    learner = make(lora=True)
    reference = StartReference(learner)
    copied = sum(copy.numel() for copy in reference._copies.values())
    assert copied == sum(p.numel() for p in learner.policy.parameters() if p.requires_grad) < 4000
    train(learner, GROUPS)
    said = reference.logprobs(GROUPS)
    assert furthest(said, by_transformers(tiny_model("llama"), GROUPS)) < 1e-5
    assert furthest(said, policy_logprobs(learner, GROUPS)) > 0.1
    layers = [m for m in learner.policy.modules() if isinstance(m, peft.tuners.tuners_utils.BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    assert layers and said == policy_logprobs(learner, GROUPS)


def test_a_continued_adapter_is_its_own_reference(tmp_path: Path) -> None:
    first = make(lora=True)
    train(first, GROUPS)
    given = policy_logprobs(first, GROUPS)
    first.export(tmp_path / "adapter")
    learner = make(adapter=str(tmp_path / "adapter"))
    reference = StartReference(learner)
    train(learner, GROUPS)
    assert furthest(reference.logprobs(GROUPS), given) < 1e-6
    base = by_transformers(tiny_model("llama"), GROUPS)
    assert furthest(given, base) > 0.1 and furthest(policy_logprobs(learner, GROUPS), given) > 0.1


# -------------------------------------------------------------------------------------------------------------- moving


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_a_move_is_the_mixture_of_the_masters(compute: torch.dtype) -> None:
    """reference <- 0.25 policy + 0.75 reference, twice; what computes is its rounding."""
    learner = make(compute=compute)
    reference = StartReference(learner, moves=True)
    expected = {n: p.detach().clone() for n, p in learner.optimizer.parameters().items()}
    for _ in range(2):
        train(learner, GROUPS, 1)
        before = bits(learner)
        reference.move(0.25)
        assert same(bits(learner), before)
        for name, p in learner.optimizer.parameters().items():
            expected[name] = 0.75 * expected[name] + 0.25 * p.detach()
    model = tiny_model("llama")
    model.load_state_dict({n: x.to(compute).float() for n, x in expected.items()}, strict=False)
    assert furthest(reference.logprobs(GROUPS), by_transformers(model, GROUPS)) < (
        1e-5 if compute.itemsize == 4 else 0.1
    )
    for name, exact in reference._exact.items():
        assert exact.dtype == torch.float32
        torch.testing.assert_close(exact, expected[name], rtol=1e-6, atol=1e-7)
        assert torch.equal(reference._copies[name], exact.to(compute))


def test_alpha_1_replaces_the_reference() -> None:
    learner = make()
    reference = StartReference(learner, moves=True)
    train(learner, GROUPS)
    reference.move(1.0)
    assert reference.logprobs(GROUPS) == policy_logprobs(learner, GROUPS)


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_a_moved_reference_goes_on_bit_for_bit(tmp_path: Path, compute: torch.dtype) -> None:
    learner = make(compute=compute)
    reference = StartReference(learner, moves=True)
    train(learner, GROUPS)
    reference.move(0.3)
    learner.save(tmp_path)
    reference.save(tmp_path)
    again = make(compute=compute)
    other = StartReference(again, moves=True)
    again.load(tmp_path)
    other.load(tmp_path)
    assert other.logprobs(GROUPS) == reference.logprobs(GROUPS)
    for made, ref in ((learner, reference), (again, other)):
        train(made, GROUPS, 1)
        ref.move(0.3)
    assert same(reference._exact, other._exact) and other.logprobs(GROUPS) == reference.logprobs(GROUPS)


def test_what_moves_must_be_in_the_checkpoint(tmp_path: Path) -> None:
    learner = make()
    StartReference(learner).save(tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match=FILE):
        StartReference(learner, moves=True).load(tmp_path)
    StartReference(make(lora=True), moves=True).save(tmp_path)
    with pytest.raises(CheckpointError, match="in the checkpoint or in this run only"):
        StartReference(learner, moves=True).load(tmp_path)


# ------------------------------------------------------------------------------------------------------- another model


def test_another_model_is_scored_like_the_policy_and_never_moves(tmp_path: Path) -> None:
    options = LearnerOptions(budget=64, whole=True)
    reference = ModelReference(Policy(tiny_model("gpt2"), "forest"), options)
    assert furthest(reference.logprobs(GROUPS), by_transformers(tiny_model("gpt2"), GROUPS)) < 1e-5
    assert not any(p.requires_grad for p in reference.forwards.policy.parameters())
    reference.save(tmp_path)
    assert not list(tmp_path.iterdir())
    for fixed in (reference, StartReference(make())):
        with pytest.raises(ConfigError, match="does not move"):
            fixed.move(0.5)


def test_another_model_computes_in_the_dtype_of_the_policy() -> None:
    options = LearnerOptions(budget=64, whole=True, compute=torch.bfloat16)
    reference = ModelReference(Policy(tiny_model("llama"), "forest"), options)
    assert {p.dtype for p in reference.forwards.policy.parameters()} == {torch.bfloat16}
    assert reference.logprobs(GROUPS) == StartReference(make(compute=torch.bfloat16)).logprobs(GROUPS)
