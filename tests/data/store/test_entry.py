"""An entry of the cache: built once, anew if anything that decides it changed, whole or not there."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from espalier.data.render.form import Form
from espalier.data.store import entry
from espalier.data.store.rejected import rejections
from espalier.data.store.store import Store, open_store
from espalier.errors import DataError, EspalierError, RowError
from espalier.types import Example, Origin, Text
from flips import damages
from judged_stores import build as build_judged
from judged_stores import listed
from stores import FakeRenderer, FakeSource, Rows, build, entries


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


def everything(store: Store) -> list[Any]:
    """All that a store says."""
    columns = [column.tolist() for column in (store.lengths, store.samples_per_group, store.hashes, store.prompts)]
    groups = [[asdict(s) for s in store.group(i)] for i in range(len(store))]
    origins = [str(store.origin(i)) for i in range(len(store))]
    return [columns, groups, origins, store.stats.to_json(), [*rejections(store.folder)], store.dimensions]


def test_no_damage_of_an_entry_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bit here and there in every file, and more: an entry is as it was written, or built anew with a line."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # nothing here outlives the machine
    rows = [listed(1.0, 2.0, None), listed(3.0, 1.0, 2.5), listed(2.0, 2.0)]
    form = Form("ranking", "comparisons", reads=True)
    notes: list[str] = []

    def build() -> Store:
        return build_judged(tmp_path, rows, form, note=notes.append)

    store = build()
    good, tried = everything(store), 0
    assert notes == [] and any(s["beats"] for group in good[1] for s in group)
    for damage in damages(store.folder, every=7):
        tried += 1
        assert repr(everything(build())) == repr(good), damage
        (line,) = notes
        assert line.startswith("damaged token cache: ") and "it is built anew from the data" in line, (damage, line)
        notes.clear()
    assert tried > 400
    assert build() is not None and notes == []


def test_an_entry_under_the_name_of_another_is_not_used(tmp_path: Path) -> None:
    one, two = build(tmp_path, ["a|b"]), build(tmp_path, ["c|d"], content_key="v2")
    shutil.rmtree(one.folder)
    shutil.copytree(two.folder, one.folder)
    assert build(tmp_path, ["a|b"]).group(0)[0].tokens == [1, 97, 98, 2]


def test_an_entry_that_takes_long_to_verify_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path, ["a|b"])
    notes: list[str] = []
    monkeypatch.setattr("espalier.data.store.store._SLOW_S", 0.0)
    build(tmp_path, ["a|b"], note=notes.append)
    assert notes == ["verified 0.0 GB of cached tokens in 0 s"]


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
from flips import damages
from judged_stores import build as build_judged
from judged_stores import listed
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
