"""`espalier overopt`: budget, going on where it stopped, and figures, with children that only write files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from espalier.commands.overopt import measure
from espalier.errors import ConfigError, EspalierError
from overopt_children import Children, config


def test_it_goes_on_where_it_stopped_and_writes_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings, children = config(tmp_path), Children(fails="proxy-4-beta-0-seed-0")
    with pytest.raises(EspalierError, match=r"proxy-4-beta-0-seed-0 ended with exit code 2; .*\.log says why"):
        measure(settings, children)
    first = ["proxy-2", "proxy-4", "start", "gold of start", "proxy-2-beta-0-seed-0", "gold of proxy-2-beta-0-seed-0"]
    assert children.started[:7] == [*first, "proxy-4-beta-0-seed-0"]
    earlier, children = set(children.started) - {"proxy-4-beta-0-seed-0"}, Children()
    (tmp_path / "o" / "proxy-4-beta-0-seed-0" / "checkpoints" / "step-000030").mkdir(parents=True)
    measure(settings, children)
    assert children.started[0] == "proxy-4-beta-0-seed-0" and not earlier & set(children.started)
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
    assert cell["highest_gold"]["checkpoint"].endswith("o/proxy-4-beta-0-seed-0/checkpoints/step-000030")
    # Answers 0, 1 of each prompt have the same ids, and so have 2, 3: 2 of 6 pairs.
    assert result["cells"][0]["equal"] == {"scores": 0.0, "answers": pytest.approx(1 / 3)}
    assert (tmp_path / "o" / "overopt.html").read_text().startswith("<!doctype html>")
    text = " ".join(capsys.readouterr().out.split())
    assert "over-optimisation" in text and "proxy-4, beta 0.05: " in text
    children = Children()
    measure(settings, children)
    assert children.started == []


def test_a_loophole_counts_with_its_weight(tmp_path: Path) -> None:
    """Best of 1: scores k plus 2 x 0.5 k, so 1.5 + 1.5."""
    measure(config(tmp_path, sizes=("4",), loophole=("length=2",), loophole_args=("length.target=9",)), Children())
    cells = json.loads((tmp_path / "o" / "overopt.json").read_text())["cells"]
    assert cells[1]["name"] == "proxy-4 + length=2, best of n" and cells[1]["start"]["proxy"] == 3.0


class OneInvalid(Children):
    """The first answer of the start's first prompt does not qualify, so that nothing scored it."""

    def line(self, step: int, row: int, k: int, kl: float | None) -> dict[str, Any]:
        line = super().line(step, row, k, kl)
        return {**line, "invalid": "length: empty", "parts": {}} if (step, row, k) == (0, 0, 0) else line


def test_prompts_of_which_an_answer_was_not_scored_are_left_out(tmp_path: Path) -> None:
    measure(config(tmp_path), OneInvalid())
    cell = json.loads((tmp_path / "o" / "overopt.json").read_text())["cells"][0]
    assert cell["left_out"] == 1 and [point["answers"] for point in cell["points"]] == [1.0] * 3


def test_a_gold_reward_model_is_read_from_the_answers(tmp_path: Path) -> None:
    (tmp_path / "judge").mkdir()
    children = Children()
    measure(config(tmp_path, gold=str(tmp_path / "judge")), children)
    assert not [name for name in children.started if name.startswith("gold of")]
    cells = json.loads((tmp_path / "o" / "overopt.json").read_text())["cells"]
    assert cells[0]["start"]["gold"] == 0.5


def test_other_settings_in_the_same_folder_are_refused(tmp_path: Path) -> None:
    measure(config(tmp_path), Children())
    children = Children()
    with pytest.raises(ConfigError, match=r"was made by other settings \(40 then, 50 now\)"):
        measure(config(tmp_path, steps=50), children)
    assert children.started == []


def test_the_budget_comes_first_and_may_be_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ppo.yaml").write_text("prompts_per_step: 8\ngroup_size: 2\n")
    children = Children()
    measure(config(tmp_path, plan=True, ppo=str(tmp_path / "ppo.yaml")), children)
    text = " ".join(capsys.readouterr().out.split())
    assert "20 children, 0 done, 1 at a time; time is estimated after the first policy" in text
    assert "2 proxies of 2, 4 rows, 6 in all" in text and "start: 2 prompts x 4 = 8 answers" in text
    assert "8 policies of 40 steps, 320 in all; 16 answers a step, 5,120 answers" in text
    assert children.started == [] and not (tmp_path / "o").exists()


def test_tasks_that_name_a_verifier_are_refused(tmp_path: Path) -> None:
    """Their rule would train the policy beside the proxy."""
    settings = config(tmp_path)
    Path(settings.data[0]).write_text('{"question": "1 + 1?", "answer": "2", "verifier": "numeric"}\n')
    with pytest.raises(ConfigError, match="names the verifier numeric, which would train the policy beside the proxy"):
        measure(settings, Children())


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
        measure(config(tmp_path, **given), Children())


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    settings = config(tmp_path)
    Path(settings.pairs).unlink()
    with pytest.raises(ConfigError, match="does not exist; expected a local"):
        measure(settings, Children())
