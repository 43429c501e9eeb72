"""Recipes are configs of their commands, and say what their commands' fields may be; so are the cells of the comparison
of algorithms, whose flags are read by the parser of the command."""

import importlib.util
import json
import re
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from espalier.assembly.rollout_run import RolloutRun
from espalier.assembly.runs import RUNS
from espalier.config.options import Parser, flat

FOLDER = Path(__file__).parent.parent / "recipes"
RECIPES = sorted(FOLDER.glob("*.yaml"))
NEEDED = ["--model", "m", "--data", "d.jsonl", "--out", "runs/x"]


def test_every_command_beside_fine_tuning_has_a_recipe() -> None:
    assert {path.stem for path in RECIPES} == RUNS.keys() - {"sft"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_a_config_of_its_command(path: Path) -> None:
    config = Parser("espalier", "", "", RUNS[path.stem]).read(["--config", str(path), *NEEDED])[0]
    said = yaml.safe_load(path.read_text(encoding="utf-8"))
    got = flat(config)
    assert said and not {"model", "data", "out"} & said.keys()
    for key, value in said.items():
        assert got[key] in (value, [value], (value,)), key


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_how_it_is_run(path: Path) -> None:
    first, *lines = path.read_text(encoding="utf-8").splitlines()
    assert first.startswith(f"# espalier {path.stem} --config recipes/{path.name} --model")
    assert all(len(line) <= 120 for line in lines)


def test_commands_in_comments_name_real_flags() -> None:
    for path in RECIPES:
        text = path.read_text(encoding="utf-8")
        for command, rest in re.findall(r"^# espalier ([\w-]+) (.*)$", text, re.M):
            flags = {"config", *flat(Parser("espalier", "", "", RUNS[command]).read(NEEDED)[0])}
            for flag in re.findall(r"--([a-z-]+)", rest):
                assert flag.replace("-", "_") in flags, (path.name, flag)


@pytest.mark.parametrize("name", ["README.md", "docs/rollouts.md", "docs/rewards.md", "docs/checks.md"])
def test_commands_in_documents_name_real_flags(name: str) -> None:
    text = (FOLDER.parent / name).read_text(encoding="utf-8").replace("\\\n", " ")
    configs = {**RUNS, "rollout": RolloutRun}
    for command, rest in re.findall(r"espalier (?:check |inspect )?([\w-]+) +(--[^#`\n]*)", text):
        if command in configs:
            flags = flat(Parser("espalier", "", "", configs[command]).read(NEEDED)[0]).keys() | {"config", "help"}
            for flag in re.findall(r"--([a-z][a-z-]+)", rest):
                assert flag.replace("-", "_") in flags, (command, flag)


# ------------------------------------------------------------------------------------------------- bench/variants.py


def _module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("variants", FOLDER.parent / "bench" / "variants.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


VARIANTS = _module()
CELLS: dict[str, tuple[str, str, list[str]]] = {**VARIANTS.CELLS, **VARIANTS.SWEEPS}


def _config(name: str) -> dict[str, Any]:
    command, kind, flags = CELLS[name]
    assert kind in ("pairs", "lists", "labels")
    argv = [*NEEDED, "--seed", "0", *VARIANTS.COMMON, "--lr", VARIANTS.RATES[command], *flags]
    return flat(Parser("espalier", "", "", RUNS[command]).read(argv)[0])


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_has_flags_of_its_command(name: str) -> None:
    assert _config(name)["lr"] == 1e-4


def test_cells_are_what_they_are_called() -> None:
    assert _config("dpo, length-normalised")["beta"] == 5
    assert _config("ipo")["ipo_average"] is False
    assert _config("f-DPO, alpha 0.5")["divergence_alpha"] == 0.5
    assert _config("f-DPO, alpha 0.5")["f_divergence"] == "alpha"
    assert len({str(sorted(_config(name).items(), key=str)) + CELLS[name][0] for name in CELLS}) == len(CELLS)


@pytest.mark.parametrize("freedom, t", [(1, 12.706), (2, 4.303), (5, 2.571), (10, 2.228), (11, 2.201), (30, 2.042)])
def test_intervals_are_of_student(freedom: int, t: float) -> None:
    assert VARIANTS.student(freedom) == pytest.approx(t, abs=5e-4)


def test_an_interval_by_hand() -> None:
    # 6 values 1..6 (hundredths): standard deviation sqrt(3.5), half width 2.571 sqrt(3.5 / 6) = 1.96
    assert VARIANTS.interval([x / 100 for x in range(1, 7)]) == "3.5 ± 2.0"


def test_what_failed_is_in_the_table(tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    for name, seed in (("sft", 0), ("dpo", 0), ("dpo", 1)):
        text = json.dumps({"accuracy": 0.5, "sampled": 0.25, "seconds": 1.0})
        (tmp_path / "cells" / f"{name}-{seed}.json").write_text(text, encoding="utf-8")
    text = VARIANTS.table(tmp_path, ["reward", "dpo", "ipo"], 3, 500)
    assert "| dpo (1 of 3 failed) | 50.0 ± 0.0 |" in text
    assert "| ipo | failed |" in text
    assert text.endswith("Reward model on held-out lists: failed.\n")


def test_a_failed_cell_fails_the_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("fine_tune", "sample"):
        monkeypatch.setattr(VARIANTS, name, lambda *_: tmp_path)
    ended = subprocess.CompletedProcess([], 2, stdout="", stderr="no such flag")
    monkeypatch.setattr(VARIANTS.subprocess, "run", lambda *_, **__: ended)
    monkeypatch.setattr("sys.argv", ["variants.py", "--out", str(tmp_path), "--seeds", "1", "--only", "dpo"])
    with pytest.raises(SystemExit, match="failed: sft, seed 0; dpo, seed 0"):
        VARIANTS.main()
    assert "| dpo | failed |" in (tmp_path / "table.md").read_text(encoding="utf-8")
