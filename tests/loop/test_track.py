"""Trackers get every metric of every step, and no secret."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from espalier.errors import ConfigError
from espalier.loop.track import Trackers, redact, run_id


class Recorder:
    """A tracker's run object that keeps what it is told."""

    def __init__(self, **start: Any) -> None:
        self.start, self.logged, self.ended = start, [], False

    def define_metric(self, name: str, step_metric: str) -> None:
        self.metric = (name, step_metric)

    def log(self, metrics: dict[str, float], **more: int) -> None:
        self.logged.append({**metrics, **more})

    def finish(self) -> None:
        self.ended = True


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    """Runs started at fake `wandb` and `trackio` modules."""
    started: list[Recorder] = []

    def init(**start: Any) -> Recorder:
        started.append(Recorder(**start))
        return started[-1]

    settings = lambda **given: SimpleNamespace(**given)  # noqa: E731
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Settings=settings))
    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace(init=init))
    return started


def scalars(out: Path) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(out / "tensorboard"))
    reader.Reload()
    return [(event.step, event.value) for event in reader.Scalars("loss")]


def test_tensorboard_holds_each_step_once_after_a_resume(tmp_path: Path) -> None:
    first = Trackers(tmp_path, (), {}, rank=0)
    for step in (1, 2, 3, 4):
        first.log(step, {"loss": float(step)})
    first.close()
    # The checkpoint was of step 2: steps 3 and 4 run again.
    second = Trackers(tmp_path, (), {}, step=2, rank=0)
    for step in (3, 4, 5):
        second.log(step, {"loss": 10.0 * step})
    second.close()
    assert scalars(tmp_path) == [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0), (5, 50.0)]


def test_extras_get_metrics_config_and_the_same_run_on_resume(tmp_path: Path, runs: list[Recorder]) -> None:
    config = {"model": "https://me:pass@host/m", "lr": 1e-3, "data": ("a",)}
    for step in (0, 1):
        trackers = Trackers(tmp_path, ("wandb", "trackio"), config, step=step, rank=0)
        trackers.log(step + 1, {"loss": 0.5})
        trackers.close()
    wandb, trackio, again, trackio_again = runs
    assert wandb.logged == [{"step": 1, "loss": 0.5}] and trackio.logged == [{"step": 1, "loss": 0.5}]
    assert wandb.metric == ("*", "step")
    assert (
        wandb.start["config"] == {"model": "https://***@host/m", "lr": 1e-3, "data": ["a"]} == trackio.start["config"]
    )
    assert wandb.start["id"] == again.start["id"] == run_id(tmp_path)
    assert trackio.start["name"] == trackio_again.start["name"]
    assert all(run.ended for run in runs)


def test_other_ranks_track_nothing(tmp_path: Path, runs: list[Recorder]) -> None:
    trackers = Trackers(tmp_path, ("wandb",), {}, rank=1)
    trackers.log(1, {"loss": 1.0})
    trackers.close()
    assert runs == [] and list(tmp_path.iterdir()) == []


def test_an_extra_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"pip install 'espalier\[wandb\]', or drop --track wandb"):
        Trackers(tmp_path, ("wandb",), {}, rank=0)
    assert list(tmp_path.iterdir()) == []


def test_a_tracker_that_does_not_start_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**start: Any) -> None:
        raise RuntimeError("no key for https://u:secret@host\nsecond line")

    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace(init=init))
    notes: list[str] = []
    trackers = Trackers(tmp_path, ("trackio",), {}, rank=0, note=notes.append)
    assert notes == [
        "trackio did not start and is switched off (no key for https://***@host); the run goes on, metrics.jsonl has "
        "its numbers"
    ]
    trackers.log(1, {"loss": 1.0})
    trackers.close()
    assert scalars(tmp_path) == [(1, 1.0)] and len(notes) == 1


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SystemExit(1), ValueError("")])
def test_a_tracker_that_fails_is_switched_off(tmp_path: Path, runs: list[Recorder], error: BaseException) -> None:
    def fail(*_: Any, **__: Any) -> None:
        calls.append(1)
        raise error

    notes: list[str] = []
    calls: list[int] = []
    trackers = Trackers(tmp_path, ("wandb", "trackio"), {}, rank=0, note=notes.append)
    runs[0].log, runs[1].finish = fail, fail  # type: ignore[method-assign]
    for step in (1, 2, 3):
        trackers.log(step, {"loss": 0.5})
    assert len(calls) == 1 and len(runs[1].logged) == 3
    trackers.close()
    trackers.close()
    assert len(calls) == 2 and [note.split(" and is")[0] for note in notes] == [
        "wandb failed at step 1",
        "trackio could not be closed",
    ]


def test_an_interrupt_is_no_failure_of_a_tracker(tmp_path: Path, runs: list[Recorder]) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    trackers = Trackers(tmp_path, ("wandb",), {}, rank=0)
    runs[0].log = interrupt  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        trackers.log(1, {"loss": 0.5})


@pytest.mark.parametrize("gone", [True, False])
def test_tensorboard_without_its_folder_or_disk_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], gone: bool
) -> None:
    """Its thread meets the error; a run neither ends by it nor prints a traceback, and does not wait for ever."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    notes: list[str] = []
    trackers = Trackers(tmp_path, (), {}, rank=0, note=notes.append)
    trackers.log(1, {"loss": 0.5})
    if gone:
        shutil.rmtree(tmp_path / "tensorboard")
    else:

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(RecordWriter, "write", full)
        monkeypatch.setattr(RecordWriter, "flush", full)
    for step in range(2, 60):
        trackers.log(step, {"loss": 0.5, "lr": 1.0})
    trackers.close()
    assert len(notes) == 1 and notes[0].startswith("tensorboard failed at step "), notes
    assert "Traceback" not in "".join(capfd.readouterr())


def test_secrets_are_cut_out_and_nothing_else() -> None:
    made_up = "hf_" + "a1B2" * 8
    assert redact({"x": [f"load {made_up}!"], "n": 3}) == {"x": ["load ***!"], "n": 3}
    assert redact("https://h/d?token=abc&rows=5") == "https://h/d?***&rows=5"
    assert redact("sk-" + "x" * 20) == "***"
    for kept in ("hf_model", "me@example.org", "a/b@main", "https://h/user/model", "tokens_per_step=4", "task-1"):
        assert redact(kept) == kept
