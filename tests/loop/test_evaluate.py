"""Held-out terms without gradients, and a policy that is read by a scalar head."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from espalier.algorithms.dpo import DPO
from espalier.algorithms.sft import SFT
from espalier.config.sections import OptimConfig
from espalier.engines.learner import LearnerOptions, TorchLearner
from espalier.engines.protocols import Roles
from espalier.engines.reference import StartReference
from espalier.loop.evaluate import evaluate, evaluate_loss, shown
from espalier.models import heads
from espalier.models.policy import Policy
from espalier.types import Batch, Outputs, Term
from preferences import make, pair_groups, train
from samples import Groups, tree_groups
from tiny import tiny_model


def reader(family: str = "llama", *, dtype: torch.dtype = torch.float64, **options: Any) -> TorchLearner:
    """A learner of a tiny reward model of two dimensions."""
    model = tiny_model(family)
    heads.attach(model, 2, seed=1)
    policy = Policy(model.to(dtype), "forest", says="reads")
    return TorchLearner(policy, OptimConfig(), LearnerOptions(**{"budget": 64, **options}))


def read_groups() -> Groups:
    """The pairs, read after their last token, and one of them in the middle, too."""
    groups = pair_groups()
    for s in (s for g in groups for s in g):
        s.beats, s.reads = [], [len(s.tokens) - 1]
    groups[1][0].reads = [22, len(groups[1][0].tokens) - 1]
    return groups


def squares(outputs: Outputs, batch: Batch) -> dict[str, Term]:
    assert outputs.scores_RK is not None and outputs.logprobs.numel() == 0
    return {
        "squares": Term(outputs.scores_RK.square().sum(-1), "reads"),
        "reads": Term(outputs.scores_RK[:, 0], "reads"),
    }


# ------------------------------------------------------------------------------------------------------------- measure


def test_measured_terms_are_those_of_a_step() -> None:
    learner, algorithm = make(), DPO(sft_coef=0.5)
    reference = StartReference(learner)
    train(learner, pair_groups())
    groups = pair_groups(seed=5)
    for s, said in zip((s for g in groups for s in g), reference.logprobs(groups), strict=True):
        s.streams["ref_logprobs"] = said
    measured = learner.measure(groups, algorithm.loss, {})
    assert all(p.grad is None for p in learner.policy.parameters())
    result = learner.forward_backward(groups, algorithm.loss, {}, 0)
    assert {n: m.sum / m.total for n, m in measured.items()} == pytest.approx(result.terms, rel=1e-6)
    assert sum(m.coef * m.sum / m.total for m in measured.values()) == pytest.approx(result.loss, rel=1e-6)
    chosen = sum(sum(g[0].mask) for g in groups)
    assert (measured["sigmoid"].total, measured["nll"].total, measured["nll"].coef) == (4, chosen, 0.5)
    assert measured["accuracy"].coef == 0


def test_state_and_sums_reach_the_loss() -> None:
    def counted(outputs: Outputs, batch: Batch) -> dict[str, Term]:
        ones = torch.ones_like(outputs.logprobs)
        return {
            "n": Term(ones * batch.state["x"], "tokens", coef=2.0),
            "s": Term(torch.ones(len(batch.samples)), "sequences"),
        }

    groups = tree_groups()
    trained = sum(sum(s.mask[1:]) for g in groups for s in g)
    found = make(whole=False, budget=40).measure(groups, counted, {"x": 3.0})
    assert (found["n"].sum, found["n"].total, found["n"].coef) == (3 * trained, trained, 2)
    assert (found["s"].sum, found["s"].total, found["s"].coef) == (6, 6, 1)


# ---------------------------------------------------------------------------------------------------------- evaluation


def test_held_out_terms_are_divided_once_over_all_chunks() -> None:
    """Chunks of 1 and 3 pairs count as 4 pairs, not as two means; before the first step the loss is ln 2."""
    learner, algorithm = make(), DPO()
    reference = StartReference(learner)
    first = evaluate_loss(
        Roles(learner, reference=reference), algorithm, {}, iter([pair_groups(1), pair_groups(3, seed=4)])
    )
    assert first["eval_loss"] == first["eval_sigmoid"] == pytest.approx(math.log(2), rel=1e-6)
    assert first["eval_margin"] == first["eval_accuracy"] == 0
    train(learner, pair_groups())
    cut, whole = (
        evaluate_loss(Roles(learner, reference=reference), algorithm, {}, iter(chunks))
        for chunks in ([pair_groups(1), pair_groups(3, seed=4)], [[*pair_groups(1), *pair_groups(3, seed=4)]])
    )
    assert cut == pytest.approx(whole, rel=1e-5) and abs(whole["eval_loss"] - math.log(2)) > 1e-3
    parts = [
        evaluate_loss(Roles(learner, reference=reference), algorithm, {}, iter([g]))
        for g in (pair_groups(1), pair_groups(3, seed=4))
    ]
    assert whole["eval_margin"] == pytest.approx((parts[0]["eval_margin"] + 3 * parts[1]["eval_margin"]) / 4, rel=1e-4)


def test_nothing_held_out_and_nothing_to_compare_are_no_evaluation() -> None:
    learner = make()
    reference = StartReference(learner)
    assert evaluate_loss(Roles(learner, reference=reference), DPO(), {}, iter([])) == {}
    ties = pair_groups(2)
    for s in (s for g in ties for s in g):
        s.beats = []
    assert evaluate_loss(Roles(learner, reference=reference), DPO(), {}, iter([ties])) == {}


def test_likelihood_and_loss_agree_where_both_can_be_asked() -> None:
    learner = make(whole=False)
    said = evaluate(learner, iter([tree_groups()]))
    assert evaluate_loss(Roles(learner), SFT(), {}, iter([tree_groups()]))["eval_loss"] == pytest.approx(
        said["eval_loss"]
    )
    assert shown(said).startswith(f"held-out loss {said['eval_loss']:.4f}, perplexity ")
    assert shown({"eval_loss": 0.5, "eval_accuracy": 0.75, "eval_margin": 0.125}) == (
        "held-out loss 0.5000, accuracy 75.0%, margin 0.1250"
    )


def test_held_out_tokens_count_with_their_weights() -> None:
    """Weights of 1/2 and 2, by hand: (sum of w * nll) / (sum of w), which is what the loss of a step divides by."""
    learner = make(whole=False)
    groups = tree_groups()
    samples = [s for group in groups for s in group]
    for number, s in enumerate(samples):
        s.weights = [0.5 if number % 2 else 2.0] * len(s)
    loss = weight = 0.0
    for s, outputs in zip(samples, learner.say(groups, ["logprobs"]), strict=True):
        for t in range(1, len(s)):
            if s.mask[t]:
                loss -= s.weights[t] * outputs.logprobs[t]
                weight += s.weights[t]
    said = evaluate(learner, iter([groups]))
    assert said["eval_loss"] == pytest.approx(loss / weight, rel=1e-6)
    assert evaluate_loss(Roles(learner), SFT(), {}, iter([groups]))["eval_loss"] == pytest.approx(
        loss / weight, rel=1e-5
    )
    for s in samples:
        s.weights = [1.0] * len(s)
    assert evaluate(learner, iter([groups]))["eval_loss"] != pytest.approx(loss / weight, rel=1e-4)


# --------------------------------------------------------------------------------------------------------------- reads


def by_hand(learner: TorchLearner, groups: Groups) -> list[list[list[float]]]:
    """One forward a sample through the bare backbone, the head's matrix on the hidden states at the reads."""
    model: Any = tiny_model("llama").double()
    weight_KD = learner.policy.model.score.weight.detach()
    out = []
    for s in (s for g in groups for s in g):
        with torch.no_grad():
            hidden = model.model(input_ids=torch.tensor([s.tokens])).last_hidden_state[0]
        out.append((hidden[s.reads] @ weight_KD.T).tolist())
    return out


def test_scores_are_read_where_asked_and_calibrated() -> None:
    learner, groups = reader(), read_groups()
    groups[2][1].reads = []
    heads.set_calibration(learner.policy.model, heads.Calibration((1.0, -2.0), (3.0, 0.5)))
    expected = by_hand(learner, groups)
    said = [outputs.scores for outputs in learner.say(groups, ["scores"])]
    assert [len(rows) for rows in said] == [1, 1, 2, 1, 1, 0, 1, 1]
    for rows, raw in zip(said, expected, strict=True):
        for row, (a, b) in zip(rows, raw, strict=True):
            assert row == pytest.approx((3 * a + 1, 0.5 * b - 2), abs=1e-6)


def test_the_loss_sees_raw_scores_in_training_and_in_measuring() -> None:
    learner, groups = reader(), read_groups()
    heads.set_calibration(learner.policy.model, heads.Calibration((1.0, -2.0), (3.0, 0.5)))
    raw = [row for rows in by_hand(learner, groups) for row in rows]
    expected = sum(a * a + b * b for a, b in raw)
    measured = learner.measure(groups, squares, {})
    assert (measured["squares"].sum, measured["squares"].total) == (pytest.approx(expected, rel=1e-6), 9)
    result = learner.forward_backward(groups, squares, {}, 0)
    assert result.terms["squares"] == pytest.approx(expected / 9, rel=1e-6) and result.scored == 0


def test_no_split_changes_the_gradient_of_what_is_read() -> None:
    def gradients(budget: int) -> dict[str, torch.Tensor]:
        learner = reader("gpt2", budget=budget)
        learner.forward_backward(read_groups(), squares, {}, 0)
        return {n: p.grad for n, p in learner.optimizer.parameters().items() if p.grad is not None}

    want = gradients(10_000)
    assert want["score.weight"].abs().max() > 0.1
    for budget in (1, 50, 100):
        for name, got in gradients(budget).items():
            torch.testing.assert_close(got, want[name], rtol=1e-9, atol=1e-12)


def test_the_head_is_neither_decayed_nor_orthogonalised() -> None:
    learner = reader(dtype=torch.float32)
    made = TorchLearner(learner.policy, OptimConfig(optimizer="muon", weight_decay=0.1), learner.options)
    head = made.policy.model.score.weight
    (group,) = [g for o, _ in made.optimizer._optimizers for g in o.param_groups if any(p is head for p in g["params"])]
    assert group["weight_decay"] == 0


def test_a_model_gives_what_its_head_gives_and_nothing_else() -> None:
    with pytest.raises(ValueError, match="says reads gives scores, not logprobs"):
        reader().say(read_groups(), ["logprobs"])
    with pytest.raises(ValueError, match="says tokens gives logprobs, entropy, correct, not scores"):
        make().say(pair_groups(), ["logprobs", "scores"])
