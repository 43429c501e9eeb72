"""First losses at invented numbers: healthy algorithms agree with arithmetic, and every fault is seen."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from espalier.algorithms import bco, kto
from espalier.algorithms.bco import BCO
from espalier.algorithms.cpo import CPO
from espalier.algorithms.dpo import DPO
from espalier.algorithms.kto import KTO
from espalier.algorithms.orpo import ORPO
from espalier.algorithms.prm import PRM
from espalier.algorithms.reward import Reward
from espalier.algorithms.simpo import SimPO
from espalier.checks.invented import Case, cases
from espalier.credit import shaping
from espalier.losses import lists, pairs, scores, steps, unpaired
from espalier.types import Sample
from samples import sample


def ranked(count: int = 3) -> list[list[Sample]]:
    """Groups of three answers, the last two of which tie, with grades in two dimensions and a read each."""
    groups = []
    for number in range(count):
        stem = [5, 6, 7 + number]
        group = [sample(stem, range(20 + 3 * n, 22 + 4 * n + number), key=3 * number + n) for n in range(3)]
        for s, label in zip(group, (9.0, 5.0, 5.0), strict=True):
            s.label, s.reads, s.grades = label, [len(s) - 1], [(label, 3.0)]
        group[0].beats, group[1].ties = [1, 2], [2]
        groups.append(group)
    return groups


def single() -> list[list[Sample]]:
    """Five good answers and three bad ones, to prompts of their own."""
    groups = []
    for n in range(8):
        groups.append([sample([5, 6, 40 + n], range(50, 52 + n), key=n, group=n, label=float(n < 5))])
    return groups


def solutions() -> list[list[Sample]]:
    groups = []
    for n in range(3):
        s = sample([5, 6], range(10, 20), key=n)
        s.reads, s.grades = [3, 6, 9], [(1.0,), (0.0,), (math.nan,)]
        groups.append([s])
    return groups


def faults(algorithm: Any, groups: list[list[Sample]]) -> list[Case]:
    """The cases in which code and arithmetic differ."""
    found = list(cases(algorithm, groups, True))
    assert found and all(case.expected is not None for case in found)
    return [case for case in found if not abs(case.value - (case.expected or 0.0)) <= 1e-5 * max(1.0, case.value)]


TWO = ("a=2", "b=-1")
HEALTHY: list[tuple[Any, Callable[[], list[list[Sample]]]]] = [
    *((algorithm, ranked) for algorithm in (
        DPO(), DPO(variant=("hinge", "apo_zero", "apo_down", "ipo", "sigmoid_norm"), sft_coef=0.3), DPO(ld_alpha=0.4),
        DPO(variant=("robust",), label_smoothing=0.2), DPO(label_smoothing=0.1), DPO(f_divergence="js"),
        DPO(variant=("ipo",), ipo_average=True), DPO(variant=("plackett_luce",)), DPO(f_divergence="alpha"),
        SimPO(sft_coef=0.2), ORPO(), CPO(), Reward(dimensions=TWO), Reward(dimensions=TWO, margin=0.3),
        Reward(dimensions=TWO, weighting="pairs", label_smoothing=0.1), Reward(dimensions=TWO, centering=0.1),
        Reward(dimensions=TWO, ties="rao_kupper"), Reward(dimensions=TWO, ties="davidson", centering=0.1),
        Reward(dimensions=TWO, objective="plackett_luce"), Reward(dimensions=TWO, objective="pointwise"),
        Reward(dimensions=TWO, pointwise_coef=0.5),
    )),
    (KTO(), single), (KTO(desirable_weight=3.0), single), (BCO(), single), (PRM(), solutions),
    (PRM(bad_weight=3.0), solutions),
]  # fmt: skip


@pytest.mark.parametrize(("algorithm", "groups"), HEALTHY, ids=[f"{a}-{groups.__name__}" for a, groups in HEALTHY])
def test_every_algorithm_agrees_with_arithmetic(algorithm: Any, groups: Callable[[], list[list[Sample]]]) -> None:
    assert faults(algorithm, groups()) == []


def test_answers_alone_and_mates_of_one_prompt_are_looked_at() -> None:
    assert [case.about for case in cases(KTO(), single(), True)] == [
        "single answers", "good answers alone", "mates of one prompt",
    ]  # fmt: skip


def other_side(x_P2: torch.Tensor) -> torch.Tensor:
    return x_P2.flip(1)


WAS = {
    "sums": pairs.sums,
    "loss": pairs.loss,
    "shares": scores.shares,
    "kto": unpaired.kto,
    "ratio": shaping.ratio,
    "pl": lists.plackett_luce,
}
FAULTS: list[tuple[str, Any, str, Any, Any]] = [
    ("sides swapped", DPO(), "pairs.sums", lambda *a: other_side(WAS["sums"](*a)), ranked),
    ("beta twice", DPO(), "pairs.loss",
     lambda name, s, n, beta, e, mean: WAS["loss"](name, s, n, beta**2, e, mean), ranked),
    ("means for sums", DPO(), "pairs.sums", lambda x, rows, n, w, a=1.0: WAS["sums"](x, rows, n, w, a) / n[w], ranked),
    ("hinge", DPO(variant=("hinge",)), "pairs.LOSSES", {**pairs.LOSSES, "hinge": lambda m: torch.relu(1 + m)}, ranked),
    ("apo", DPO(variant=("apo_zero",)), "pairs.LOSSES",
     {**pairs.LOSSES, "apo_zero": lambda r: torch.sigmoid(r[:, 0]) + torch.sigmoid(-r[:, 1])}, ranked),
    ("ld", DPO(ld_alpha=0.3), "pairs.sums",
     lambda x, rows, n, w, a=1.0: WAS["sums"](x, rows, n, w, 1.0 if a == 1 else 1 - a), ranked),
    ("order", DPO(variant=("plackett_luce",)), "lists.plackett_luce", lambda s, l, g: WAS["pl"](s, -l, g), ranked),
    ("reward order", Reward(dimensions=TWO, objective="plackett_luce"), "lists.plackett_luce",
     lambda s, l, g: WAS["pl"](-s, l, g), ranked),
    ("margin", Reward(dimensions=TWO, margin=0.5), "scores.label_gaps",
     lambda b: -(b.labels_S[b.wins_P2][:, 0] - b.labels_S[b.wins_P2][:, 1]).abs(), ranked),
    ("signed margin", Reward(dimensions=TWO, margin=0.5), "scores.label_gaps",
     lambda b: b.labels_S[b.wins_P2][:, 0] - b.labels_S[b.wins_P2][:, 1], ranked),
    ("shares", Reward(dimensions=TWO), "scores.shares", lambda g, d: torch.ones_like(WAS["shares"](g, d)), ranked),
    ("unknown grades", Reward(dimensions=TWO, objective="pointwise"), "scores.pointwise",
     lambda s, g: ((s - g.nan_to_num(0.0)) ** 2 * ~g.isnan()).mean(1), ranked),
    ("ties as wins", Reward(dimensions=TWO, ties="rao_kupper"), "scores.with_ties",
     lambda d, tied, kind, share: -torch.nn.functional.logsigmoid(d - math.log(2)), ranked),
    ("kto weights", KTO(), "unpaired.kto", lambda r, g, z, *, beta, desirable, undesirable: WAS["kto"](
        r, g, z, beta=beta, desirable=undesirable, undesirable=desirable), single),
    ("kto sign", KTO(), "kto.ratio", lambda s: -WAS["ratio"](s), single),
    ("first token", KTO(), "kto.ratio", lambda s: math.fsum(
        s.streams["old_logprobs"][t] - s.streams["ref_logprobs"][t] for t in range(2, len(s)) if s.mask[t]), single),
    ("own mates", KTO(), "kto.mismatched", lambda groups, part: [
        [replace(s, part=part, streams={}) for s in groups[0]]], single),
    ("delta of a side", BCO(), "bco.BCO.credit", lambda self, groups, state: {"delta": self.beta * sum(
        shaping.ratio(s) for g in groups for s in g) / sum(map(len, groups))}, single),
    ("bad weight", PRM(), "steps.cross_entropy", lambda s, y, w: torch.where(y.isnan(), 0.0, y.nan_to_num(0.0)
        * w * torch.nn.functional.softplus(-s) + (1 - y.nan_to_num(1.0)) * torch.nn.functional.softplus(s)), solutions),
]  # fmt: skip
MODULES = {
    "pairs": pairs,
    "lists": lists,
    "scores": scores,
    "unpaired": unpaired,
    "kto": kto,
    "bco": bco,
    "steps": steps,
}


@pytest.mark.parametrize(("about", "algorithm", "where", "fault", "groups"), FAULTS, ids=[f[0] for f in FAULTS])
def test_a_fault_is_seen(
    about: str, algorithm: Any, where: str, fault: Any, groups: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, *path, name = where.split(".")
    owner: Any = MODULES[module]
    for part in path:
        owner = getattr(owner, part)
    assert faults(algorithm, groups()) == []
    monkeypatch.setattr(owner, name, fault)
    assert faults(algorithm, groups())
