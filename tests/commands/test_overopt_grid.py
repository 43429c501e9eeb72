"""The children of `espalier overopt`: their command lines, settings, and what is finished."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from espalier.commands.overopt_grid import Job, gold_part, plan
from espalier.errors import ConfigError
from overopt_children import config


def between(argv: tuple[str, ...], flag: str) -> list[str]:
    """The values of a flag."""
    values: list[str] = []
    for text in argv[argv.index(flag) + 1 :]:
        if text.startswith("--"):
            break
        values.append(text)
    return values


def test_the_grid_has_a_cell_for_each_proxy_beta_and_seed(tmp_path: Path) -> None:
    grid = plan(config(tmp_path, loophole=("length=0.5",), loophole_args=("length.target=60",)))
    assert [job.folder.name for job in grid.proxies] == ["proxy-2", "proxy-4"]
    labels = [cell.job.folder.name for cell in grid.cells]
    assert len(labels) == len(set(labels)) == 3 * 2 * 2
    assert labels[2] == "proxy-4-loophole-beta-0-seed-0" and grid.cells[2].proxy == "proxy-4 + length=0.5"
    argv = grid.cells[2].job.argv
    # Without a penalty a beta that is next to nothing loads the reference. Gold is nowhere.
    assert between(argv, "--reward") == ["length=0.5"] and between(argv, "--reward-args") == ["length.target=60"]
    assert between(argv, "--reward-model") == [str(tmp_path / "o" / "proxy-4")]
    assert between(argv, "--beta") == ["1e-9"] and "numeric" not in " ".join(argv)
    assert between(grid.cells[-1].job.argv, "--beta") == ["0.05"] and grid.cells[-1].seed == 1
    assert "--reward" not in grid.cells[0].job.argv


def test_gold_grades_what_every_child_stored(tmp_path: Path) -> None:
    grid = plan(config(tmp_path, gold_args=("numeric.tolerance=0.1",)))
    start, gold = grid.start
    assert between(start.argv, "--reward-model") == [f"{tmp_path}/o/proxy-2=0", f"{tmp_path}/o/proxy-4"]
    assert between(gold.argv, "--regrade") == [str(start.folder)] and between(gold.argv, "--reward") == ["numeric"]
    assert between(gold.argv, "--reward-args") == ["numeric.tolerance=0.1"]
    assert gold.folder == tmp_path / "o" / "gold" / "start"
    for cell in grid.cells:
        assert cell.gold is not None and between(cell.gold.argv, "--regrade") == [str(cell.job.folder)]
    proxies, rest = grid.stages
    assert [len(chain) for chain in proxies] == [1, 1] and [len(chain) for chain in rest] == [2] * 9
    marks = [job.mark for job in grid.jobs]
    assert len(marks) == len(set(marks)) == 20


def test_a_gold_reward_model_scores_along_with_weight_0(tmp_path: Path) -> None:
    gold = tmp_path / "judge" / "model"
    gold.mkdir(parents=True)
    settings = config(tmp_path, gold=str(gold))
    grid = plan(settings)
    assert f"{gold}=0" in grid.cells[0].job.argv and f"{gold}=0" in grid.start[0].argv
    assert grid.cells[0].gold is None and len(grid.start) == 1
    assert gold_part(settings) == "judge"


def test_the_start_answers_by_the_settings_of_the_policies(tmp_path: Path) -> None:
    """Of a policy's file, what `rollout` knows: the template and how answers are drawn, not the learning rate."""
    ppo = tmp_path / "ppo.yaml"
    ppo.write_text(
        "lr: 1.0e-4\nmax_tokens: 60\ntemplate: plain\ngroup_size: 2\nprompts_per_step: 8\nmerge_turns: true\n"
        "columns: [prompt=question]\neval_fraction: 0.1\n"
    )
    grid = plan(config(tmp_path, ppo=str(ppo)))
    start = grid.start[0].argv
    assert between(start, "--max-tokens") == ["60"] and between(start, "--template") == ["plain"]
    assert "--merge-turns" in start and between(start, "--columns") == ["prompt=question"]
    assert "--lr" not in start and "--eval-fraction" not in start
    assert start.count("--group-size") == 1 and between(start, "--group-size") == ["4"]
    assert between(grid.cells[0].job.argv, "--config") == [str(ppo)]


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("ppo", "reward: [gsm8k]", "ppo.yaml:1: reward: the grid decides reward; leave it out of the file of --ppo"),
        ("ppo", "lr: 0.1\nsteps: 3", "ppo.yaml:2: steps: the grid decides steps"),
        ("ppo", "kl_band: adapt", "kl_band adapt or stop changes beta"),
        ("ppo", "rl: 0.1", "no such key"),
        ("reward", "data: x", "reward.yaml:1: data: the grid decides data; leave it out of the file of --reward"),
        ("reward", "lr: fast", "lr: got 'fast', expected a number"),
    ],
)
def test_files_of_settings_are_read_before_anything_starts(tmp_path: Path, key: str, text: str, message: str) -> None:
    path = tmp_path / f"{key}.yaml"
    path.write_text(text + "\n")
    with pytest.raises(ConfigError, match=message):
        plan(config(tmp_path, **{key: str(path)}))


def job(tmp_path: Path, **given: Any) -> Job:
    out = tmp_path / "o"
    argv = ("ppo", "--out", str(out / "a"), "--steps", "40")
    return Job("a", argv, out / "a", out / "children" / "a.json", (tmp_path / "p.yaml",), **given)


def exported(own: Job) -> None:
    (own.folder / "model").mkdir(parents=True)
    (own.folder / "model" / "adapter_config.json").write_text("{}")


def test_a_child_is_finished_by_its_own_file(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("lr: 1\n")
    own = job(tmp_path)
    assert not own.done
    own.write(finished=False)
    assert not own.done
    own.write(finished=True)
    assert not own.done
    exported(own)
    assert own.done and own.log.name == "a.log"
    # A file that a kill cut in two is no answer.
    own.mark.write_text(own.mark.read_text()[:-9])
    assert not own.done


def test_a_child_of_other_settings_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("lr: 1\n")
    own = job(tmp_path)
    own.write(finished=False)
    other = replace(own, argv=(*own.argv[:-1], "80"))
    with pytest.raises(ConfigError, match=r"made by other settings \(40 then, 80 now\); put them back, or choose"):
        _ = other.done
    with pytest.raises(ConfigError, match=r"nothing then, --seed now"):
        _ = replace(own, argv=(*own.argv, "--seed", "1")).done
    (tmp_path / "p.yaml").write_text("lr: 2\n")
    with pytest.raises(ConfigError, match=r"p.yaml had another content"):
        _ = own.done


def test_a_grid_may_be_moved(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("lr: 1\n")
    own = job(tmp_path)
    own.write(finished=True)
    exported(own)
    (tmp_path / "o").rename(tmp_path / "elsewhere")
    moved = tmp_path / "elsewhere"
    argv = ("ppo", "--out", str(moved / "a"), "--steps", "40")
    assert replace(own, argv=argv, folder=moved / "a", mark=moved / "children" / "a.json").done


@pytest.mark.parametrize("changed", ["t.jsonl", "m/model.safetensors", "rules.py"])
def test_a_child_of_other_tasks_weights_or_rules_is_refused(tmp_path: Path, changed: str) -> None:
    (tmp_path / "m").mkdir()
    for name in ("t.jsonl", "m/model.safetensors", "rules.py"):
        (tmp_path / name).write_text("before")
    rules = (f"{tmp_path}/rules.py:longer=0.5",)
    settings = config(tmp_path, model=str(tmp_path / "m"), data=(f"{tmp_path}/t.jsonl",), loophole=rules)
    cell = plan(settings).cells[2].job
    cell.write(finished=True)
    assert plan(settings).cells[2].job.settings() == cell.settings()
    (tmp_path / changed).write_text("something else")
    with pytest.raises(ConfigError, match=f"{changed.split('/')[-1]} had another content"):
        _ = plan(settings).cells[2].job.done
