"""Process reward models: the loss and the aggregates by hand, then on a small model against separate sequences."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from espalier.algorithms.prm import PRM
from espalier.forest.pack import Group, pack, totals
from espalier.losses.ops import normalise
from espalier.models.attention import interface as attention
from espalier.models.attention.forest import Forest
from espalier.models.policy import backbone_of
from espalier.types import Batch, Outputs, Sample
from tiny import tiny_model

NAN = math.nan
LN3 = math.log(3)

# -------------------------------------------------------------------------------------------------------- the algorithm


def solution(tokens: Sequence[int], steps: dict[int, float], solved: float | None = None, group: int = 0) -> Sample:
    """A sample that is read after the tokens at `steps`, with their grades."""
    sample = Sample(group=group, label=solved)
    sample.append(list(tokens), trained=False)
    sample.reads, sample.grades = list(steps), [(grade,) for grade in steps.values()]
    return sample


def test_terms_by_hand() -> None:
    """Steps said to be 3/4 and 3/4, one without a label; then 1/4, 1/4 and 3/4. Good bad - and bad bad neutral."""
    graded = {3: 0.0, 4: 0.0, 6: 0.5}
    group = [solution(range(5, 12), {2: 1.0, 4: 0.0, 6: NAN}, solved=0.0), solution(range(20, 27), graded)]
    batch = pack([group], totals([group]), says="reads")
    said = torch.tensor([LN3, LN3, 0.0, -LN3, -LN3, LN3])[:, None]
    loss, shares = normalise(PRM().loss(Outputs(torch.zeros(0), scores_RK=said), batch), batch.totals)
    right, wrong = math.log(4 / 3), math.log(4)
    assert batch.totals["reads", "main"] == 5
    assert loss.item() == pytest.approx((3.5 * right + 1.5 * wrong) / 5)
    assert {name: x.item() for name, x in shares.items()} == pytest.approx(
        {
            "cross_entropy": loss.item(),
            "accuracy": 3.5 / 5,
            "bad": 3 / 5,
            "bad_found": 2 / 5,
            "solution": (9 / 32 + 3 / 64) / 2,  # 3/4 * 3/4 * 1/2 and 1/4 * 1/4 * 3/4
            "solution_accuracy": (1 + 0.5) / 2,  # the first failed and is called so; nobody knows about the second
        }
    )
    least = PRM(aggregate="min").loss(Outputs(torch.zeros(0), scores_RK=said), batch)["solution"]
    assert least.x.tolist() == pytest.approx([1 / 2, 1 / 4])


def test_a_head_of_two_dimensions_is_refused() -> None:
    group = [solution(range(5, 9), {3: 1.0})]
    batch = pack([group], totals([group]), says="reads")
    with pytest.raises(ValueError, match="expected a head of one dimension"):
        PRM().loss(Outputs(torch.zeros(0), scores_RK=torch.zeros(1, 2)), batch)


# -------------------------------------------------------------------------------------------------------- a small model


class Judge(nn.Module):
    """A backbone over the forest and a scalar head, as a process reward model is."""

    def __init__(self) -> None:
        super().__init__()
        attention.register()
        model = tiny_model("llama")
        self.model = model
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.head = nn.Linear(32, 1, bias=False)

    def forward(self, batch: Batch) -> Tensor:
        self.model.set_attn_implementation(attention.NAME)
        out = backbone_of(self.model)(
            input_ids=batch.inputs_N[None],
            position_ids=batch.positions_N[None],
            use_cache=False,
            forest=Forest(batch.segments, batch.inputs_N.device),
        )
        scores: Tensor = self.head(out.last_hidden_state[0][batch.reads_R])
        return scores

    def alone(self, sample: Sample) -> Tensor:
        """Scores of one sample in the model's own forward."""
        self.model.set_attn_implementation("eager")
        out = backbone_of(self.model)(input_ids=torch.tensor([sample.tokens]), use_cache=False)
        scores: Tensor = self.head(out.last_hidden_state[0])[sample.reads, 0]
        return scores

    def gradient(self) -> Tensor:
        return torch.cat([p.grad.flatten() for p in self.parameters() if p.grad is not None])


def problems(seed: int = 0) -> list[Group]:
    """Four problems with one to three solutions that share a prompt of 20 tokens; some steps are not labelled."""
    rng = random.Random(seed)
    out: list[Group] = []
    for number, size in enumerate((2, 3, 1, 2)):
        prompt = [rng.randrange(5, 128) for _ in range(20)]
        group = []
        for _ in range(size):
            ends = sorted(rng.sample(range(22, 34), 3))
            tokens = prompt + [rng.randrange(5, 128) for _ in range(ends[-1] + 1 - 20)]
            grades = [rng.choice([1.0, 0.0, 0.5, NAN]) for _ in ends]
            group.append(solution(tokens, dict(zip(ends, grades, strict=True)), group=number))
        out.append(group)
    return out


def accumulate(judge: Judge, groups: Sequence[Group], cuts: Sequence[Sequence[Group]], prm: PRM) -> float:
    """The loss of a step over `groups`, its gradient left on the parameters, one forward for each of `cuts`."""
    judge.zero_grad()
    sums, whole = totals(groups), 0.0
    for mine in cuts:
        batch = pack(mine, sums, says="reads")
        terms = prm.loss(Outputs(torch.zeros(0), scores_RK=judge(batch)), batch)
        loss, _ = normalise(terms, sums)
        loss.backward()
        whole += loss.item()
    return whole


def test_loss_and_gradient_equal_separate_sequences() -> None:
    """The forest against the model's own forward, one sample at a time, and torch's loss over labelled steps."""
    judge, groups = Judge(), problems()
    loss = accumulate(judge, groups, [groups], PRM())
    gradient = judge.gradient()
    judge.zero_grad()
    samples = [s for group in groups for s in group]
    scores = torch.cat([judge.alone(s) for s in samples])
    grades = torch.tensor([grade for s in samples for (grade,) in s.grades])
    known = ~grades.isnan()
    assert 0 < known.sum() < len(grades)
    flat = binary_cross_entropy_with_logits(scores[known], grades[known])
    flat.backward()
    assert loss == pytest.approx(flat.item(), rel=1e-5)
    torch.testing.assert_close(gradient, judge.gradient(), rtol=1e-4, atol=1e-6)


@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(4)), cuts=st.lists(st.integers(0, 4), max_size=3))
def test_no_split_into_microbatches_changes_the_step(order: list[int], cuts: list[int]) -> None:
    judge, groups = Judge(), problems()
    prm = PRM(bad_weight=2.0)
    whole = accumulate(judge, groups, [groups], prm)
    gradient = judge.gradient()
    ends = [0, *sorted(cuts), 4]
    mixed = [groups[i] for i in order]
    parts = [mixed[a:b] for a, b in pairwise(ends) if a < b]
    assert accumulate(judge, groups, parts, prm) == pytest.approx(whole, rel=1e-5)
    torch.testing.assert_close(judge.gradient(), gradient, rtol=1e-4, atol=1e-6)


def test_a_step_without_a_label_weighs_nothing() -> None:
    """Its read taken away, loss and gradient are the same: numerator and denominator agree on who counts."""
    judge, groups = Judge(), problems()
    loss = accumulate(judge, groups, [groups], PRM())
    gradient = judge.gradient()
    for s in (s for group in groups for s in group):
        known = [i for i, (grade,) in enumerate(s.grades) if not math.isnan(grade)]
        s.reads, s.grades = [s.reads[i] for i in known], [s.grades[i] for i in known]
    assert accumulate(judge, groups, [groups], PRM()) == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(judge.gradient(), gradient, rtol=1e-4, atol=1e-6)


def test_training_lowers_the_loss_to_where_steps_are_told_apart() -> None:
    judge = Judge()
    groups = [[solution([*range(5, 25), 40 + i, 60, 50 + i, 61], {21: 1.0, 23: float(i % 2)})] for i in range(4)]
    optimizer = torch.optim.AdamW(judge.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        losses.append(accumulate(judge, groups, [groups], PRM()))
        optimizer.step()
    assert losses[-1] < 0.3 * losses[0] and losses[-1] < 0.4
    for (s,) in groups:
        first, last = judge.alone(s).tolist()
        assert first > 0 and (last > 0) == (s.grades[1][0] == 1.0)
