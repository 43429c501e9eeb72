"""The token store: what goes in comes out, once, whole, and at constant memory."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from espalier.data.render.drafts import Rendered
from espalier.data.store.store import open_store
from espalier.errors import RowError
from espalier.types import Example, Origin, Sample, Text
from stores import FakeRenderer, FakeSource, build, entries

# ------------------------------------------------------------------------------------------------------- what is kept


def test_two_rows_by_hand(tmp_path: Path) -> None:
    store = build(tmp_path, ["a|b", "a|bc&a|d"], part="replay")
    assert len(store) == 2
    assert store.lengths.tolist() == [4, 9] and store.samples_per_group.tolist() == [1, 2]
    (first,) = store.group(0)
    assert first.tokens == [1, 97, 98, 2]
    assert first.mask == [False, False, True, True]
    assert first.weights == [0.0, 0.0, 0.1, 0.1]
    assert (first.group, first.part, first.stop) == (0, "replay", "stop")
    second, third = store.group(1)
    assert second.tokens == [1, 97, 98, 99, 2] and third.tokens == [1, 97, 100, 2]
    assert second.group == third.group == 1
    assert len({first.key, second.key, third.key}) == 3
    assert str(store.origin(1)) == "toy:2"


def test_groups_are_new_objects_and_bounded(tmp_path: Path) -> None:
    store = build(tmp_path, ["a|b"])
    store.group(0)[0].tokens.append(7)
    assert store.group(0)[0].tokens == [1, 97, 98, 2]
    for i in (-1, 1):
        with pytest.raises(IndexError):
            store.group(i)


def test_mask_and_weights_come_back_exactly(tmp_path: Path) -> None:
    sample = Sample(stop="length", part="ptx")
    for trained, weight in [(True, 1.0), (True, 0.0), (False, 0.0), (True, 1 / 3), (True, 1 / 3), (True, 2.5)]:
        sample.append([len(sample)], trained=trained, weight=weight)

    class One(FakeRenderer):
        def render(self, example: Example, key: int) -> list[Rendered]:
            return [Rendered(sample, [])]

    (out,) = build(tmp_path, ["x"], One(), part="other").group(0)
    assert out.mask == [True, True, False, True, True, True]
    assert out.weights == [1.0, 0.0, 0.0, 1 / 3, 1 / 3, 2.5]
    assert (out.tokens, out.stop, out.part) == ([0, 1, 2, 3, 4, 5], "length", "ptx")


def test_a_sample_with_more_than_the_files_hold_is_refused(tmp_path: Path) -> None:
    class Rewarded(FakeRenderer):
        def render(self, example: Example, key: int) -> list[Rendered]:
            return [Rendered(Sample([1], [True], [1.0], reward=1.0), [])]

    with pytest.raises(ValueError, match="reward"):
        build(tmp_path, ["x"], Rewarded())
    assert entries(tmp_path) == []


# -------------------------------------------------------------------------------------------------------------- memory


def test_memory_does_not_grow_with_rows(tmp_path: Path) -> None:
    def rows(n: int) -> Iterator[Example | RowError]:
        return (Text(f"{i % 977} {'x' * (i % 89)}|{'y' * (i % 61)}", Origin("toy", i)) for i in range(n))

    class Quiet(FakeRenderer):
        def render(self, example: Example, key: int) -> list[Rendered]:
            return [self._one(example.text)]  # type: ignore[union-attr]

    def peak(n: int) -> int:
        gc.collect()
        tracemalloc.start()
        store = open_store(FakeSource(), lambda: rows(n), Quiet(), cache=tmp_path, content_key=f"{n} rows")
        for i in range(0, n, 7):
            store.group(i)
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert store.stats.kept == n
        return top

    peak(10)  # imports and caches of other modules
    assert peak(4800) < 1.3 * peak(300)
