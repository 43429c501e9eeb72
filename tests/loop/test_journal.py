"""The journal: what is taken from it, and what is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from espalier.errors import EspalierError
from espalier.loop.journal import Journal, journal_path
from espalier.outcomes import Graded, Outcome

LATE = Outcome(0.0, error="math: stopped after 10 s")
RIGHT = Outcome(0.1 + 0.2, {"exact": Graded(0.1 + 0.2)})


def test_an_outcome_is_taken_with_the_same_step_rollout_and_ids_only(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl") as journal:
        journal.write(3, [((7, 0, 0), [1, 2], RIGHT), ((7, 0, 1), [1, 3], LATE)])
    with Journal(tmp_path / "journal.jsonl") as journal:
        assert journal.recall(3, (7, 0, 0), [1, 2]) == RIGHT
        assert journal.recall(3, (7, 0, 1), [1, 3]) == LATE
        assert journal.recall(3, (7, 0, 0), [1, 3]) is None
        assert journal.recall(3, (7, -4, 0), [1, 2]) is None
        assert journal.recall(3, (7, 0, 0), [1, 2], held_out=True) is None
        assert journal.recall(4, (7, 0, 0), [1, 2]) is None


def test_ids_are_told_apart_by_their_ends(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl") as journal:
        journal.write(0, [((0, 0, 0), [1, 23], RIGHT)])
    with Journal(tmp_path / "journal.jsonl") as journal:
        assert journal.recall(0, (0, 0, 0), [12, 3]) is None


def test_the_first_of_two_lines_counts_and_a_cut_one_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.write(0, [((0, 0, 0), [1], RIGHT), ((0, 0, 0), [1], LATE), ((0, 0, 1), [1], LATE)])
    lines = path.read_bytes()
    path.write_bytes(lines[:-5])
    with Journal(path) as journal:
        assert journal.recall(0, (0, 0, 0), [1]) == RIGHT
        assert journal.recall(0, (0, 0, 1), [1]) is None
    assert path.read_bytes() == b"".join(lines.splitlines(keepends=True)[:2])


def test_steps_before_the_first_are_not_held(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl") as journal:
        for step in range(4):
            journal.write(step, [((0, 0, 0), [step], RIGHT)])
    with Journal(tmp_path / "journal.jsonl") as journal:
        assert journal.recall(2, (0, 0, 0), [2]) == RIGHT
        assert sorted(journal._earlier or {}) == [2, 3]
        assert journal.recall(3, (0, 0, 0), [3]) == RIGHT
        assert sorted(journal._earlier or {}) == [3]


def test_outcomes_of_other_rewards_are_not_taken(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl", "exact") as journal:
        journal.write(0, [((0, 0, 0), [1], RIGHT)])
    with Journal(tmp_path / "journal.jsonl", "math") as journal:
        assert journal.recall(0, (0, 0, 0), [1]) is None


def test_a_line_of_something_else_is_refused_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"step": 1}\n')
    with Journal(path) as journal, pytest.raises(EspalierError, match=r"journal\.jsonl:1: got .* or delete it"):
        journal.recall(0, (0, 0, 0), [1])


def test_each_rank_has_its_own_file() -> None:
    assert [str(journal_path(Path("run"), rank)) for rank in (0, 1, 12)] == [
        "run/journal.jsonl",
        "run/journals/rank-00001.jsonl",
        "run/journals/rank-00012.jsonl",
    ]
