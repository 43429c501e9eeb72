"""What TRL's own KTO, DPO (bco_pair) and reward losses say about given numbers, for test_labelled_trl_parity.py.

    python trl_unpaired.py < cases.json > results.json
    python trl_unpaired.py FOLDER

Runs in TRL's environment, not in Espalier's. The trainers' loss methods run as they are; in place of a model stands
one that answers with the given log-probabilities or scores, and in place of a trainer its settings. Every result is
{"loss": value, "slopes": gradient in the given numbers, "kl": TRL's reference point, where there is one}.

With a FOLDER the trainers are whole and have the models in it: `policy`, `reference`, `reward` (with a tokenizer each),
and `models.json`: rows of token ids (prompt, answer, mate), labels, and for each case its kind and settings. Writes
`result-CASE.safetensors`: `loss` and the gradient of every weight.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer


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


# ------------------------------------------------------------------------------------------------------- small models

WIDE = torch.float64
PAD = 0
WORDS = {
    "kto": {"prompt": "a b", "completion": "c", "label": True},
    "bco": {"prompt": "a b", "chosen": "c", "rejected": "d"},
    "reward": {"chosen": "a b c", "rejected": "a b d"},
}
TRAINERS: dict[str, Any] = {
    "kto": (KTOTrainer, KTOConfig),
    "bco": (DPOTrainer, DPOConfig),
    "reward": (RewardTrainer, RewardConfig),
}


def padded(prompts: list[list[int]], answers: list[list[int]], name: str = "") -> dict[str, Tensor]:
    """Rows of ids, padded on the right, which of them are a row's own, and which its answer's."""
    rows = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    longest = max(map(len, rows))
    made = {
        "input_ids": [row + [PAD] * (longest - len(row)) for row in rows],
        "attention_mask": [[1] * len(row) + [0] * (longest - len(row)) for row in rows],
        "completion_mask": [
            [0] * len(p) + [1] * len(a) + [0] * (longest - len(p) - len(a))
            for p, a in zip(prompts, answers, strict=True)
        ],
    }
    return {name + key: torch.tensor(value) for key, value in made.items()}


def whole(folder: Path, kind: str, settings: dict[str, Any]) -> Any:
    """A trainer of the models in the folder."""
    kind_of, config = TRAINERS[kind]
    off = {"use_cpu": True, "bf16": False, "report_to": "none", "gradient_checkpointing": False}
    args = config(output_dir=str(folder / "out"), **off, **settings)
    words = Dataset.from_list([WORDS[kind]] * 2)
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    tokenizer.pad_token = tokenizer.eos_token
    if kind == "reward":
        model = AutoModelForSequenceClassification.from_pretrained(folder / "reward", dtype=WIDE)
        made = kind_of(model=model, args=args, train_dataset=words, processing_class=tokenizer)
        model.config.pad_token_id = PAD
        return made
    model, reference = (AutoModelForCausalLM.from_pretrained(folder / n, dtype=WIDE) for n in ("policy", "reference"))
    return kind_of(model=model, ref_model=reference, args=args, train_dataset=words, processing_class=tokenizer)


def on_models(folder: Path) -> None:
    given = json.loads((folder / "models.json").read_text(encoding="utf-8"))
    rows, half = given["rows"], len(given["rows"]) // 2
    prompts, answers, mates = ([row[name] for row in rows] for name in ("prompt", "answer", "mate"))
    labels = torch.tensor(given["labels"], dtype=torch.bool)
    twice = prompts[:half] * 2  # pairs have one prompt
    for name, case in given["cases"].items():
        made = whole(folder, case["kind"], case["settings"])
        model: nn.Module = made.model
        model.zero_grad(set_to_none=True)
        if case["kind"] == "kto":
            batch = {**padded(prompts, answers), **padded(prompts, mates, "KL_"), "label": labels}
            loss = made._compute_loss(model, batch, return_outputs=False)
        elif case["kind"] == "bco":
            loss = made._compute_loss(model, padded(twice, answers), return_outputs=False)
        else:
            batch = {key: value for key, value in padded(twice, answers).items() if key != "completion_mask"}
            if case["margins"]:
                batch["margin"] = torch.tensor(case["margins"], dtype=WIDE)
            loss = made.compute_loss(model, batch)
        loss.backward()
        found = {n: p.grad.contiguous() for n, p in model.named_parameters() if p.grad is not None}
        save_file({"loss": loss.detach(), **found}, folder / f"result-{name}.safetensors")


if __name__ == "__main__":
    if sys.argv[1:]:
        on_models(Path(sys.argv[1]))
        sys.exit()
    losses = {"kto": kto, "bco": bco, "reward": reward}
    cases = json.load(sys.stdin)
    json.dump({name: losses[case["kind"]](case) for name, case in cases.items()}, sys.stdout)
