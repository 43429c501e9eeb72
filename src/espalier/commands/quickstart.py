"""The quickstart: the embedded base model learns to answer in chat, on this machine, in minutes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from espalier.assembly.answer import Chatter
from espalier.assembly.runs import RUNS, RunConfig
from espalier.commands.train import train
from espalier.config.sampling import SamplingConfig
from espalier.config.sections import DataConfig, LoopConfig, ModelConfig, OptimConfig, QuickstartConfig
from espalier.errors import ConfigError
from espalier.loop.terminal import Terminal
from espalier.toy import Problem, Score, problems, score, write_instructions

ROWS = 1500
TESTED = 200
SHOWN = 3
MAX_TOKENS = 160


def run(config: QuickstartConfig) -> None:
    """Run the quickstart."""
    quickstart(config)


def quickstart(config: QuickstartConfig) -> dict[str, float]:
    """Write instruction data, score the base model in text and in chat, fine-tune, score again, and show answers
    before and after.

    Returns the accuracies: `base_text`, `base_chat`, `sft_chat`. Raises ConfigError if the run directory holds a run
    that is not a quickstart.
    """
    console = Terminal(highlight=False)
    out = Path(config.out)
    _refuse_other_runs(out)
    data = _write_data(out, config.seed, console)
    unseen = problems(TESTED, seed=config.seed, split="test")
    console.print(f"Scoring the base model on {TESTED} problems that it has not seen ...")
    base = ModelConfig(model=str(resources.files("espalier").joinpath("embedded", "model")), template="plain")
    before = Chatter.load(base)
    base_text = _score(before, unseen, chat=False)
    base_chat = _score(before, unseen, chat=True)
    began = time.monotonic()
    model = train(_recipe(config, base, data))
    minutes = (time.monotonic() - began) / 60
    sft_chat = _score(Chatter.load(ModelConfig(model=str(model))), unseen, chat=True)
    _show_answers(console, unseen, base_chat, sft_chat)
    _show_scores(
        console,
        {
            ("base", "to continue its own text"): base_text,
            ("base", "in chat"): base_chat,
            ("fine-tuned", "in chat"): sft_chat,
        },
    )
    result = f"Exact match on {TESTED} unseen problems; fine-tuned in {minutes:.1f} minutes."
    next_step = f"espalier sample --model {model} --prompt {unseen[0].question!r}"
    text = f"\n{result} {model} is a plain Hugging Face directory. Ask it something:\n{next_step}"
    console.print(text, markup=False, soft_wrap=True)
    return {
        "base_text": base_text.accuracy,
        "base_chat": base_chat.accuracy,
        "sft_chat": sft_chat.accuracy,
    }


def _refuse_other_runs(out: Path) -> None:
    """An earlier quickstart is replaced; any other run is left alone. Raises ConfigError for that."""
    config = out / "run.yaml"
    # The data's file name is the mark of a quickstart.
    if config.exists() and "instructions.jsonl" not in config.read_text(encoding="utf-8"):
        raise ConfigError(f"out: {out} holds a run that is not a quickstart; choose another folder", key="out")


def _write_data(out: Path, seed: int, console: Console) -> Path:
    """Instruction rows, in a folder beside the run directory."""
    data = out.parent / f"{out.name}-data" / "instructions.jsonl"
    data.parent.mkdir(parents=True, exist_ok=True)
    counts = write_instructions(data, ROWS, seed=seed)
    noisy = ROWS - counts["clean"]
    console.print(f"{ROWS:,} instruction rows in {data}, {noisy:,} of them noisy, like real data", markup=False)
    return data


def _recipe(config: QuickstartConfig, base: ModelConfig, data: Path) -> RunConfig:
    return RUNS["sft"](
        model=base,
        data=DataConfig(data=(str(data),), eval_fraction=0.05),
        loop=LoopConfig(out=config.out, epochs=2, samples_per_step=16, seed=config.seed, overwrite=True),
        optim=OptimConfig(lr=1e-3, weight_decay=0.01),
    )


def _score(chatter: Chatter, unseen: list[Problem], *, chat: bool) -> Score:
    def generate(prompts: list[str]) -> list[str]:
        return chatter.answer(prompts, SamplingConfig(max_tokens=MAX_TOKENS, temperature=0.0), chat=chat)

    return score(generate, unseen, style="chat" if chat else "text")


def _show_answers(console: Console, unseen: list[Problem], before: Score, after: Score) -> None:
    """The first problems with the answers of both models."""
    triples = list(zip(unseen, before.responses, after.responses, strict=True))
    for item, old, new in triples[:SHOWN]:
        console.print(Text(f"\n{item.question}", style="bold"))
        console.print(Text(f"  before  {_one_line(old)}"))
        console.print(Text(f"  after   {_one_line(new)}"))
        console.print(Text(f"  right   {item.answer}", style="dim"))
    console.print()


def _one_line(response: str) -> str:
    return " / ".join(response.strip().splitlines())[:300]


def _show_scores(console: Console, scores: Mapping[tuple[str, str], Score]) -> None:
    """A table of the scores of each (model, how it was asked)."""
    table = Table(box=None, padding=(0, 3, 0, 0))
    for name in ("model", "asked", "right answers", "answers with ####"):
        table.add_column(name)
    for (model, asked), result in scores.items():
        table.add_row(model, asked, f"{result.accuracy:.1%}", f"{result.marked:.1%}")
    console.print(table)
