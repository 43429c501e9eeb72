"""The same losses and gradients as TRL 1.16, on a small model and on random logits, for every variant that both have.

Needs an interpreter in whose environment TRL 1.16 is installed: `TRL_PYTHON=/path/to/python make test-full`.
docs/preference-losses.md says where the two differ on purpose.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from espalier.algorithms.cpo import CPO
from espalier.algorithms.dpo import DPO
from espalier.algorithms.orpo import ORPO
from espalier.algorithms.simpo import SimPO
from espalier.config.sections import OptimConfig
from espalier.engines.learner import LearnerOptions, TorchLearner
from espalier.forest.pack import pack, totals
from espalier.losses.ops import normalise
from espalier.models.policy import Policy
from espalier.types import Batch, Outputs
from samples import Groups, sample
from tiny import VOCAB, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.slow

PYTHON = os.environ.get("TRL_PYTHON", "")
FAMILY = "gpt2"  # float64 from end to end


def rows(seed: int, prompt: int) -> list[dict[str, list[int]]]:
    """Pairs of prompts of `prompt` and more tokens (1 stays 1) and answers of 1 to 24."""
    random = torch.Generator().manual_seed(seed)

    def run(n: int) -> list[int]:
        return torch.randint(5, VOCAB, (n,), generator=random).tolist()

    lengths = [(3, 7), (24, 5), (1, 2), (9, 9), (6, 20)]
    return [
        {"prompt": run(1 if prompt == 1 else prompt + 6 * i), "chosen": run(w), "rejected": run(l)}
        for i, (w, l) in enumerate(lengths)
    ]


ROWS = {"plain": rows(0, 5), "one": rows(1, 1)}


def dpo(loss_type: str | list[str] = "sigmoid", *, beta: float = 0.3, **settings: Any) -> tuple[str, dict[str, Any]]:
    return "dpo", {"loss_type": [loss_type] if isinstance(loss_type, str) else loss_type, "beta": beta, **settings}


def cpo(loss_type: str, **settings: Any) -> tuple[str, dict[str, Any]]:
    return "cpo", {"loss_type": loss_type, **settings}


CASES: dict[str, tuple[Any, tuple[str, dict[str, Any]]]] = {
    "sigmoid": (DPO(beta=0.3), dpo()),
    "sigmoid_norm": (DPO(variant=("sigmoid_norm",)), dpo("sigmoid_norm", beta=5)),
    "robust": (DPO(variant=("robust",), beta=0.3, label_smoothing=0.2), dpo("robust", label_smoothing=0.2)),
    "ipo": (DPO(variant=("ipo",), beta=0.3, ipo_average=True), dpo("ipo")),
    "hinge": (DPO(variant=("hinge",), beta=0.3), dpo("hinge")),
    "apo_zero": (DPO(variant=("apo_zero",), beta=0.3), dpo("apo_zero")),
    "apo_down": (DPO(variant=("apo_down",), beta=0.3), dpo("apo_down")),
    "rpo": (DPO(beta=0.3, sft_coef=0.7), dpo(["sigmoid", "sft"], loss_weights=[1.0, 0.7])),
    "sum": (
        DPO(variant=("sigmoid=0.5", "ipo=2", "apo_zero"), beta=0.3, ipo_average=True),
        dpo(["sigmoid", "ipo", "apo_zero"], loss_weights=[0.5, 2.0, 1.0]),
    ),
    "ld": (DPO(beta=0.3, ld_alpha=0.4), dpo(ld_alpha=0.4)),
    "ld-ipo": (DPO(variant=("ipo",), beta=0.3, ld_alpha=0.4, ipo_average=True), dpo("ipo", ld_alpha=0.4)),
    "js": (DPO(beta=0.3, f_divergence="js"), dpo(f_divergence_type="js_divergence")),
    "js-ipo": (
        DPO(variant=("ipo",), beta=0.3, f_divergence="js", ipo_average=True),
        dpo("ipo", f_divergence_type="js_divergence"),
    ),
    # TRL counts alpha from the other end (its coefficient is 1 - alpha), and knows no clamp for float64
    "alpha": (
        DPO(beta=0.3, f_divergence="alpha", divergence_alpha=0.3),
        dpo(f_divergence_type="alpha_divergence", f_alpha_divergence_coef=0.7),
    ),
    "forward_kl": (DPO(beta=0.3, f_divergence="alpha", divergence_alpha=1), dpo(f_divergence_type="forward_kl")),
    "simpo": (SimPO(beta=2.5, gamma=0.8), cpo("simpo", beta=2.5, simpo_gamma=0.8, cpo_alpha=0.0)),
    "cpo_simpo": (SimPO(gamma=1, sft_coef=0.5), cpo("simpo", beta=2.0, simpo_gamma=1.0, cpo_alpha=0.5)),
    "cpo": (CPO(), cpo("sigmoid", beta=0.1, cpo_alpha=1.0)),
    # TRL's likelihood term covers the prompt, whose first token nobody scores; its odds are float32
    "orpo": (ORPO(odds_coef=0.25), ("orpo", {"beta": 0.25})),
}
ROWS_OF = {"orpo": "one"}
DTYPE = {"alpha": "float32"}


def groups_of(name: str) -> Groups:
    out = []
    for number, row in enumerate(ROWS[name]):
        chosen = sample(row["prompt"], row["chosen"], group=number, beats=[1], label=1.0)
        out.append([chosen, sample(row["prompt"], row["rejected"], group=number, label=0.0)])
    return out


def models() -> tuple[Any, Any]:
    """A policy, and a reference that is near it."""
    policy, reference = tiny_model(FAMILY), tiny_model(FAMILY)
    other = tiny_model(FAMILY, seed=1)
    with torch.no_grad():
        for p, q in zip(reference.parameters(), other.parameters(), strict=True):
            p.lerp_(q, 0.1)
    return policy, reference


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What TRL says about all cases."""
    if not PYTHON:
        pytest.skip("TRL_PYTHON is not set; set it to a Python in whose environment TRL 1.16 is installed")
    made = tmp_path_factory.mktemp("trl")
    for model, name in zip(models(), ("policy", "reference"), strict=True):
        model.save_pretrained(made / name)
        tiny_tokenizer(template=None).save_pretrained(made / name)
    cases = {
        name: {"trainer": kind, "settings": s, "rows": ROWS_OF.get(name, "plain"), "dtype": DTYPE.get(name, "float64")}
        for name, (_, (kind, s)) in CASES.items()
    }
    (made / "cases.json").write_text(json.dumps({"rows": ROWS, "cases": cases}), encoding="utf-8")
    save_file({f"{r}.{side}": random_logits(r, side) for r in ROWS for side in ("policy", "reference")},
              made / "logits.safetensors")  # fmt: skip
    script = Path(__file__).resolve().parents[1] / "helpers" / "trl_losses.py"
    done = subprocess.run([PYTHON, str(script), str(made)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return made


def random_logits(name: str, side: str) -> Tensor:
    """[2 B, L, V], preferred answers first; the reference's are near the policy's."""
    random = torch.Generator().manual_seed(7)
    shape = (2 * len(ROWS[name]), max(len(s) for g in groups_of(name) for s in g), VOCAB)
    policy = torch.randn(shape, generator=random, dtype=torch.float64)
    return policy if side == "policy" else policy + 0.3 * torch.randn(shape, generator=random, dtype=torch.float64)


def on_random_logits(algorithm: Any, name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    groups = groups_of(name)
    leaf = random_logits(name, "policy").to(dtype).requires_grad_()

    def logprobs(logits_BLV: Tensor) -> Tensor:
        found = []
        for side in range(2):
            for number, group in enumerate(groups):
                s = group[side]
                row = logits_BLV[number + side * len(groups), : len(s) - 1].log_softmax(-1)
                targets = torch.tensor(s.tokens[1:])
                found.append((number, side, row.gather(1, targets[:, None])[:, 0][torch.tensor(s.mask[1:])]))
        return torch.cat([x for _, _, x in sorted(found, key=lambda f: f[:2])])

    sums = totals(groups)
    batch = pack(groups, sums)
    batch.streams["ref_logprobs"] = logprobs(random_logits(name, "reference").to(dtype))
    loss, _ = normalise(algorithm.loss(Outputs(logprobs(leaf)), batch), sums)
    loss.backward()
    assert leaf.grad is not None
    return loss.detach(), leaf.grad


def on_the_model(algorithm: Any, name: str, dtype: torch.dtype) -> tuple[float, dict[str, Tensor]]:
    """One micro-batch of the forest."""
    groups = groups_of(name)
    policy, reference = (
        TorchLearner(Policy(m.to(dtype), "forest"), OptimConfig(), LearnerOptions(budget=10_000)) for m in models()
    )
    for s, out in zip((s for g in groups for s in g), reference.say(groups, ["logprobs"]), strict=True):
        s.streams["ref_logprobs"] = out.logprobs

    def loss(outputs: Outputs, batch: Batch) -> Any:
        if dtype == torch.float64:  # a batch keeps streams in float32, whose rounding is larger than what is measured
            exact = [s.streams["ref_logprobs"][t] for s in batch.samples for t, m in enumerate(s.mask) if m]
            batch.streams["ref_logprobs"] = torch.tensor(exact, dtype=dtype)
        return algorithm.loss(outputs, batch)

    result = policy.forward_backward(groups, loss, {}, 0)
    return result.loss, {n: p.grad for n, p in policy.policy.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_those_of_trl(folder: Path, name: str) -> None:
    algorithm, rows_name = CASES[name][0], ROWS_OF.get(name, "plain")
    dtype = getattr(torch, DTYPE.get(name, "float64"))
    want = load_file(folder / f"result-{name}.safetensors")

    loss, gradient = on_random_logits(algorithm, rows_name, dtype)
    exact = 2e-5 if dtype == torch.float32 else 1e-6 if name == "orpo" else 1e-12
    scale = want["random.logits"].abs().max().item()
    value_off = abs(loss.item() - want["random.loss"].item()) / abs(loss.item())
    gradient_off = (gradient - want["random.logits"]).abs().max().item() / scale
    assert scale > 1e-6
    print(
        f"\n{name}: random logits: loss {loss.item():.6f}, off by {value_off:.1e}; gradient off by {gradient_off:.1e}"
    )
    assert value_off < exact
    assert gradient_off < exact

    value, gradients = on_the_model(algorithm, rows_name, dtype)
    # TRL's head for DPO computes log-probabilities in float32, whatever the model's dtype
    close = 1e-4 if dtype == torch.float32 else 2e-5 if CASES[name][1][0] == "dpo" else exact * 10
    scale = max(g.abs().max().item() for n, g in want.items() if n in gradients)
    value_off = abs(value - want["loss"].item()) / abs(value)
    gradient_off = max((g - want[n]).abs().max().item() for n, g in gradients.items()) / scale
    print(f"{name}: model: loss {value:.6f}, off by {value_off:.1e}; gradient off by {gradient_off:.1e}")
    assert set(gradients) == {n for n in want if n != "loss" and not n.startswith("random.")}
    assert value_off < close
    assert gradient_off < close
