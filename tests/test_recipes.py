"""Recipes are configs of their commands, and say what their commands' fields may be."""

import re
from pathlib import Path

import pytest
import yaml

from espalier.options import Parser, flat
from espalier.runs import RUNS

FOLDER = Path(__file__).parent.parent / "recipes"
RECIPES = sorted(FOLDER.glob("*.yaml"))
NEEDED = ["--model", "m", "--data", "d.jsonl", "--out", "runs/x"]


def test_preference_commands_have_recipes() -> None:
    assert {path.stem for path in RECIPES} >= {"dpo", "simpo", "orpo", "kto", "reward", "prm"}


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
        for command, rest in re.findall(r"^# espalier (\w+) (.*)$", text, re.M):
            flags = {"config", *flat(Parser("espalier", "", "", RUNS[command]).read(NEEDED)[0])}
            for flag in re.findall(r"--([a-z-]+)", rest):
                assert flag.replace("-", "_") in flags, (path.name, flag)
