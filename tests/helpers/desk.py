"""Whole commands over judged answers on a tiny model, and what they leave."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from espalier.commands import main as cli
from espalier.loop.metrics import read_lines
from tiny import tiny_model, tiny_tokenizer

PAIRS = [{"prompt": f"{i}+{i}?", "chosen": f"{2 * i}", "rejected": f"{2 * i + 1} or so"} for i in range(12)]


def saved(folder: Path, family: str = "llama", *, seed: int = 0) -> str:
    """A tiny model on disk."""
    tiny_model(family, seed=seed).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def write(path: Path, rows: Sequence[Any]) -> str:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return str(path)


@dataclass(frozen=True)
class Left:
    """What a run left in `path`."""

    path: Path

    @property
    def lines(self) -> list[dict[str, Any]]:
        return list(read_lines(self.path / "metrics.jsonl"))

    @property
    def steps(self) -> list[dict[str, Any]]:
        return [line for line in self.lines if "loss" in line]

    @property
    def held_out(self) -> list[dict[str, Any]]:
        return [line for line in self.lines if "eval_loss" in line]

    @property
    def checks(self) -> dict[str, dict[str, Any]]:
        found = json.loads((self.path / "preflight.json").read_text())
        return {check["name"]: check for check in found["checks"]}

    @property
    def findings(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads((self.path / "findings.json").read_text())
        return found

    @property
    def rejected(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.path / "rejected.jsonl").read_text().splitlines()]

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(self.path / "model" / "model.safetensors")


class Desk:
    """Runs commands on `model`, with data and results below `folder`. `out` and `err` are what the last one said."""

    def __init__(self, folder: Path, model: str, capsys: Any):
        self.folder, self.model, self.capsys = folder, model, capsys
        self.out = self.err = ""
        self.pairs = write(folder / "pairs.jsonl", PAIRS)

    def rows(self, name: str, rows: Sequence[Any]) -> str:
        return write(self.folder / f"{name}.jsonl", rows)

    def run(self, command: str, *flags: object, data: str = "", name: str = "run", code: int = 0) -> Left:
        """A command (`dpo`, or `check dpo`) that ends with `code`."""
        out = self.folder / name
        argv = [
            *command.split(), "--model", self.model, "--data", data or self.pairs, "--out", str(out),
            "--cache", str(self.folder / "cache"), "--samples-per-step", "8", "--lr", "1e-2",
            "--save-every", "1000", *map(str, flags),
        ]  # fmt: skip
        self.command(argv, code=code)
        return Left(out)

    def command(self, argv: list[str], *, code: int = 0) -> None:
        """Any command, with these arguments alone, that ends with `code`."""
        ended = cli.main(argv)
        printed = self.capsys.readouterr()
        self.out, self.err = " ".join(printed.out.split()), " ".join(printed.err.split())
        assert ended == code, (argv, self.out[-3000:], self.err)


def logprob(model: str, prompt: str, answer: str) -> tuple[float, int]:
    """Summed log-probability and tokens of an answer with its stop token, by transformers alone."""
    tokenizer = tiny_tokenizer()
    ids = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True)["input_ids"]
    said = tokenizer(answer, add_special_tokens=False)["input_ids"] + [tokenizer.convert_tokens_to_ids("<|im_end|>")]
    policy = AutoModelForCausalLM.from_pretrained(model).eval()
    with torch.no_grad():
        logits = policy(torch.tensor([ids + said])).logits[0, len(ids) - 1 : -1].double()
    return logits.log_softmax(-1)[range(len(said)), said].sum().item(), len(said)
