"""An append-only file holds whole lines of valid JSON, and can be cut back to what a checkpoint saw."""

import errno
import json
import math
import os
from pathlib import Path

import numpy
import pytest

from espalier.errors import CheckpointError, EspalierError
from espalier.loop.metrics import MetricsFile, line_of, read_lines
from runs import TIME_FIELDS, without_time


def test_a_line_is_json_and_its_floats_read_back_exactly() -> None:
    assert line_of({"step": 3, "loss": 0.1 + 0.2}) == '{"step": 3, "loss": 0.30000000000000004}\n'
    assert line_of({"x": [math.nan, math.inf, {"y": -math.inf}]}) == '{"x": ["NaN", "Infinity", {"y": "-Infinity"}]}\n'
    assert [float(text) for text in ("Infinity", "-Infinity")] == [math.inf, -math.inf] and math.isnan(float("NaN"))
    assert line_of({"x": numpy.float64(0.1), "n": numpy.float64(math.nan)}) == '{"x": 0.1, "n": "NaN"}\n'
    text = line_of({"text": "二\u2028\n\ud800"})
    assert len(text.splitlines()) == 1 and json.loads(text) == {"text": "二\u2028\n\ud800"}
    with pytest.raises(TypeError):
        line_of({"x": object()})


def test_lines_are_visible_at_once_and_counted_in_bytes(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path) as metrics:
        assert metrics.length() == 0
        metrics.append({"step": 1})
        assert path.read_text() == '{"step": 1}\n' and metrics.length() == 12
        metrics.append({"step": 2, "text": "é"})
        assert metrics.length() == path.stat().st_size == 12 + len(b'{"step": 2, "text": "\\u00e9"}\n')
        metrics.sync()
    with MetricsFile(path) as metrics:
        metrics.append({"step": 3})
    assert list(read_lines(path)) == [{"step": 1}, {"step": 2, "text": "é"}, {"step": 3}]


def test_a_resumed_file_equals_one_that_was_never_killed(tmp_path: Path) -> None:
    def step(metrics: MetricsFile, number: int) -> None:
        metrics.append({"step": number, "loss": 1 / number, "seconds": os.getpid() + number / 7})

    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    with MetricsFile(whole) as metrics:
        for number in range(1, 8):
            step(metrics, number)
    with MetricsFile(killed) as metrics:
        for number in range(1, 4):
            step(metrics, number)
        length = metrics.length()
        for number in range(4, 6):
            step(metrics, number)
    with open(killed, "ab") as file:
        file.write(b'{"step": 6, "lo')
    with MetricsFile(killed) as metrics:
        metrics.truncate_to(length)
        for number in range(4, 8):
            step(metrics, number)
    assert killed.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 200000])
def test_a_line_that_was_cut_is_dropped_on_opening(tmp_path: Path, size: int) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"a": 1}\n' + b"x" * size)
    assert list(read_lines(path)) == [{"a": 1}]
    with MetricsFile(path) as metrics:
        assert metrics.length() == 9
        metrics.append({"b": 2})
    assert path.read_bytes() == b'{"a": 1}\n{"b": 2}\n'
    path.write_bytes(b"x" * size)
    with MetricsFile(path) as metrics:
        assert metrics.length() == 0 and path.read_bytes() == b""


def test_a_file_that_is_not_the_checkpoints_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"a": 1}\n{"b": 2}\n')
    with MetricsFile(path) as metrics:
        with pytest.raises(CheckpointError, match="has 18 bytes of lines and had 19 when"):
            metrics.truncate_to(19)
        for inside in (8, 10, 17):
            with pytest.raises(CheckpointError, match=f"no line end at byte {inside}"):
                metrics.truncate_to(inside)
        assert path.stat().st_size == 18
        metrics.truncate_to(18)
        metrics.truncate_to(9)
        assert path.read_bytes() == b'{"a": 1}\n'
        metrics.truncate_to(0)
        assert path.read_bytes() == b""


def test_a_disk_that_fills_up_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    real, room = os.write, 20

    def write(fd: int, data: bytes) -> int:
        nonlocal room
        if room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = real(fd, data[: min(room, 8)])
        room -= done
        return done

    with MetricsFile(path) as metrics:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", write)
            metrics.append({"a": 1})
            message = r"cannot write 23 bytes to .*No space left on device; \d+ bytes are free: free some"
            with pytest.raises(EspalierError, match=message):
                metrics.append({"text": "0123456789"})
        assert path.read_bytes() == b'{"a": 1}\n' and metrics.length() == 9
        metrics.append({"b": 2})
    assert path.read_bytes() == b'{"a": 1}\n{"b": 2}\n'


def test_a_file_that_cannot_be_opened_or_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(EspalierError, match=r"cannot open .*: Is a directory"):
        MetricsFile(tmp_path)
    path = tmp_path / "m.jsonl"
    for line, told in ((b"nonsense", "not JSON"), (b"[1]", "got list"), (b"\xff", "not JSON")):
        path.write_bytes(b'{"a": 1}\n' + line + b"\n")
        with pytest.raises(EspalierError, match=rf"m\.jsonl:2: {told}"):
            list(read_lines(path))


def test_time_fields_are_what_two_equal_runs_may_differ_in() -> None:
    record = {"step": 1, "loss": 2.0, **dict.fromkeys(TIME_FIELDS, 1.5)}
    assert without_time(record) == {"step": 1, "loss": 2.0}
