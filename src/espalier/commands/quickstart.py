"""The quickstart: the embedded base model learns to answer in chat, on this machine, in minutes."""

from __future__ import annotations

import time
from importlib import resources
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from espalier.assembly.answer import Chatter
from espalier.assembly.runs import RUNS
from espalier.commands.train import train
from espalier.config.sections import DataConfig, LoopConfig, ModelConfig, OptimConfig, QuickstartConfig
from espalier.errors import ConfigError
from espalier.toy import Problem, Score, problems, score, write_instructions

ROWS = 1500
TESTED = 200
SHOWN = 3
MAX_TOKENS = 160


def run(config: QuickstartConfig) -> None:
    """Run the quickstart."""
    quickstart(config)


def quickstart(config: QuickstartConfig) -> dict[str, float]:
    """Write instruction data, score the base both ways, fine-tune, score again, show answers before and after.

    Returns the accuracies: `base_text`, `base_chat`, `sft_chat`.
    """
    console = Console(highlight=False)
    out = Path(config.out)
    _refuse_foreign(out)
    base = str(resources.files("espalier").joinpath("embedded", "model"))
    data = out.parent / f"{out.name}-data" / "instructions.jsonl"
    data.parent.mkdir(parents=True, exist_ok=True)
    counts = write_instructions(data, ROWS, seed=config.seed)
    noisy = ROWS - counts["clean"]
    console.print(f"{ROWS:,} instruction rows in {data}, {noisy:,} of them noisy as real ones are", markup=False)
    unseen = problems(TESTED, seed=config.seed, split="test")
    console.print(f"Scoring the base model on {TESTED} problems that nothing was trained on ...")
    before = Chatter.load(ModelConfig(model=base, template="plain"))
    as_text = _score(before, unseen, chat=False)
    as_chat = _score(before, unseen, chat=True)
    began = time.monotonic()
    model = train(
        RUNS["sft"](
            model=ModelConfig(model=base, template="plain"),
            data=DataConfig(data=(str(data),), eval_fraction=0.05),
            loop=LoopConfig(out=config.out, epochs=2, samples_per_step=16, seed=config.seed, overwrite=True),
            optim=OptimConfig(lr=1e-3, weight_decay=0.01),
        )
    )
    minutes = (time.monotonic() - began) / 60
    after = Chatter.load(ModelConfig(model=str(model)))
    tuned = _score(after, unseen, chat=True)
    _show(console, unseen, as_chat, tuned)
    table = Table(box=None, padding=(0, 3, 0, 0))
    for name in ("model", "asked", "right answers", "answers with ####"):
        table.add_column(name)
    for row in (
        ("base", "to go on with its own text", as_text),
        ("base", "in chat", as_chat),
        ("tuned", "in chat", tuned),
    ):
        table.add_row(row[0], row[1], f"{row[2].accuracy:.1%}", f"{row[2].marked:.1%}")
    console.print(table)
    console.print(
        f"\nExact match on {TESTED} unseen problems; fine-tuned in {minutes:.1f} minutes. {model} is a plain Hugging "
        f"Face directory. Ask it something:\nespalier sample --model {model} --prompt {unseen[0].question!r}",
        markup=False, soft_wrap=True,
    )  # fmt: skip
    return {"base_text": as_text.accuracy, "base_chat": as_chat.accuracy, "sft_chat": tuned.accuracy}


def _refuse_foreign(out: Path) -> None:
    """An earlier quickstart is replaced; any other run is left alone. Raises ConfigError for that."""
    config = out / "run.yaml"
    if config.exists() and "instructions.jsonl" not in config.read_text(encoding="utf-8"):
        raise ConfigError(f"out: {out} holds a run that is no quickstart's; choose another folder", key="out")


def _score(chatter: Chatter, unseen: list[Problem], *, chat: bool) -> Score:
    def generate(prompts: list[str]) -> list[str]:
        return chatter.answer(prompts, chat=chat, max_tokens=MAX_TOKENS)

    return score(generate, unseen, style="chat" if chat else "text")


def _show(console: Console, unseen: list[Problem], before: Score, after: Score) -> None:
    for item, old, new in list(zip(unseen, before.responses, after.responses, strict=True))[:SHOWN]:
        console.print(Text(f"\n{item.question}", style="bold"))
        for name, said in (("before", old), ("after ", new)):
            console.print(Text(f"  {name}  {' / '.join(said.strip().splitlines())[:300]}"))
        console.print(Text(f"  right   {item.answer}", style="dim"))
    console.print()
