"""The reference as a table on disk: the same numbers, computed once, whatever kills the build."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from espalier.engines import precomputed
from espalier.engines.learner import TorchLearner
from espalier.engines.precomputed import PrecomputedReference
from espalier.engines.reference import StartReference
from espalier.errors import ConfigError, EspalierError
from espalier.types import Sample
from flips import damages
from preferences import Table, furthest, make, pair_groups, policy_logprobs, train

WEIGHTS = {"model.safetensors": "abc"}
BASE = 77 << 40


class Killed(BaseException):
    """Ends a build as a signal would: nothing catches it."""


def build(
    learner: TorchLearner, tables: list[Table], cache: Path, *, weights: Any = WEIGHTS, kill_after: int = 0
) -> tuple[PrecomputedReference, list[int]]:
    """A reference, and how many groups were done after each chunk."""
    seen: list[int] = []

    def progress(done: int, count: int) -> None:
        seen.append(done)
        assert count == len(tables[0])
        if len(seen) == kill_after:
            raise Killed

    return PrecomputedReference(learner.forwards, tables, cache=cache, weights=weights, progress=progress), seen


@pytest.fixture(autouse=True)
def chunks_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precomputed, "CHUNK", 2)


def entries(cache: Path) -> list[Path]:
    return sorted(path for path in (cache / "reference").iterdir() if not path.name.startswith("."))


def test_the_table_says_what_memory_says_and_is_computed_once(tmp_path: Path) -> None:
    learner, table = make(), Table(pair_groups(5, base=BASE))
    reference, seen = build(learner, [table], tmp_path)
    assert seen == [2, 4, 5]
    memory, groups = StartReference(learner), [table.group(i) for i in (3, 0, 4)]  # whatever a step draws
    train(learner, pair_groups())
    assert furthest(reference.logprobs(groups), memory.logprobs(groups)) < 1e-5
    assert furthest(reference.logprobs(groups), policy_logprobs(learner, groups)) > 0.1
    again, seen = build(make(), [table], tmp_path)
    assert seen == [] and again.logprobs(groups) == reference.logprobs(groups)
    (entry,) = entries(tmp_path)
    tokens = sum(len(s.tokens) for i in range(5) for s in table.group(i))
    assert (entry / "values.bin").stat().st_size == 4 * tokens


def test_several_stores_are_told_apart_by_their_keys(tmp_path: Path) -> None:
    learner = make()
    one, two = Table(pair_groups(3, base=BASE)), Table(pair_groups(3, seed=9, base=5 << 40), key="other")
    reference, _ = build(learner, [one, two, one], tmp_path)
    groups = [two.group(1), one.group(1), two.group(0)]
    assert furthest(reference.logprobs(groups), policy_logprobs(learner, groups)) < 1e-5
    assert len(entries(tmp_path)) == 2


@pytest.mark.parametrize("chunks", [1, 2])
def test_a_killed_build_goes_on_after_its_last_whole_chunk(tmp_path: Path, chunks: int) -> None:
    learner, table = make(), Table(pair_groups(5, base=BASE))
    build(learner, [table], tmp_path / "whole")
    with pytest.raises(Killed):
        build(learner, [table], tmp_path / "cut", kill_after=chunks)
    assert entries(tmp_path / "cut") == []
    (draft,) = (tmp_path / "cut" / "reference").glob(".*.partial")
    with open(draft / "values.bin", "ab") as file:  # more than what is missing
        file.write(os.urandom(20_000))
    _, seen = build(learner, [table], tmp_path / "cut")
    assert seen == [2, 4, 5][chunks:]
    (whole,), (cut,) = entries(tmp_path / "whole"), entries(tmp_path / "cut")
    for name in ("values.bin", "index.bin", "meta.json"):
        assert (whole / name).read_bytes() == (cut / name).read_bytes()
    assert sorted(path.name for path in cut.iterdir()) == ["index.bin", "meta.json", "values.bin"]


def test_a_damaged_entry_is_built_anew(tmp_path: Path) -> None:
    learner, table = make(), Table(pair_groups(5, base=BASE))
    build(learner, [table], tmp_path)
    (entry,) = entries(tmp_path)
    os.truncate(entry / "values.bin", 40)
    reference, seen = build(learner, [table], tmp_path)
    assert seen == [2, 4, 5]
    assert furthest(reference.logprobs([table.group(4)]), policy_logprobs(learner, [table.group(4)])) < 1e-5


def test_no_damage_of_an_entry_is_used(tmp_path: Path) -> None:
    learner, table = make(), Table(pair_groups(2, base=BASE))
    reference, _ = build(learner, [table], tmp_path)
    groups = [table.group(0), table.group(1)]
    good, tried, notes = reference.logprobs(groups), 0, []
    (entry,) = entries(tmp_path)
    for damage in damages(entry, every=5):
        again = PrecomputedReference(learner.forwards, [table], cache=tmp_path, weights=WEIGHTS, note=notes.append)
        assert again.logprobs(groups) == good, damage
        assert len(notes) == 1 and notes[0].startswith("damaged reference table: "), (damage, notes)
        notes.clear()
        tried += 1
    assert tried > 150


def test_no_damage_of_a_draft_is_used(tmp_path: Path) -> None:
    """A killed build that goes on starts anew if what it wrote before is not what it finds."""
    learner, table = make(), Table(pair_groups(5, base=BASE))
    build(learner, [table], tmp_path / "whole")
    with pytest.raises(Killed):
        build(learner, [table], tmp_path / "cut", kill_after=2)
    (draft,) = (tmp_path / "cut" / "reference").glob(".*.partial")
    shutil.copytree(draft, tmp_path / "draft")
    (whole,) = entries(tmp_path / "whole")
    for _damage in damages(tmp_path / "draft", every=60):
        shutil.rmtree(tmp_path / "cut")
        shutil.copytree(tmp_path / "draft", draft)
        build(learner, [table], tmp_path / "cut")
        (cut,) = entries(tmp_path / "cut")
        for name in ("values.bin", "index.bin", "meta.json"):
            assert (whole / name).read_bytes() == (cut / name).read_bytes()


def test_an_entry_belongs_to_what_it_was_computed_from(tmp_path: Path) -> None:
    table, others = Table(pair_groups(3, base=BASE)), Table(pair_groups(3, base=BASE), part="chosen")
    build(make(), [table], tmp_path)
    for number, (learner, tables, weights) in enumerate(
        (
            (make(), [table], {"model.safetensors": "abd"}),
            (make(), [Table(table.rows, key="tox")], WEIGHTS),
            (make(), [others], WEIGHTS),
            (make(compute=torch.bfloat16), [table], WEIGHTS),
            (make(budget=65), [table], WEIGHTS),
            (make(whole=False), [table], WEIGHTS),
        )
    ):
        assert build(learner, tables, tmp_path, weights=weights)[1] == [2, 3]
        assert len(entries(tmp_path)) == number + 2


def test_a_sample_that_is_in_no_table_is_refused(tmp_path: Path) -> None:
    learner, table = make(), Table(pair_groups(3, base=BASE))
    reference, _ = build(learner, [table], tmp_path)

    def changed(**fields: Any) -> Sample:
        s = table.group(0)[0]
        for name, value in fields.items():
            setattr(s, name, value)
        return s

    tokens, mask = table.group(0)[0].tokens, table.group(0)[0].mask
    for odd in (
        changed(key=BASE + 1),  # another sample's place
        changed(key=BASE + 600),
        changed(key=3),
        changed(tokens=[*tokens[:-1], tokens[-1] ^ 1]),
        changed(mask=[*mask[:-1], False]),
    ):
        with pytest.raises(ConfigError, match=r"was not precomputed.* Set reference: memory"):
            reference.logprobs([[odd]])
    with pytest.raises(ConfigError, match=r"cannot move.* Set reference: memory"):
        reference.move(0.5)


def test_a_disk_that_refuses_is_an_error_with_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    learner, table = make(), Table(pair_groups(5, base=BASE))
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(EspalierError, match=r"No space left on device.*--cache"):
            build(learner, [table], tmp_path)
    assert build(learner, [table], tmp_path)[1] == [2, 4, 5]
