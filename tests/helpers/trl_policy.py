"""Losses and gradients of TRL's own GRPO and RLOO trainers on a recorded rollout, for test_onpolicy_trl_parity.py. Runs
in TRL's environment, not in Espalier's.

    python trl_policy.py FOLDER

FOLDER holds `cases.json` (prompts, answers, rewards, and for each case a trainer with its settings), the model `policy`
with a tokenizer, and `numbers.safetensors`: random logits, and the old and reference log-probabilities of every token
for these logits and for the model. Advantages are TRL's own. Writes `result-CASE.safetensors`: `loss` and the gradient
of every weight, and the same for the logits.
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
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

TRAINERS: dict[str, Any] = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}
DEFAULTS: dict[str, dict[str, Any]] = {
    "grpo": {
        "loss_type": "grpo",
        "scale_rewards": "group",
        "multi_objective_aggregation": "sum_then_normalize",
        "importance_sampling_level": "token",
        "entropy_coef": 0.0,
        "args.delta": None,
        "args.use_bias_correction_kl": True,
    },
    "rloo": {},
}
BOTH = {"beta": 0.0, "epsilon_low": 0.2, "epsilon_high": 0.2, "mask_truncated_completions": False}


class Logits(nn.Module):
    """Stands for a model: whatever is asked, its logits are these."""

    def __init__(self, logits: Tensor):
        super().__init__()
        self.logits = nn.Parameter(logits.clone())

    def forward(self, labels: Tensor, **_: Any) -> Any:
        targets = labels[:, 1:]
        of_all = self.logits[:, :-1].log_softmax(-1)
        logprobs = of_all.gather(2, targets.clamp(min=0)[:, :, None])[:, :, 0].masked_fill(targets == -100, 0)
        return SimpleNamespace(log_probs=logprobs, entropy=-(of_all.exp() * of_all).sum(-1))


def build(folder: Path, kind: str, given: dict[str, Any]) -> Any:
    trainer, config = TRAINERS[kind]
    off = {"use_cpu": True, "bf16": False, "report_to": "none", "gradient_checkpointing": False}
    size = {"num_generations": given["group"], "per_device_train_batch_size": len(given["answers"])}
    words = Dataset.from_list([{"prompt": "a b"}] * 8)
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    tokenizer.pad_token = tokenizer.eos_token
    return trainer(
        model=AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float64),
        reward_funcs=[lambda **_: [0.0]] * len(given["weights"]),
        args=config(output_dir=str(folder / "out"), max_completion_length=given["max_tokens"], **size, **off),
        train_dataset=words,
        processing_class=tokenizer,
    )


def configure(trainer: Any, settings: dict[str, Any]) -> None:
    for name, value in settings.items():
        target = trainer.args if name.startswith("args.") else trainer
        short = name.removeprefix("args.")
        assert hasattr(target, short), name
        setattr(target, short, value)
    trainer._entropy_bonus_enabled = bool(getattr(trainer, "entropy_coef", 0))


def score(trainer: Any, kind: str, given: dict[str, Any], old: Tensor, ref: Tensor) -> dict[str, Any]:
    """TRL's own batch for the recorded answers and rewards, with the given log-probabilities."""
    answers, own = given["answers"], trainer._get_per_token_logps_and_entropies
    texts = ["" for _ in answers]
    rolled = {
        "grpo": (given["prompts"], answers, None, texts, None, {}, None, []),
        "rloo": (given["prompts"], answers, texts),
    }
    trainer._generate = lambda prompts: rolled[kind]
    trainer._calculate_rewards = lambda *_: torch.tensor(given["rewards"], dtype=torch.float64)
    trainer.reward_weights = torch.tensor(given["weights"], dtype=torch.float64)
    trainer.ref_model = object()
    trainer._get_per_token_logps_and_entropies = lambda model, *_, **__: (
        (ref if model is trainer.ref_model else old),
        None,
        None,
    )
    try:
        batch: dict[str, Any] = trainer._generate_and_score_completions([{"prompt": ""} for _ in answers])
    finally:
        trainer._get_per_token_logps_and_entropies = own
    if kind == "grpo":
        batch["old_per_token_logps"] = old
    return batch


def main(folder: Path) -> None:
    given = json.loads((folder / "cases.json").read_text(encoding="utf-8"))
    numbers = load_file(folder / "numbers.safetensors")
    trainers = {kind: build(folder, kind, given) for kind in TRAINERS}
    for name, case in given["cases"].items():
        kind, result = case["trainer"], {}
        trainer = trainers[kind]
        configure(trainer, {**BOTH, **DEFAULTS[kind], **case["settings"]})
        models = {"random": Logits(numbers["logits"]), "model": trainer.model}
        for of, model in models.items():
            batch = score(trainer, kind, given, numbers[f"{of}.old.{case['old']}"], numbers[f"{of}.ref"])
            model.zero_grad(set_to_none=True)
            loss = trainer._compute_loss(model, batch)
            loss.backward()
            result[f"{of}.loss"] = loss.detach()
            result |= {f"{of}.{n}": p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        save_file({key: value.contiguous() for key, value in result.items()}, folder / f"result-{name}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
