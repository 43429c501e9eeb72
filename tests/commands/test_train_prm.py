"""Whole runs of `espalier prm` on a tiny model: steps that are learned, judged, compared and read back."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from espalier.commands import main as cli
from espalier.errors import ConfigError
from scoring import Place, Rows, solutions, step, steps_of, workbench


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    made = Place(tmp_path_factory.mktemp("steps"))
    made.data("train", solutions(200, 0))
    made.data("held", solutions(80, 1, "h", each=4))
    return made


def files(place: Place, *names: str) -> list[str]:
    return [str(place.folder / f"{name}.jsonl") for name in names]


def flags(place: Place, data: str = "train") -> list[str]:
    return ["--data", *files(place, data), "--eval-data", *files(place, "held")]


@pytest.fixture(scope="module")
def trained(place: Place) -> Path:
    return place.run("prm", "trained", *flags(place), "--epochs", "6", checks=True)


def test_first_mistakes_are_found_and_the_workbench_is_whole(trained: Path, place: Place) -> None:
    made = steps_of(trained)
    assert made[0]["cross_entropy"] > 0.5 and made[-1]["cross_entropy"] < 0.3 and made[-1]["loss"] < made[0]["loss"]
    found = workbench(trained)
    assert found.keys() == {"counts", "first_error", "tuned", "steps", "solutions", "intervals"}
    held = [json.loads(line) for line in Path(files(place, "held")[0]).read_text().splitlines()]
    bad = sum(row["mistake_index"] is not None for row in held)
    counts = found["counts"]
    assert (counts["problems"], counts["solutions"], counts["first_mistakes"], counts["bad"]) == (20, 80, 80, bad)
    assert found["first_error"]["accuracy"]["value"] > 0.9 and found["first_error"]["f1"]["value"] > 0.9
    assert found["steps"]["ece"] < 0.2 and found["steps"]["f1"]["value"] > 0.9
    assert found["solutions"].keys() == {"product", "min", "last", "mean"}
    assert found["solutions"]["min"]["auc"]["value"] > 0.95
    config = json.loads((trained / "model" / "config.json").read_text())
    assert config["espalier_head"] == "steps" and config["architectures"] == ["LlamaForSequenceClassification"]
    assert (trained / "workbench.html").read_text().count("<svg") == 2, "reliability and first mistakes"


def test_an_exported_model_says_the_same_when_it_is_judged_alone(place: Place, trained: Path) -> None:
    again = place.run("prm", "again", "--data", *files(place, "held"), "--eval-only", model=str(trained / "model"))
    one, other = workbench(again), workbench(trained)
    assert one["counts"] == other["counts"] and one["first_error"] == other["first_error"]
    for key in ("accuracy", "f1", "ece"):
        x, y = one["steps"][key], other["steps"][key]
        assert x == pytest.approx(y, abs=1e-5), key
    assert not (again / "model").exists()


def test_another_head_is_not_read_at_steps(place: Place) -> None:
    argv = ("--data", *files(place, "held"), "--eval-only", "--overwrite")
    with pytest.raises(ConfigError, match=r"no scalar head.*expected a model that `espalier prm` trained"):
        cli.main(["--debug", *place.argv("prm", "refused", *argv)])
    rows: Rows = [{"prompt": "p", "chosen": "a", "rejected": "b"}, {"prompt": "q", "chosen": "a", "rejected": "b"}]
    whole = place.run("reward", "whole", "--data", place.data("two", rows), "--steps", "1", "--calibrate-on", "none")
    with pytest.raises(ConfigError, match=r"head of 1 dimensions \(nameless, response\); this run asks for .*steps"):
        cli.main(["--debug", *place.argv("prm", "refused", *argv, model=str(whole / "model"))])


# ------------------------------------------------------------------------------------------------- what labels count as


def labelled(count: int, seed: int) -> Rows:
    """Solutions whose steps all have labels, those behind a mistake, too; a step that begins with d is neutral."""
    rng, rows = random.Random(seed), Rows()
    for number in range(count):
        steps = [step(rng, bad=rng.random() < 0.3) for _ in range(4)]
        labels = ["bad" if "x" in s else "neutral" if s[0] == "d" else "good" for s in steps]
        rows.append({"prompt": f"l{number}", "steps": steps, "labels": labels, "solved": "bad" not in labels})
    return rows


def graded(rows: Rows, label: Callable[[str], float], behind: float | str | None) -> tuple[int, int]:
    """How many steps are good, and how many bad, by hand. behind: what steps behind a first bad one count as."""
    good = bad = 0
    for row in rows:
        seen = False
        for name in row["labels"]:
            value: float | None = label(name)
            if seen and behind != "keep":
                value = behind if isinstance(behind, float) else None
            good, bad = good + (value == 1.0), bad + (value == 0.0)
            seen = seen or value == 0.0
    return good, bad


OPTIONS: dict[str, tuple[tuple[str, ...], Any, Any]] = {
    "neutral good, behind ignored": ((), {"good": 1.0, "neutral": 1.0, "bad": 0.0}, None),
    "neutral bad": (("--neutral", "bad"), {"good": 1.0, "neutral": 0.0, "bad": 0.0}, None),
    "neutral ignored, behind kept": (
        ("--neutral", "ignore", "--after-mistake", "keep"),
        {"good": 1.0, "neutral": None, "bad": 0.0},
        "keep",
    ),
    "neutral half, behind bad": (
        ("--neutral", "half", "--after-mistake", "bad"),
        {"good": 1.0, "neutral": 0.5, "bad": 0.0},
        0.0,
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_labels_count_as_asked(place: Place, name: str) -> None:
    more, values, behind = OPTIONS[name]
    rows = labelled(60, 4)
    data = place.data("labelled", rows)
    run = place.run("prm", name.replace(" ", "-"), "--data", data, "--eval-data", data, "--steps", "2", *more)
    counts = workbench(run)["counts"]
    assert (counts["good"], counts["bad"]) == graded(rows, values.__getitem__, behind)


@pytest.mark.parametrize(
    ("more", "good", "bad"),
    [
        (("--supervision", "outcome"), 4, 4),
        (("--supervision", "outcome", "--outcome", "last"), 1, 1),
        ((), 4, 4),  # nothing but an outcome is known
    ],
)
def test_an_outcome_is_spread_or_stands_at_the_end(place: Place, more: tuple[str, ...], good: int, bad: int) -> None:
    rows = [{"prompt": f"o{i}", "steps": ["ab", "cd", "dd", f"c{i}"], "solved": i % 2 == 0} for i in range(8)]
    data = place.data("outcomes", rows)
    run = place.run("prm", f"outcome-{len(more)}", "--data", data, "--eval-data", data, "--steps", "2", *more)
    counts = workbench(run)["counts"]
    assert (counts["good"], counts["bad"], counts["outcomes"]) == (4 * good, 4 * bad, 8)


# ------------------------------------------------------------------------------------------- beside an outcome model


def test_an_outcome_model_is_compared_on_the_same_solutions(place: Place, trained: Path) -> None:
    """A reward model of whole solutions, trained on the same text: x anywhere is worse."""
    rng = random.Random(5)

    def whole(wrong: int | None) -> str:
        return "\n".join(step(rng, bad=i == wrong) for i in range(4))

    rows: Rows = [{"prompt": f"w{i}", "chosen": whole(None), "rejected": whole(rng.randrange(4))} for i in range(160)]
    outcome = place.run("reward", "outcome", "--data", place.data("wholes", rows), "--steps", "30")
    more = ("--data", *files(place, "held"), "--eval-only", "--outcome-model", str(outcome / "model"))
    run = place.run("prm", "beside", *more, model=str(trained / "model"))
    found = workbench(run)["against_outcome"]
    assert found["judges"].keys() == {"outcome", "product", "min", "last", "mean"}
    assert found["problems"] + found["left_out"] == 20
    page = (run / "workbench.html").read_text()
    assert page.count("<svg") == 3 and "product minus outcome" in page and "<script" not in page
    judges = found["judges"]
    assert judges["outcome"]["auc"]["value"] > 0.9 and judges["min"]["auc"]["value"] > 0.95
    assert found["gains"].keys() == {"product", "min", "last", "mean"}
    for name in ("outcome", "min"):
        points = judges[name]["best_of_n"]
        assert points[0]["value"] == pytest.approx(found["random"]) and points[-1]["value"] > found["random"] + 0.1
        assert points[-1]["value"] <= found["oracle"][-1] + 1e-9
    with pytest.raises(ConfigError, match="no scalar head"):
        place.run("prm", "beside-nothing", *more[:-1], place.model, model=str(trained / "model"))
