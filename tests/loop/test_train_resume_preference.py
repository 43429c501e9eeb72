"""Runs that learn from judged answers, killed and resumed: what moves beside the policy goes on, too."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from desk import Left
from espalier.engines.reference import FILE
from espalier.loop.checkpoint import step_name, steps
from runs import Place, assert_same, lines


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("resume"))
    with open(made.folder / "pairs.jsonl", "w") as file:
        for i in range(24):
            row = {"prompt": f"{i}+{i}, what is it?", "chosen": f"{2 * i}", "rejected": f"{2 * i + 1} or so"}
            file.write(json.dumps(row) + "\n")
    with open(made.folder / "labels.jsonl", "w") as file:
        for i in range(24):
            file.write(json.dumps({"prompt": f"{i}+{i}?", "response": f"{2 * i + i % 2}", "label": i % 2 == 0}) + "\n")
    yield made
    made.close()


COMMANDS = {
    "dpo, moving reference": (
        *("dpo", "--sync-every", "2", "--sync-alpha", "0.5", "--tokens-per-microbatch", "128", "--samples-per-step"),
        "12",
    ),
    "dpo, precomputed": (
        *("dpo", "--reference", "precomputed", "--samples-per-step", "12", "--tokens-per-microbatch", "128"),
        *("--max-pairs", "1", "--flip", "0.2"),
    ),
    "bco, moving delta": ("bco", "--samples-per-step", "6", "--tokens-per-microbatch", "64"),
    "kto, mates": ("kto", "--samples-per-step", "6", "--tokens-per-microbatch", "64"),
}
KILLS: dict[str, list[Any]] = {
    "between micro-batches": ["in_step", 5, 1],
    "a move, before its save": ["after", "espalier.loop.train:Trainer._sync", 6],
    "a save: no manifest": ["before", "espalier.loop.checkpoint:_write_manifest", 3],
    "annotated, before its forward": ["before", "espalier.engines.learner:TorchLearner.forward_backward", 6],
}


def argv(place: Place, run: Path, name: str, *more: str) -> list[str]:
    command, *flags = COMMANDS[name]
    data = place.folder / ("pairs.jsonl" if command == "dpo" else "labels.jsonl")
    held = ("--eval-data", str(data)) if "--flip" in flags else ("--eval-fraction", "0.2")  # held-out rows never flip
    return [
        *(command, "--model", str(place.model), "--data", str(data), "--cache", str(place.folder / "cache")),
        *("--out", str(run), "--epochs", "2", "--lr", "1e-2", "--save-every", "3", *held),
        *("--eval-every", "2", *flags, *more),
    ]


def whole(place: Place, name: str) -> Path:
    run = place.folder / name
    if not run.exists():
        ended = place.command(argv(place, run, name))
        assert ended.code == 0, ended
    return run


@pytest.mark.parametrize(
    ("name", "kill"),
    [
        *(("dpo, moving reference", kill) for kill in KILLS),
        ("dpo, precomputed", "between micro-batches"),
        ("bco, moving delta", "between micro-batches"),
        ("bco, moving delta", "annotated, before its forward"),
        ("kto, mates", "between micro-batches"),
    ],
)
def test_killed_and_resumed_is_never_killed(place: Place, tmp_path: Path, name: str, kill: str) -> None:
    never, run = whole(place, name), tmp_path / "run"
    killed = place.command(argv(place, run, name), KILLS[kill])
    assert killed.code == -signal.SIGKILL, killed
    assert not (run / "model").exists() and 0 < len(lines(run)) < len(lines(never))
    resumed = place.command(argv(place, run, name, "--resume"))
    assert resumed.code == 0 and "resumed from step-00000" in resumed.out, resumed
    assert_same(run, never)
    assert (run / "findings.json").read_bytes() == (never / "findings.json").read_bytes()
    assert (run / "preflight.json").read_bytes() == (never / "preflight.json").read_bytes()


def test_what_moves_did_move(place: Place) -> None:
    """Or else the above compared nothing."""
    moving = whole(place, "dpo, moving reference")
    assert all((moving / "checkpoints" / step_name(s) / FILE).is_file() for s in steps(moving / "checkpoints"))
    margins = [line["margin"] for line in lines(moving) if "lr" in line]
    assert len(margins) >= 6 and margins[0] == 0 and abs(margins[2]) < abs(margins[1])
    deltas = [line["delta"] for line in lines(whole(place, "bco, moving delta")) if "lr" in line]
    assert deltas[0] == 0 and len(set(deltas)) == len(deltas)
    kls = {line["kl"] for line in lines(whole(place, "kto, mates")) if "lr" in line}
    assert len(kls) > 2, "the reference point stayed where it was"


def test_findings_are_the_same_after_a_resume(place: Place, tmp_path: Path) -> None:
    few = place.folder / "few.jsonl"
    few.write_text("".join((place.folder / "pairs.jsonl").read_text().splitlines(keepends=True)[:4]))
    flags = [
        *(
            "dpo",
            "--model",
            str(place.model),
            "--data",
            str(few),
            "--cache",
            str(place.folder / "cache"),
            "--lr",
            "1e-2",
        ),
        *("--epochs", "50", "--beta", "1", "--samples-per-step", "8", "--save-every", "15"),
    ]
    never, run = tmp_path / "never", tmp_path / "run"
    assert place.command([*flags, "--out", str(never)]).code == 0
    found = Left(never).findings
    kinds = {f["kind"]: f["step"] for f in found}
    assert "memorised" in kinds and kinds["memorised"] < 44, found
    assert place.command([*flags, "--out", str(run)], ["in_step", 44, 0]).code == -signal.SIGKILL
    assert not (run / "findings.json").exists()
    resumed = place.command([*flags, "--out", str(run), "--resume"])
    assert resumed.code == 0 and Left(run).findings == found
    said = " ".join(resumed.out.split())
    assert all((" ".join(f["text"].split()) in said) == (f["step"] > 30) for f in found), "said once more"
    assert lines(run) == lines(never)
