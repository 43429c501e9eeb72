"""The token store: what goes in comes out, once, whole, and at constant memory."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from espalier.data.render.drafts import Rendered
from espalier.data.store import entry
from espalier.data.store.rejected import write_rejected
from espalier.data.store.stats import StoreStats
from espalier.data.store.store import open_store
from espalier.errors import DataError, EspalierError, RowError
from espalier.types import Example, Origin, Sample, Text
from stores import BOS, STOP, FakeRenderer, FakeSource, Rows, build, entries

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


# ------------------------------------------------------------------------------------------------------------- counts


def test_stats_by_hand(tmp_path: Path) -> None:
    texts: list[str | RowError] = [
        "a|b",
        "bad 1",
        "abcdefgh|x",
        RowError("broken JSON").at("in/toy.jsonl:4"),
        "a|b",
        "",
    ]
    store = build(tmp_path, texts, FakeRenderer(limit=6), on_bad_row="skip")
    s = store.stats
    assert (s.rows, s.kept, s.rejected) == (6, 3, 3)
    assert s.reasons == {"bad text": 1, "broken JSON": 1, "no tokens": 1}
    assert (s.samples, s.tokens, s.trained, s.longest) == (3, 4 + 6 + 4, 4, 6)
    # The second kept row, cut to BOS a b c d e, has nothing left to train and does not count for stop tokens.
    assert (s.truncated, s.untrained, s.whole, s.stopped) == (1, 1, 2, 2)
    assert s.by_role == {"user": 1 + 5 + 1, "assistant": 4, "other": 3} and s.trained_by_role == {"assistant": 4}
    assert (s.bos_0, s.bos_1, s.bos_more) == (0, 3, 0)
    assert s.histogram == {4: 2, 8: 1}
    assert s.duplicates == 1
    assert build(tmp_path, texts, FakeRenderer(limit=6), on_bad_row="skip").stats == s


def test_missing_stop_tokens_and_double_bos_show(tmp_path: Path) -> None:
    store = build(tmp_path, ["a|b", f"{chr(BOS)}a|b"], FakeRenderer(stop_ids=frozenset({99})))
    assert (store.stats.whole, store.stats.stopped) == (2, 0)
    assert (store.stats.bos_0, store.stats.bos_1, store.stats.bos_more) == (0, 1, 1)
    # Where BOS is a stop token too, those that end turns are no second BOS.
    shared = FakeRenderer("fake 2", stop_ids=frozenset({BOS, STOP}))
    stats = build(tmp_path, [f"a|b{chr(BOS)}", f"{chr(BOS)}a|b"], shared).stats
    assert (stats.bos_0, stats.bos_1, stats.bos_more) == (0, 1, 1)


def test_the_stop_token_is_looked_for_at_the_end_of_the_trained_part() -> None:
    for tokens, mask, stopped in (([5, STOP, 9], [0, 1, 0], 1), ([5, 6, STOP], [1, 1, 0], 0)):
        stats = StoreStats()
        sample = Sample(tokens, [bool(m) for m in mask], [float(m) for m in mask])
        stats.keep([Rendered(sample, [])], {STOP}, None)
        assert (stats.whole, stats.stopped) == (1, stopped)
        assert (stats.bos_0, stats.bos_1, stats.bos_more) == (0, 0, 0)


def test_duplicates_compare_tokens_sample_by_sample(tmp_path: Path) -> None:
    one_sample, two_samples = f"a|b{chr(STOP)}{chr(BOS)}c", "a|b&c"
    assert build(tmp_path, [one_sample, two_samples], content_key="v2").stats.duplicates == 0
    assert build(tmp_path, ["a|b&c|d", "a|b", "c|d", "a|b&c|d", "a|b", "a|b"]).stats.duplicates == 3


# ----------------------------------------------------------------------------------------------------------- bad rows


def test_stop_raises_the_first_bad_row_and_caches_nothing(tmp_path: Path) -> None:
    with pytest.raises(RowError) as e:
        build(tmp_path, ["a|b", "bad 1", "bad 2"])
    assert str(e.value) == "in/toy.jsonl:2: bad text; got bad 1; expected better text"
    assert entries(tmp_path) == []


def test_stop_does_not_accept_what_skip_cached(tmp_path: Path) -> None:
    texts: list[str | RowError] = ["a|b", "bad 1", "bad 2"]
    build(tmp_path, texts, on_bad_row="skip")
    with pytest.raises(RowError) as e:
        build(tmp_path, texts)
    assert str(e.value) == "in/toy.jsonl:2: bad text; got bad 1; expected better text"
    assert len(build(tmp_path, texts, on_bad_row="skip")) == 1


def test_rejected_rows_are_written_with_their_reason(tmp_path: Path) -> None:
    one = build(tmp_path, ["a|b", "bad é \ud800"], on_bad_row="skip")
    # The same bytes under another name: what the cache says of their rows is said of the new name.
    moved = FakeSource(path="elsewhere.jsonl", name="other")
    reader = Rows([])
    two = open_store(moved, reader, FakeRenderer(), cache=tmp_path, content_key="v1", on_bad_row="skip")
    assert reader.reads == 0
    assert write_rejected([one, two], tmp_path / "rejected.jsonl") == 2
    lines = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(r["source"], r["row"], r["where"], r["reason"]) for r in lines] == [
        ("toy", 2, "in/toy.jsonl:2", "bad text"),
        ("other", 2, "elsewhere.jsonl:2", "bad text"),
    ]
    assert lines[1]["message"] == "elsewhere.jsonl:2: bad text; got bad é \ud800; expected better text"


def test_nothing_usable_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no row can be used: bad text \(2\)"):
        build(tmp_path, ["bad 1", "bad 2"], on_bad_row="skip")
    with pytest.raises(DataError, match="it has no rows"):
        build(tmp_path, [], content_key="v2")


# -------------------------------------------------------------------------------------------------------------- cache


def test_the_second_open_reads_and_renders_nothing(tmp_path: Path) -> None:
    rows, renderer, seen = Rows(["a|b", "c|d"]), FakeRenderer(), []
    for part in ("main", "replay"):
        store = open_store(
            FakeSource(), rows, renderer, cache=tmp_path, content_key="v1", part=part, on_progress=seen.append
        )
        assert store.group(1)[0].tokens == [1, 99, 100, 2] and store.group(1)[0].part == part
    assert rows.reads == 1 and renderer.calls == ["a|b", "c|d"] and seen == [2]


@pytest.mark.parametrize(
    "change", [{"content_key": "v2"}, {"options": "alpaca"}, {"renderer": FakeRenderer(fingerprint="fake 3")}]
)
def test_whatever_changes_the_tokens_is_built_anew(tmp_path: Path, change: dict) -> None:
    build(tmp_path, ["a|b"])
    assert build(tmp_path, ["c|d"], **change).group(0)[0].tokens == [1, 99, 100, 2]
    assert build(tmp_path, []).group(0)[0].tokens == [1, 97, 98, 2]


def test_a_damaged_entry_is_built_anew(tmp_path: Path) -> None:
    store = build(tmp_path, ["a|b", "c|d"])
    os.truncate(store.folder / "tokens.bin", 20)
    with pytest.raises(DataError, match="damaged"):
        store.group(1)
    assert build(tmp_path, ["a|b", "c|d"]).group(1)[0].tokens == [1, 99, 100, 2]
    assert len(entries(tmp_path)) == 1


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[Example | RowError]:
        yield Text("a|b", Origin("toy", 1))
        raise DataError("toy: broken gzip")

    with pytest.raises(DataError, match="broken gzip"):
        open_store(FakeSource(), broken, FakeRenderer(), cache=tmp_path, content_key="v1")
    assert entries(tmp_path) == []
    assert len(build(tmp_path, ["a|b", "c|d"])) == 2


def test_the_first_rename_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two machines without a common lock build the same entry: the second finds it there when it is done."""

    @dataclass
    class Meanwhile(Rows):
        def __call__(self) -> Iterator[Example | RowError]:
            yield from super().__call__()
            monkeypatch.setattr(entry.socket, "gethostname", lambda: "elsewhere")
            with monkeypatch.context() as m:
                m.setattr(entry.fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError("no locks here")))
                build(tmp_path, ["a|b"])

    store = open_store(FakeSource(), Meanwhile(["a|b"]), FakeRenderer(), cache=tmp_path, content_key="v1")
    assert store.group(0)[0].tokens == [1, 97, 98, 2]
    assert len(entries(tmp_path)) == 1


def test_a_cache_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EspalierError, match="--cache"):
        build(tmp_path, ["a|b"], cache=tmp_path / "file")


SLOW = """
import sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
from espalier.data.store.store import open_store
from stores import FakeRenderer, FakeSource, Rows
class Slow(Rows):
    def __call__(self):
        for i, example in enumerate(super().__call__()):
            print(i, flush=True)
            time.sleep({pause})
            yield example
renderer = FakeRenderer()
store = open_store(FakeSource(), Slow(["a|b", "c|d", "e|f"]), renderer, cache=Path({cache!r}), content_key="v1")
print("rendered", len(renderer.calls), "kept", len(store), flush=True)
"""


def start(cache: Path, pause: float) -> subprocess.Popen[str]:
    code = SLOW.format(tests=str(Path(__file__).resolve().parents[2] / "helpers"), cache=str(cache), pause=pause)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_a_killed_build_leaves_no_entry(tmp_path: Path) -> None:
    with start(tmp_path, 60) as process:
        assert process.stdout is not None and process.stdout.readline() == "0\n"
        os.kill(process.pid, signal.SIGKILL)
    (left,) = entries(tmp_path)
    assert left.startswith(".")
    store = build(tmp_path, ["a|b", "c|d", "e|f"])
    assert len(store) == 3 and store.group(2)[0].tokens == [1, 101, 102, 2]
    assert entries(tmp_path) == [store.folder.name]


def test_two_processes_build_once(tmp_path: Path) -> None:
    with start(tmp_path, 0.5) as first:
        assert first.stdout is not None and first.stdout.readline() == "0\n"
        renderer = FakeRenderer()
        store = build(tmp_path, ["a|b", "c|d", "e|f"], renderer)
        assert renderer.calls == [] and len(store) == 3
        assert "rendered 3 kept 3" in first.stdout.read()


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
