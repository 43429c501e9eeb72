"""`espalier overopt`: plan, budget, going on where it stopped, and figures, with children that only write files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from espalier.commands import overopt
from espalier.config.overopt_section import OveroptConfig
from espalier.errors import ConfigError, EspalierError


def config(tmp_path: Path, **given: Any) -> OveroptConfig:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(f'{{"n": {n}}}\n\n' for n in range(5)))
    fields: dict[str, Any] = {
        "model": "m", "data": ("t.jsonl",), "pairs": str(pairs), "gold": "numeric", "out": str(tmp_path / "o"),
        "sizes": ("2", "4"), "seeds": 2, "steps": 40, "best_of": 4, "prompts": 2, "resamples": 20, **given,
    }  # fmt: skip
    return OveroptConfig(**fields)


def test_the_grid_has_a_cell_for_each_proxy_beta_and_seed(tmp_path: Path) -> None:
    grid = overopt.plan(config(tmp_path, loophole=("length=0.5",), loophole_args=("length.target=60",)))
    assert [job.folder.name for job in grid.proxies] == ["proxy-2", "proxy-4"]
    labels = [cell.job.folder.name for cell in grid.cells]
    assert len(labels) == len(set(labels)) == 3 * 2 * 2
    assert labels[2] == "proxy-4-loophole-beta-0-seed-0"
    argv = list(grid.cells[2].job.argv)
    # Gold has weight 0; without a penalty a beta that is next to nothing loads the reference.
    rewards = argv[argv.index("--reward") + 1 : argv.index("--reward-model")]
    assert rewards == ["numeric=0", "length=0.5"]
    assert argv[argv.index("--beta") + 1] == "1e-9" and "length.target=60" in argv
    assert grid.cells[2].proxy == "proxy-4 + length=0.5"
    assert "0.05" in grid.cells[-1].job.argv and grid.cells[-1].seed == 1
    assert grid.start is not None
    start = list(grid.start.argv)
    assert start[start.index("--reward") + 1 : start.index("--reward-model")] == ["numeric=0", "length=0"]
    assert start[start.index("--reward-model") + 1].endswith("proxy-2=0")


def test_a_gold_reward_model_weighs_nothing_either(tmp_path: Path) -> None:
    gold = tmp_path / "judge" / "model"
    gold.mkdir(parents=True)
    made = config(tmp_path, gold=str(gold))
    argv = list(overopt.plan(made).cells[0].job.argv)
    assert "--reward" not in argv and f"{gold}=0" in argv
    assert overopt.gold_name(made) == "judge"
    assert overopt.gold_name(config(tmp_path, gold="rules.py:right")) == "right"


class Children:
    """Children that write what theirs would; `fails` is the name of one that does not."""

    def __init__(self, fails: str = "") -> None:
        self.fails, self.started = fails, [""][:0]

    def __call__(self, argv: Sequence[str], log: Path) -> int:
        out = Path(argv[argv.index("--out") + 1])
        self.started.append(out.name)
        if out.name == self.fails:
            return 2
        out.mkdir(parents=True, exist_ok=True)
        if argv[0] == "reward":
            rows = Path(argv[argv.index("--data") + 1]).read_text().splitlines()
            assert len(rows) == int(out.name.partition("-")[2])
        if argv[0] == "rollout":
            lines = [self.line(0, row, k, None) for row in range(2) for k in range(4)]
        else:
            lines = [self.line(step, step % 3, k, 0.01 * step) for step in range(1, 41) for k in range(2)]
        if argv[0] != "reward":
            (out / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        if argv[0] != "rollout":
            (out / "model").mkdir(exist_ok=True)
            (out / "model" / "config.json").write_text("{}")
        return 0

    def line(self, step: int, row: int, k: int, kl: float | None) -> dict[str, Any]:
        parts = {"numeric": float(k % 2), "proxy-2": 0.1 * step + k, "proxy-4": 0.2 * step + k}
        task = {"row": row, "source": "s", "line": 1}
        scored = {"score": parts["proxy-4"], "parts": parts, "error": "", "kl": kl, "length": 5}
        return {"step": step, "task": task, **scored}


def test_it_goes_on_where_it_stopped_and_writes_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, children = config(tmp_path), Children(fails="proxy-4-beta-0-seed-0")
    monkeypatch.setattr(overopt, "launch", children)
    with pytest.raises(EspalierError, match=r"proxy-4-beta-0-seed-0 ended with exit code 2; .*\.log says why"):
        overopt.run(made)
    assert children.started == ["proxy-2", "proxy-4", "start", "proxy-2-beta-0-seed-0", "proxy-4-beta-0-seed-0"]
    children.fails, children.started = "", []
    overopt.run(made)
    assert children.started[0] == "proxy-4-beta-0-seed-0" and len(children.started) == 7
    result = json.loads((tmp_path / "o" / "overopt.json").read_text())
    names = [cell["name"] for cell in result["cells"]]
    assert names == [
        *("proxy-2, best of n", "proxy-4, best of n"),
        *("proxy-2, beta 0", "proxy-4, beta 0", "proxy-2, beta 0.05", "proxy-4, beta 0.05"),
    ]
    cell = result["cells"][3]
    assert (cell["seeds"], len(cell["points"])) == (2, 8)
    # Scores k of 0 to 3 have the mean 1.5, golds 0.5; steps 31 to 40 have the KL 0.01 x 5 x 35.5.
    assert cell["start"] == {"proxy": 1.5, "gold": 0.5}
    assert cell["points"][3]["kl"] == pytest.approx(0.05 * 35.5)
    assert (tmp_path / "o" / "overopt.html").read_text().startswith("<!doctype html>")
    children.started = []
    overopt.run(made)
    assert children.started == []


def test_the_budget_comes_first_and_may_be_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overopt.run(config(tmp_path, plan=True))
    text = " ".join(capsys.readouterr().out.split())
    assert "11 children, 0 done: 2 proxies of 2, 4 rows, 2 x 4 answers of the start, 8 policies of 40 steps" in text
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sizes": ("2", "9")}, "sizes: got 9, but .* has 5 rows; give fewer"),
        ({"sizes": ("x",)}, "sizes: got 'x', expected numbers"),
        ({"sizes": ("0",)}, "sizes: got 0, expected whole numbers above 0"),
        ({"betas": ("0", "0.0")}, "betas: got 0, 0.0, expected different numbers"),
        ({"betas": ("-1",)}, "betas: got -1, expected numbers of at least 0"),
        ({"loophole_args": ("length.target=3",)}, "loophole_args is given, but there is no loophole"),
    ],
)
def test_settings_without_sense_are_refused(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        overopt.run(config(tmp_path, **given))


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    made = config(tmp_path)
    Path(made.pairs).unlink()
    with pytest.raises(ConfigError, match="does not exist; expected a local"):
        overopt.run(made)
