"""The same losses and gradients as TRL 1.16 for KTO, BCO and the reward model, on random numbers and on a small model.

Needs an interpreter in whose environment TRL 1.16 is installed: `TRL_PYTHON=/path/to/python make test-full`.

Deliberate differences: TRL's bco_pair has no shift and sums both sides of a pair, so it is BCO at delta 0 times two.
TRL's KTO takes the reference point of one micro-batch, and as mate the answer before; here it is the whole step's.
"""

from __future__ import annotations

import json
import os
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from espalier.algorithms.bco import BCO
from espalier.algorithms.kto import KTO
from espalier.algorithms.reward import Reward
from espalier.config.sections import OptimConfig
from espalier.credit.shaping import response_start
from espalier.engines.learner import LearnerOptions, TorchLearner
from espalier.engines.protocols import Roles
from espalier.forest.pack import pack, totals
from espalier.loop.annotate import annotate
from espalier.losses.ops import normalise
from espalier.models import heads
from espalier.models.policy import Policy
from espalier.types import Batch, Outputs, Sample
from samples import Groups, sample
from tiny import VOCAB, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.slow

PYTHON = os.environ.get("TRL_PYTHON", "")
WIDE = torch.float64
LENGTHS = [3, 7, 1, 10, 5, 2, 9, 4]
LABELS = [1, 0, 0, 1, 0, 1, 0, 0]
EXACT = 1e-12


def numbers(seed: int, *, shift: float = 0.0) -> list[list[float]]:
    """A log-probability for each token of eight answers."""
    random = torch.Generator().manual_seed(seed)
    return [(-2 * torch.rand(n, generator=random, dtype=WIDE) + shift).tolist() for n in LENGTHS]


def kto(**settings: float) -> dict[str, Any]:
    return {"kind": "kto", "labels": LABELS, "settings": {"beta": 0.1, "desirable_weight": 1.0,
            "undesirable_weight": 1.0, **settings}}  # fmt: skip


POLICY, REFERENCE = numbers(0), numbers(1)
ABOVE = {"mates": numbers(2, shift=0.4), "mates_reference": numbers(3)}
BELOW = {"mates": numbers(2, shift=-0.4), "mates_reference": numbers(3)}  # a mean below 0, which counts as 0
SIDES = {"logprobs": POLICY, "reference": REFERENCE}
SCORES = (3 * torch.randn(8, generator=torch.Generator().manual_seed(4), dtype=WIDE)).tolist()
GAPS = [2.0, 0.5, 1.0, 4.0]

CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "kto": (KTO(), kto() | SIDES | ABOVE),
    "kto-weights": (
        KTO(beta=0.5, desirable_weight=1.7, undesirable_weight=0.6),
        kto(beta=0.5, desirable_weight=1.7, undesirable_weight=0.6) | SIDES | ABOVE,
    ),
    "kto-below": (KTO(beta=0.3), kto(beta=0.3) | SIDES | BELOW),
    "bco": (BCO(beta=0.3), {"kind": "bco", "settings": {"beta": 0.3}} | SIDES),
    "reward": (Reward(), {"kind": "reward", "scores": SCORES, "margins": [], "centering": None}),
    "reward-margin": (
        Reward(margin=0.5),
        {"kind": "reward", "scores": SCORES, "margins": [0.5 * gap for gap in GAPS], "centering": None},
    ),
    "reward-centering": (
        Reward(centering=0.01),
        {"kind": "reward", "scores": SCORES, "margins": [], "centering": 0.01},
    ),
}


@pytest.fixture(scope="module")
def said_by_trl() -> dict[str, dict[str, Any]]:
    if not PYTHON:
        pytest.skip("TRL_PYTHON is not set; set it to a Python in whose environment TRL 1.16 is installed")
    script = Path(__file__).resolve().parents[1] / "helpers" / "trl_unpaired.py"
    cases = json.dumps({name: case for name, (_, case) in CASES.items()})
    done = subprocess.run([PYTHON, str(script)], input=cases, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def answers(logprobs: list[list[float]], reference: list[list[float]], labels: list[float], part: str) -> list[Sample]:
    made = []
    for number, (own, ref, label) in enumerate(zip(logprobs, reference, labels, strict=True)):
        s = sample([1, 2, 3], list(range(10, 10 + len(own))), group=number, label=label, part=part)
        s.streams = {"old_logprobs": [0.0] * 3 + own, "ref_logprobs": [0.0] * 3 + ref}
        made.append(s)
    return made


def on_tokens(algorithm: Any, case: dict[str, Any], state: dict[str, float]) -> tuple[float, list[float]]:
    """Loss, and the gradient in every log-probability, answer after answer."""
    pairs = [1, 1, 1, 1, 0, 0, 0, 0]  # preferred ones first, as TRL lays pairs
    groups: Groups = [[s] for s in answers(case["logprobs"], case["reference"], case.get("labels", pairs), "main")]
    batch = pack(groups, totals(groups), state=state)
    batch.streams["ref_logprobs"] = torch.tensor([x for row in case["reference"] for x in row], dtype=WIDE)
    leaf = torch.tensor([x for row in case["logprobs"] for x in row], dtype=WIDE, requires_grad=True)
    loss, _ = normalise(algorithm.loss(Outputs(leaf), batch), batch.totals)
    loss.backward()
    assert leaf.grad is not None
    return loss.item(), leaf.grad.tolist()


def on_scores(algorithm: Any, case: dict[str, Any]) -> tuple[float, list[float]]:
    """Pair i is the scores i and i + 4."""
    groups: Groups = []
    for number, gap in enumerate(GAPS):
        pair = [
            sample([1, 2], [5, 4], group=number, label=gap, beats=[1]),
            sample([1, 2], [6, 4], group=number, label=0.0),
        ]
        for s in pair:
            s.reads = [len(s) - 1]
        groups.append(pair)
    leaf = torch.tensor(case["scores"], dtype=WIDE, requires_grad=True)
    scores_RK = leaf.view(2, 4).T.reshape(8, 1)
    batch = pack(groups, totals(groups), says="reads")
    loss, _ = normalise(algorithm.loss(Outputs(torch.zeros(0), scores_RK=scores_RK), batch), batch.totals)
    loss.backward()
    assert leaf.grad is not None
    return loss.item(), leaf.grad.tolist()


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_those_of_trl(said_by_trl: dict[str, dict[str, Any]], name: str) -> None:
    algorithm, case = CASES[name]
    want = said_by_trl[name]
    if case["kind"] == "reward":
        slopes, factor = want["slopes"], 1.0
        loss, gradient = on_scores(algorithm, case)
    else:
        slopes = [x for row in want["slopes"] for x in row]
        state, factor = {"delta": 0.0}, 2.0 if case["kind"] == "bco" else 1.0
        if case["kind"] == "kto":
            mates = answers(case["mates"], case["mates_reference"], case["labels"], "kl")
            state = algorithm.credit([[s] for s in mates], {})
            assert state["kl"] == pytest.approx(want["kl"], abs=1e-12)
            assert (want["kl"] > 0) == (name != "kto-below")
        loss, gradient = on_tokens(algorithm, case, state)
    scale = max(map(abs, slopes))
    value_off = abs(factor * loss - want["loss"]) / abs(want["loss"])
    gradient_off = max(abs(factor * a - b) for a, b in zip(gradient, slopes, strict=True)) / scale
    print(f"\n{name}: loss {want['loss']:.6f}, off by {value_off:.1e}; gradient off by {gradient_off:.1e}")
    assert scale > 1e-3
    assert value_off < EXACT and gradient_off < EXACT


def test_mates_are_others_answers_as_in_trl() -> None:
    """TRL gives every prompt the answer of the row before; here it is the row after. Both use each answer once."""
    groups: Groups = [[sample([number], [10 + number], group=number, label=1.0)] for number in range(5)]
    mates = [s.tokens for group in KTO().mates(groups) for s in group]
    assert [prompt for prompt, _ in mates] == list(range(5))
    assert all(b - a in (1, -4) for a, b in pairwise([answer for _, answer in mates]))
    assert sorted(answer for _, answer in mates) == [10, 11, 12, 13, 14]


# --------------------------------------------------------------------------------------------------------- small models

FAMILY = "gpt2"  # float64 from end to end
ANSWERS = [3, 24, 1, 9, 5, 17, 9, 4]
MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "kto": (KTO(), {"kind": "kto", "settings": {"beta": 0.1}}),
    "kto-weights": (
        KTO(beta=0.5, desirable_weight=1.7, undesirable_weight=0.6),
        {"kind": "kto", "settings": {"beta": 0.5, "desirable_weight": 1.7, "undesirable_weight": 0.6}},
    ),
    "bco": (BCO(beta=0.3), {"kind": "bco", "settings": {"beta": 0.3, "loss_type": ["bco_pair"]}}),
    "reward": (Reward(), {"kind": "reward", "settings": {}, "margins": []}),
    "reward-margin": (
        Reward(margin=0.5),
        {"kind": "reward", "settings": {}, "margins": [0.5 * gap for gap in GAPS]},
    ),
    "reward-centering": (
        Reward(centering=0.01),
        {"kind": "reward", "settings": {"center_rewards_coefficient": 0.01}, "margins": []},
    ),
}
# TRL's head computes log-probabilities in float32, whatever the model's dtype; scores stay in float64
CLOSE = {"kto": 2e-5, "bco": 2e-5, "reward": 1e-11}


def policy_of(kind: str) -> TorchLearner:
    model = tiny_model(FAMILY)
    if kind == "reward":
        heads.attach(model, 1, seed=3)
    options = LearnerOptions(budget=10_000, whole=kind == "reward")
    says = "reads" if kind == "reward" else "tokens"
    return TorchLearner(Policy(model.to(WIDE), "forest", says=says), OptimConfig(), options)


def reference_model() -> Any:
    """A model near the policy, surer of what it says, so that the reference point is above 0."""
    reference, other = tiny_model(FAMILY), tiny_model(FAMILY, seed=1)
    with torch.no_grad():
        for p, q in zip(reference.parameters(), other.parameters(), strict=True):
            p.lerp_(q, -0.2)
    return reference.to(WIDE)


class Beside:
    """The reference's log-probabilities, in float64."""

    moves = False

    def __init__(self) -> None:
        self.learner = TorchLearner(Policy(reference_model(), "forest"), OptimConfig(), LearnerOptions(budget=10_000))

    def logprobs(self, groups: Groups) -> list[list[float]]:
        return [outputs.logprobs for outputs in self.learner.say(groups, ["logprobs"])]


def rows_of(kind: str) -> Groups:
    """Eight prompts with an answer each; for pairs four prompts, whose preferred answers come first."""
    random = torch.Generator().manual_seed(11)

    def run(n: int) -> list[int]:
        return torch.randint(5, VOCAB, (n,), generator=random).tolist()

    prompts, answers = [run(5 + 6 * i) for i in range(8)], [run(n) for n in ANSWERS]
    if kind == "kto":
        return [
            [sample(p, a, group=i, key=i, label=float(label))]
            for i, (p, a, label) in enumerate(zip(prompts, answers, LABELS, strict=True))
        ]
    groups = []
    for i, gap in enumerate(GAPS):
        sides = (answers[i], answers[i + 4])
        labels = (gap, 0.0) if kind == "reward" else (1.0, 0.0)
        group = [sample(prompts[i], a, group=i, label=label) for a, label in zip(sides, labels, strict=True)]
        group[0].beats = [1]
        if kind == "reward":
            for s in group:
                s.reads = [len(s) - 1]
        groups.append(group)
    return groups


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What TRL's whole trainers say."""
    if not PYTHON:
        pytest.skip("TRL_PYTHON is not set; set it to a Python in whose environment TRL 1.16 is installed")
    made = tmp_path_factory.mktemp("trl")
    scoring = policy_of("reward").policy.model
    config = tiny_model(FAMILY).config
    config.num_labels, config.pad_token_id = 1, 0
    twin = AutoModelForSequenceClassification.from_config(config).to(WIDE)
    twin.load_state_dict(scoring.state_dict())  # every weight of the one is a weight of the other
    models = {"policy": tiny_model(FAMILY).to(WIDE), "reference": reference_model(), "reward": twin}
    for name, model in models.items():
        model.save_pretrained(made / name)
        tiny_tokenizer(template=None).save_pretrained(made / name)
    own = rows_of("kto")
    rows = []
    for (s,), (mate,) in zip(own, KTO().mates(own), strict=True):
        at = response_start(s)
        assert mate.tokens[:at] == s.tokens[:at]
        rows.append({"prompt": s.tokens[:at], "answer": s.tokens[at:], "mate": mate.tokens[at:]})
    cases = {name: case for name, (_, case) in MODELS.items()}
    given = {"rows": rows, "labels": LABELS, "cases": cases}
    (made / "models.json").write_text(json.dumps(given), encoding="utf-8")
    script = Path(__file__).resolve().parents[1] / "helpers" / "trl_unpaired.py"
    done = subprocess.run([PYTHON, str(script), str(made)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return made


def on_the_model(algorithm: Any, kind: str) -> tuple[float, dict[str, Tensor]]:
    """One micro-batch of the forest, mates, reference and reference point as a run has them."""
    groups, learner = rows_of(kind), policy_of(kind)
    reference: Any = Beside() if kind != "reward" else None
    state = annotate(groups, algorithm, Roles(learner, reference=reference), {})
    assert kind != "kto" or state["kl"] > 0.1
    if kind == "bco":
        state = {"delta": 0.0}

    def loss(outputs: Outputs, batch: Batch) -> Any:
        if reference is not None:  # a batch keeps streams in float32, whose rounding is larger than what is measured
            exact = [s.streams["ref_logprobs"][t] for s in batch.samples for t, m in enumerate(s.mask) if m]
            batch.streams["ref_logprobs"] = torch.tensor(exact, dtype=WIDE)
        return algorithm.loss(outputs, batch)

    result = learner.forward_backward(groups, loss, state, 0)
    return result.loss, {n: p.grad for n, p in learner.policy.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", MODELS)
def test_a_small_model_has_the_gradients_of_trl(folder: Path, name: str) -> None:
    algorithm, case = MODELS[name]
    kind = case["kind"]
    want = load_file(folder / f"result-{name}.safetensors")
    factor = 2.0 if kind == "bco" else 1.0
    value, gradients = on_the_model(algorithm, kind)
    assert set(gradients) == want.keys() - {"loss"}
    scale = max(g.abs().max().item() for n, g in want.items() if n != "loss")
    value_off = abs(factor * value - want["loss"].item()) / abs(want["loss"].item())
    gradient_off = max((factor * g - want[n]).abs().max().item() for n, g in gradients.items()) / scale
    print(
        f"\n{name}: model: loss {want['loss'].item():.6f}, off by {value_off:.1e}; gradient off by {gradient_off:.1e}"
    )
    assert scale > 1e-3
    assert value_off < CLOSE[kind] and gradient_off < CLOSE[kind]
