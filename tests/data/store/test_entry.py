"""An entry of the cache: built once, anew if anything that decides it changed, whole or not there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from espalier.data.store import entry
from espalier.data.store.store import open_store
from espalier.errors import DataError, EspalierError, RowError
from espalier.types import Example, Origin, Text
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
