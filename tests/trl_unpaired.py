"""What TRL's own KTO, DPO (bco_pair) and reward losses say about given numbers, for test_trl_parity_unpaired.py.

    python trl_unpaired.py < cases.json > results.json

Runs in TRL's environment, not in Espalier's. The trainers' loss methods run as they are; in place of a model stands
one that answers with the given log-probabilities or scores, and in place of a trainer its settings. Every result is
{"loss": value, "slopes": gradient in the given numbers, "kl": TRL's reference point, where there is one}.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from trl import DPOTrainer, KTOTrainer, RewardTrainer


def same(x: Any) -> Any:
    return x


def trainer(**settings: Any) -> SimpleNamespace:
    accelerator = SimpleNamespace(device=torch.device("cpu"), gather_for_metrics=same, gather=same)
    made = SimpleNamespace(accelerator=accelerator, _metrics=defaultdict(lambda: defaultdict(list)), **settings)
    made.model = SimpleNamespace(training=False)  # metrics of training count tokens; the loss is the same
    made.aux_loss_enabled, made._total_train_tokens, made._tp_size = False, 0, 1
    return made


class Said:
    """Stands for a model: its log-probabilities [B, L - 1] are those given for as many tokens as it is asked about."""

    training = False

    def __init__(self, *logprobs: Tensor):
        self.by_shape = {x.shape: x for x in logprobs}

    def __call__(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        x = self.by_shape[torch.Size((input_ids.shape[0], input_ids.shape[1] - 1))]
        nothing = torch.zeros_like(x)
        return SimpleNamespace(log_probs=x, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())


def packed(rows: list[list[float]], prompt: int, width: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the answers behind `prompt` tokens, [B, width - 1], and the mask of answers [B, width]."""
    logprobs = torch.zeros(len(rows), width - 1, dtype=torch.float64)
    mask = torch.zeros(len(rows), width, dtype=torch.int64)
    for row, values in enumerate(rows):
        logprobs[row, prompt - 1 : prompt - 1 + len(values)] = torch.tensor(values, dtype=torch.float64)
        mask[row, prompt : prompt + len(values)] = 1
    return logprobs, mask


def totals(rows: list[list[float]]) -> Tensor:
    return torch.tensor([sum(row) for row in rows], dtype=torch.float64)


def given(leaf: Tensor, mask: Tensor) -> list[list[float]]:
    assert leaf.grad is not None
    return [g[m].tolist() for g, m in zip(leaf.grad, mask[:, 1:].bool(), strict=True)]


def kto(case: dict[str, Any]) -> dict[str, Any]:
    leaf, mask = packed(case["logprobs"], 3, 16)
    mates, mates_mask = packed(case["mates"], 3, 20)
    leaf.requires_grad_()
    batch = {
        "input_ids": torch.zeros_like(mask), "attention_mask": torch.ones_like(mask), "completion_mask": mask,
        "KL_input_ids": torch.zeros_like(mates_mask), "KL_attention_mask": torch.ones_like(mates_mask),
        "KL_completion_mask": mates_mask, "label": torch.tensor(case["labels"], dtype=torch.bool),
        "ref_logps": totals(case["reference"]), "ref_KL_logps": totals(case["mates_reference"]),
    }  # fmt: skip
    settings = trainer(loss_type="kto", calculate_KL=True, precompute_ref_logps=True, **case["settings"])
    settings._compute_kl_logps = lambda model, batch: KTOTrainer._compute_kl_logps(settings, model, batch)
    loss = KTOTrainer._compute_loss(settings, Said(leaf, mates), batch, return_outputs=False)
    loss.backward()
    return {"loss": loss.item(), "slopes": given(leaf, mask), "kl": settings._metrics["eval"]["kl"][0]}


def bco(case: dict[str, Any]) -> dict[str, Any]:
    leaf, mask = packed(case["logprobs"], 3, 16)
    leaf.requires_grad_()
    chosen, rejected = totals(case["reference"]).chunk(2)
    batch = {
        "input_ids": torch.zeros_like(mask), "attention_mask": torch.ones_like(mask), "completion_mask": mask,
        "ref_chosen_logps": chosen, "ref_rejected_logps": rejected,
    }  # fmt: skip
    settings = trainer(
        loss_types=["bco_pair"], loss_weights=[1.0], ld_alpha=None, precompute_ref_logps=True, use_weighting=False,
        f_divergence_type="reverse_kl", label_smoothing=0.0, **case["settings"],
    )  # fmt: skip
    loss = DPOTrainer._compute_loss(settings, Said(leaf), batch, return_outputs=False)
    loss.backward()
    return {"loss": loss.item(), "slopes": given(leaf, mask)}


def reward(case: dict[str, Any]) -> dict[str, Any]:
    leaf = torch.tensor(case["scores"], dtype=torch.float64)[:, None].requires_grad_()

    def model(**_: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=leaf)

    model.training = False  # type: ignore[attr-defined]
    args = SimpleNamespace(center_rewards_coefficient=case["centering"])
    batch = {"input_ids": torch.zeros(len(leaf), 4), "attention_mask": torch.ones(len(leaf), 4)}
    if case["margins"]:
        batch["margin"] = torch.tensor(case["margins"], dtype=torch.float64)
    loss = RewardTrainer.compute_loss(trainer(args=args), model, batch)
    loss.backward()
    assert leaf.grad is not None
    return {"loss": loss.item(), "slopes": leaf.grad[:, 0].tolist()}


if __name__ == "__main__":
    losses = {"kto": kto, "bco": bco, "reward": reward}
    cases = json.load(sys.stdin)
    json.dump({name: losses[case["kind"]](case) for name, case in cases.items()}, sys.stdout)
