"""What numbers that label steps mean is decided once, by the whole source, and said."""

import doctest
import json
from pathlib import Path
from typing import Any

import pytest

from espalier.config.sections import StepLabelsConfig
from espalier.data.columns.ledger import Ledger
from espalier.data.formats import scale
from espalier.data.read import Source, read
from espalier.data.render.steplabels import relabel
from espalier.types import Steps


def test_worked_examples() -> None:
    assert doctest.testmod(scale).failed == 0


def labels(path: Path, rows: list[dict[str, Any]]) -> tuple[list[Any], str]:
    path.write_text("\n".join(json.dumps({"problem": "q"} | row) for row in rows))
    ledger = Ledger()
    found = list(read(Source(str(path), consumes="steps"), ledger))
    return [made.labels if isinstance(made, Steps) else made for made in found], " ".join(ledger.notes)


TWO = [{"text": "a", "label": 1}, {"text": "b", "label": 0}]
LISTED = {"steps": ["a", "b"], "labels": [1, 0]}


@pytest.mark.parametrize("row", [{"steps": TWO}, LISTED])
def test_zero_is_bad_unless_a_minus_one_stands_anywhere(row: dict[str, Any], tmp_path: Path) -> None:
    made, said = labels(tmp_path / "a.jsonl", [row, row])
    assert made == [(1.0, 0.0)] * 2 and "1 good, 0 bad" in said
    last = {"steps": ["a"], "labels": [-1]}
    made, said = labels(tmp_path / "b.jsonl", [row, row, *[{"steps": ["a"], "labels": [True]}] * 40, last])
    assert made[:2] == [(1.0, 0.5)] * 2 and made[-1] == (0.0,) and "0 neutral, -1 bad" in said


def test_a_rating_of_zero_is_neutral(tmp_path: Path) -> None:
    rows = [{"steps": [{"text": "a", "rating": 1}, {"text": "b", "rating": 0}]}, {"steps": ["a"], "ratings": [0]}]
    assert labels(tmp_path / "a.jsonl", rows)[0] == [(1.0, 0.5), (0.5,)]


def test_chances_are_trained_as_they_are(tmp_path: Path) -> None:
    made, said = labels(tmp_path / "a.jsonl", [{"steps": ["a", "b", "c"], "labels": [0.5, 0.0, 0.25]}, LISTED])
    assert made == [(0.5, 0.0, 0.25), (1.0, 0.0)] and "chances" in said
    (soft, _) = read(Source(str(tmp_path / "a.jsonl"), consumes="steps"))
    assert isinstance(soft, Steps) and soft.soft
    assert relabel(soft, StepLabelsConfig()).labels == (0.5, 0.0, 0.25)


def test_a_null_place_of_a_mistake_is_an_answer_in_a_table_too(tmp_path: Path) -> None:
    import datasets

    rows = [
        {"input": "q", "steps": ["a", "b"], "mistake_index": None, "answer": "1", "target": "2"},
        {"input": "q", "steps": ["a", "b"], "mistake_index": 1, "answer": "2", "target": "2"},
    ]
    path = tmp_path / "a.parquet"
    datasets.Dataset.from_list(rows).to_parquet(path)
    made = list(read(Source(str(path), consumes="steps")))
    assert [step.labels for step in made if isinstance(step, Steps)] == [(1.0, 1.0), (1.0, 0.0)]


def test_ratings_are_said_as_such() -> None:
    notes: scale.Notes = {}
    rows = [{"steps": [{"text": "a", "rating": 0}]}, {"steps": [{"text": "a", "label": 0}]}]
    own = scale.SourceScale(lambda: rows, notes)
    assert [own.of(row) for row in rows] == ["labels", "labels"]
    assert notes == {scale.SAID["ratings"]: 1, scale.SAID["labels"]: 1}
