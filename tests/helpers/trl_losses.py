"""Losses and gradients of TRL's own trainers, for test_dpo_trl_parity.py. Runs in TRL's environment, not in Espalier's.

    python trl_losses.py FOLDER

FOLDER holds `cases.json` (rows of token ids, and for each case a trainer with its settings), the models `policy` and
`reference` with a tokenizer, and `logits.safetensors`, random logits of both for the same rows. Writes
`result-CASE.safetensors`: `loss` and the gradient of every weight, and the same for the logits.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

TRAINERS: dict[str, Any] = {
    "dpo": (DPOTrainer, DPOConfig),
    "cpo": (CPOTrainer, CPOConfig),
    "orpo": (ORPOTrainer, ORPOConfig),
}
ATTRIBUTES = {"loss_type": "loss_types"} | {
    name: name
    for name in ("loss_weights", "beta", "label_smoothing", "ld_alpha", "f_divergence_type", "f_alpha_divergence_coef")
}


class Logits(nn.Module):
    """Stands for a model: whatever is asked, its logits are these."""

    def __init__(self, logits: Tensor):
        super().__init__()
        self.logits = nn.Parameter(logits.clone())

    def forward(self, *_args: Any, labels: Tensor | None = None, fused_lm_head: bool = False, **_: Any) -> Any:
        if not fused_lm_head:
            return SimpleNamespace(logits=self.logits)
        assert labels is not None
        targets = labels[:, 1:]
        found = self.logits[:, :-1].log_softmax(-1).gather(2, targets.clamp(min=0)[:, :, None])[:, :, 0]
        found = found.masked_fill(targets == -100, 0)
        nothing = torch.zeros_like(found)
        return SimpleNamespace(log_probs=found, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())


def padded(rows: list[list[int]], value: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])


def inputs(kind: str, rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    if kind == "dpo":
        examples = [{f"{name}_ids": ids for name, ids in row.items()} for row in rows]
        collated: dict[str, Tensor] = DataCollatorForPreference(pad_token_id=0)(examples)
        return collated
    out = {}
    for side in ("chosen", "rejected"):
        whole = [row["prompt"] + row[side] for row in rows]
        out[f"{side}_input_ids"] = padded(whole, 0)
        out[f"{side}_attention_mask"] = padded([[1] * len(ids) for ids in whole], 0)
        out[f"{side}_labels"] = padded([[-100] * len(row["prompt"]) + row[side] for row in rows], -100)
    return out


def build(folder: Path, kind: str, dtype: torch.dtype) -> Any:
    trainer, config = TRAINERS[kind]
    off = {"use_cpu": True, "bf16": False, "report_to": "none", "gradient_checkpointing": False}
    words = Dataset.from_list([{"prompt": "a b", "chosen": "c", "rejected": "d"}])
    models = {"model": AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=dtype)}
    if kind == "dpo":
        models["ref_model"] = AutoModelForCausalLM.from_pretrained(folder / "reference", dtype=dtype)
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    tokenizer.pad_token = tokenizer.eos_token
    made = config(output_dir=str(folder / "out"), **off)
    return trainer(**models, args=made, train_dataset=words, processing_class=tokenizer)


def run(trainer: Any, model: nn.Module, kind: str, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    if kind == "dpo":
        loss = trainer._compute_loss(model, batch, return_outputs=False)
    else:
        loss, _ = trainer.get_batch_loss_metrics(model, batch, train_eval="train")
    loss.backward()
    return {"loss": loss.detach()} | {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def main(folder: Path) -> None:
    given = json.loads((folder / "cases.json").read_text(encoding="utf-8"))
    logits = load_file(folder / "logits.safetensors")
    built: dict[tuple[str, torch.dtype], Any] = {}
    for name, case in given["cases"].items():
        kind, rows, dtype = case["trainer"], given["rows"][case["rows"]], getattr(torch, case["dtype"])
        trainer = built.get((kind, dtype)) or built.setdefault((kind, dtype), build(folder, kind, dtype))
        defaults = {"loss_weights": None, "label_smoothing": 0.0, "ld_alpha": None, "f_divergence_type": "reverse_kl"}
        if kind == "dpo":
            for key, value in (defaults | case["settings"]).items():
                setattr(trainer, ATTRIBUTES[key], value)
            trainer.loss_weights = trainer.loss_weights or [1.0] * len(trainer.loss_types)
        else:
            for key, value in case["settings"].items():
                assert hasattr(trainer, key) or key == "simpo_gamma", key
                setattr(trainer, key, value)
        batch, policy, reference = inputs(kind, rows), trainer.model, getattr(trainer, "ref_model", None)
        result = run(trainer, policy, kind, batch)
        stub = Logits(logits[f"{case['rows']}.policy"].to(dtype))
        if kind == "dpo":
            trainer.ref_model = Logits(logits[f"{case['rows']}.reference"].to(dtype))
        result |= {f"random.{key}": value for key, value in run(trainer, stub, kind, batch).items()}
        if kind == "dpo":
            trainer.ref_model = reference
        save_file({key: value.contiguous() for key, value in result.items()}, folder / f"result-{name}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
