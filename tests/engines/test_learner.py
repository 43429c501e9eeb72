"""The learner: gradients that no split can change, updates by hand, and training that continues where it was saved."""

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from espalier.config.sections import OptimConfig
from espalier.engines.learner import LearnerOptions, TorchLearner
from espalier.errors import CheckpointError
from espalier.forest.pack import pack, totals
from espalier.models.noise import Noise
from espalier.models.policy import Policy
from espalier.types import Batch, Outputs, Sample, Term
from learners import gradients, learner, loss, mixed_groups, values
from samples import sample, tree_groups
from tiny import tiny_model


def test_say_places_logprobs_at_their_tokens() -> None:
    made = learner(budget=40)
    reference: Any = tiny_model("gpt2").double()
    groups = mixed_groups()
    got = made.say(groups, ["logprobs", "entropy", "correct"])
    for s, out in zip((s for g in groups for s in g), got, strict=True):
        logits = reference(input_ids=torch.tensor([s.tokens])).logits[0].detach()
        log_p = logits.log_softmax(-1)
        assert len(out.logprobs) == len(out.entropy) == len(out.correct) == len(s.tokens) and out.scores == []
        for t in range(len(s.tokens)):
            if t and s.mask[t]:
                p = log_p[t - 1]
                assert out.logprobs[t] == pytest.approx(p[s.tokens[t]].item(), abs=1e-12)
                assert out.entropy[t] == pytest.approx(-(p.exp() * p).sum().item(), abs=1e-12)
                assert out.correct[t] == float(int(p.argmax()) == s.tokens[t])
            else:
                assert out.logprobs[t] == out.entropy[t] == out.correct[t] == 0


def test_every_part_has_its_own_denominator() -> None:
    made = learner()
    groups = mixed_groups()
    flat = [s for g in groups for s in g]
    sums = {"main": [0.0, 0.0], "replay": [0.0, 0.0]}
    for s, out in zip(flat, made.say(groups, ["logprobs"]), strict=True):
        for t in range(1, len(s.tokens)):
            if s.mask[t]:
                sums[s.part][0] -= s.weights[t] * out.logprobs[t]
                sums[s.part][1] += s.weights[t]
    assert sums["replay"][1] == 19 + 1  # the first token of a text is never scored
    result = made.forward_backward(groups, loss, {}, 0)
    main, replay = (a / b for a, b in sums.values())
    assert result.terms == pytest.approx({"nll": main, "nll_replay": replay}, rel=1e-12)
    assert result.loss == pytest.approx(main + 0.1 * replay, rel=1e-12)
    assert result.tokens == sum(len(s.tokens) for s in flat)
    assert result.scored == sum(sum(s.mask[1:]) for s in flat)
    assert result.packed < sum(len(s.tokens) - 1 for s in flat)


@pytest.mark.parametrize("linear", [False, True])
def test_no_split_and_no_order_changes_the_gradient(linear: bool) -> None:
    groups = mixed_groups()
    want = gradients(learner(budget=100_000), groups)
    rng = random.Random(0)
    for budget in (1, 23, 41, 60, 97, 150):
        shuffled = [rng.sample(g, len(g)) for g in rng.sample(groups, len(groups))]
        got = gradients(learner(budget=budget, linear=linear), shuffled)
        assert set(got) == set(want)
        for name, expected in want.items():
            torch.testing.assert_close(got[name], expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("layout", ["chain", "padded"])
def test_layouts_give_the_same_step(layout: str) -> None:
    got, want = (gradients(learner(layout=x, budget=60), mixed_groups()) for x in (layout, "forest"))
    for name, expected in want.items():
        torch.testing.assert_close(got[name], expected, rtol=1e-11, atol=1e-13)


def test_a_loss_that_is_not_linear_is_caught_on_the_linear_path() -> None:
    def squared(outputs: Outputs, batch: Batch) -> dict[str, Term]:
        return {"nll": Term(outputs.logprobs**2, "tokens")}

    with pytest.raises(RuntimeError, match="declares `linear`"):
        learner(linear=True).forward_backward(tree_groups(), squared, {}, 0)


def test_grad_checkpointing_gives_the_same_gradient() -> None:
    got = gradients(learner("llama", grad_checkpointing=True, budget=60), mixed_groups())
    for name, expected in gradients(learner("llama", budget=60), mixed_groups()).items():
        torch.testing.assert_close(got[name], expected, rtol=1e-6, atol=1e-9)


# ------------------------------------------------------------------------------------------------------------ bfloat16


def bf16(**options: Any) -> TorchLearner:
    return learner("llama", dtype=torch.float32, compute=torch.bfloat16, **options)


def test_masters_start_exact_and_move_below_the_resolution_of_bf16() -> None:
    exact = dict(tiny_model("llama").named_parameters())
    made = bf16()
    assert all(p.dtype == torch.bfloat16 for p in made.policy.parameters())
    start = values(made)
    for name, p in exact.items():
        assert start[name].dtype == torch.float32
        assert torch.equal(start[name], p.detach())
    for step in range(3):
        made.forward_backward(tree_groups(), loss, {}, step)
        made.optim_step(1e-6)
    moved = {n: (p - start[n]).abs() for n, p in values(made).items()}
    for name, distance in moved.items():
        assert 0.3e-6 < distance.median() < 4e-6, name
        low = made.policy.model.get_parameter(name)
        assert torch.equal(low, values(made)[name].bfloat16())  # what computes is the rounding of what moves
        assert (low != exact[name].bfloat16()).double().mean() < 0.05


def test_frozen_weights_leave_as_exact_as_they_came() -> None:
    """bf16 computes with their rounding; what is handed on is what was loaded."""
    model = tiny_model("llama")
    for p in model.model.layers.parameters():
        p.requires_grad_(False)
    exact = {n: p.detach().clone() for n, p in model.named_parameters()}
    made = TorchLearner(Policy(model, "forest"), OptimConfig(), LearnerOptions(compute=torch.bfloat16))
    for name, value in made.weights():
        assert value.dtype == torch.float32
        assert torch.equal(value, exact[name]), name
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())


def test_frozen_weights_that_the_compute_dtype_holds_leave_in_it() -> None:
    model = tiny_model("llama")
    name, frozen = next((n, p) for n, p in model.named_parameters() if "layers.0" in n)
    frozen.data = frozen.data.bfloat16().float()
    frozen.requires_grad_(False)
    exact = frozen.detach().clone()
    made = TorchLearner(Policy(model, "forest"), OptimConfig(), LearnerOptions(compute=torch.bfloat16))
    weights = dict(made.weights())
    assert weights[name].dtype == torch.bfloat16 and torch.equal(weights[name].float(), exact)
    assert {value.dtype for n, value in weights.items() if n != name} == {torch.float32}


def test_gradients_of_microbatches_are_added_up_in_float32() -> None:
    copies = 40
    groups = [[sample(list(range(10, 20)), [5, 6, 7])] for _ in range(copies)]
    made = bf16(budget=12)  # each copy in a forward of its own
    together = gradients(made, groups)
    single = bf16(budget=12)
    sums = totals(groups)

    def same_total(outputs: Outputs, batch: Batch) -> dict[str, Term]:
        batch.totals.update(sums)
        return loss(outputs, batch)

    single.forward_backward(groups[:1], same_total, {}, 0)
    for name, p in single.optimizer.parameters().items():
        assert p.grad is not None
        torch.testing.assert_close(together[name], p.grad * copies, rtol=1e-5, atol=1e-9)


def test_bf16_gradients_are_near_the_exact_ones() -> None:
    exact = gradients(learner("llama"), tree_groups())
    for name, g in gradients(bf16(linear=True), tree_groups()).items():
        assert (g - exact[name]).norm() < 0.1 * exact[name].norm() + 1e-3, name


# ------------------------------------------------------------------------------------------------ saving, noise, router


def train(made: TorchLearner, steps: range) -> list[float]:
    losses = []
    for step in steps:
        losses.append(made.forward_backward(tree_groups(step), loss, {}, step).loss)
        made.optim_step(1e-3 * (step + 1))
    return losses


@pytest.mark.parametrize(
    "build",
    [
        lambda: learner("llama", dtype=torch.float32, optim=OptimConfig(weight_decay=0.1)),
        lambda: learner("llama", dtype=torch.float32, optim=OptimConfig(optimizer="muon")),
        bf16,
        lambda: learner(model={"resid_pdrop": 0.1, "attn_pdrop": 0.1}, policy={"dropout": True, "neftune_alpha": 5.0}),
    ],
    ids=["adamw", "muon", "bf16", "noise"],
)
def test_a_loaded_learner_continues_bit_for_bit(build: Callable[[], TorchLearner], tmp_path: Path) -> None:
    made = build()
    train(made, range(2))
    made.save(tmp_path)
    losses = train(made, range(2, 4))
    other = build()
    other.load(tmp_path)
    assert train(other, range(2, 4)) == losses
    for name, value in values(made).items():
        assert torch.equal(value, values(other)[name])
        assert torch.equal(made.policy.model.get_parameter(name), other.policy.model.get_parameter(name))


def test_a_checkpoint_of_other_parameters_is_refused(tmp_path: Path) -> None:
    learner("llama", dtype=torch.float32).save(tmp_path)
    with pytest.raises(CheckpointError, match="trained parameters are in the checkpoint or in this run only"):
        learner("gpt2", dtype=torch.float32).load(tmp_path)


NOISY: dict[str, dict[str, Any]] = {
    "neftune": {"policy": {"neftune_alpha": 5.0}},
    "dropout": {
        "policy": {"dropout": True},
        "model": {"resid_pdrop": 0.2, "embd_pdrop": 0.1, "attn_pdrop": 0.3},
    },
}


@pytest.mark.parametrize("kind", NOISY)
def test_noise_is_the_same_under_every_split_and_new_at_every_step(kind: str) -> None:
    groups = mixed_groups()
    groups.insert(1, [Sample([1], [True], [1.0], key=30), sample([1, 2], [], key=31)])  # nothing to lay down
    want = gradients(learner(**NOISY[kind]), groups, step=5)
    for options in ({"budget": 45}, {"budget": 1, "linear": True}, {"grad_checkpointing": True}):
        got = gradients(learner(**NOISY[kind], **options), groups[::-1], step=5)
        for name, expected in want.items():
            torch.testing.assert_close(got[name], expected, rtol=1e-9, atol=1e-12)
    base = want["transformer.wte.weight"]
    for other in (
        gradients(learner(**NOISY[kind]), groups, step=6),
        gradients(learner(**NOISY[kind], seed=1), groups, step=5),
        gradients(learner(), groups, step=5),
    ):
        assert (other["transformer.wte.weight"] - base).norm() > 1e-3 * base.norm()


def test_neftune_scales_by_the_whole_length_of_the_sample() -> None:
    made = learner(policy={"neftune_alpha": 5.0})
    groups = [[sample([5, 6, 7], [8, 9], key=4)], [sample([5, 6], [7], key=2)]]
    groups[1][0].append([8, 9], trained=False)  # behind what is trained: not laid down, and yet part of the sample
    batch = pack(groups, totals(groups), share=False)
    other = Policy(tiny_model("gpt2").double(), "forest", neftune_alpha=5.0)
    scores = other(batch, noise=Noise(0, 3, [4, 2], [5, 5], [4, 2]))["logprobs"]
    (-(scores[batch.score] * batch.weights).sum() / 3).backward()
    for name, got in gradients(made, groups, step=3).items():
        torch.testing.assert_close(got, other.model.get_parameter(name).grad, rtol=1e-10, atol=1e-13)


def test_what_a_model_says_is_free_of_noise() -> None:
    groups = mixed_groups()
    want = learner().say(groups, ["logprobs"])
    noisy = learner(**NOISY["dropout"])
    noisy.forward_backward(groups, loss, {}, 0)
    for a, b in zip(noisy.say(groups, ["logprobs"]), want, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-12)


def test_router_term_appears_only_where_it_is_asked_for() -> None:
    options = {"dtype": torch.float32, "budget": 10_000}
    plain = learner("qwen3_moe", **options)
    assert set(plain.forward_backward(tree_groups(), loss, {}, 0).terms) == {"nll"}
    made = learner("qwen3_moe", **options, policy={"router_loss": True}, router_coef=0.5)
    result = made.forward_backward(tree_groups(), loss, {}, 0)
    assert set(result.terms) == {"nll", "router"}
    assert result.loss == pytest.approx(result.terms["nll"] + 0.5 * result.terms["router"], rel=1e-6)
    assert 1.9 < result.terms["router"] < 4  # 2 where experts are used evenly (top 2), 4 where two take everything


def test_building_a_learner_leaves_the_weights_as_they_were() -> None:
    model = tiny_model("llama")
    before = copy.deepcopy(model.state_dict())
    TorchLearner(Policy(model, "forest"), OptimConfig(), LearnerOptions())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
