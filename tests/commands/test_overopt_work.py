"""Running children: in which order, what a fault and a stop lead to, and real processes."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from espalier.commands.overopt_grid import plan
from espalier.commands.overopt_work import Processes, work
from espalier.errors import EspalierError
from espalier.files import make_dir
from overopt_children import Children, config


def quiet(text: str) -> None:
    """No line is wanted."""


def prepared(tmp_path: Path) -> None:
    make_dir(tmp_path / "o")
    for size in (2, 4):
        (tmp_path / "o" / f"pairs-{size}.jsonl").write_text("{}\n" * size)


def test_a_stopped_grid_stops_its_children_and_goes_on(tmp_path: Path) -> None:
    prepared(tmp_path)
    grid, children = plan(config(tmp_path)), Children(stops="gold of start")
    with pytest.raises(KeyboardInterrupt, match="the same command goes on"):
        work(grid, children, quiet)
    assert children.stopped.is_set() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert children.started == ["proxy-2", "proxy-4", "start", "gold of start"]
    again = Children()
    work(grid, again, quiet)
    assert again.started[0] == "gold of start" and len(again.started) + len(children.started) == 20 + 1


def test_a_fault_ends_what_has_not_begun(tmp_path: Path) -> None:
    prepared(tmp_path)
    children = Children(fails="proxy-2")
    with pytest.raises(EspalierError, match=r"proxy of 2 rows ended with exit code 2; .*proxy-2.log says why"):
        work(plan(config(tmp_path)), children, quiet)
    assert "start" not in children.started


def test_a_child_that_was_stopped_is_not_finished(tmp_path: Path) -> None:
    """Runs that save on a signal end with code 0, before they write `model/`."""
    prepared(tmp_path)
    grid, children = plan(config(tmp_path)), Children(cut="proxy-2-beta-0-seed-0")
    with pytest.raises(EspalierError, match="proxy-2-beta-0-seed-0 was stopped before its end; give the command again"):
        work(grid, children, quiet)
    assert "gold of proxy-2-beta-0-seed-0" not in children.started
    again = Children(weights="adapter_config.json")
    work(grid, again, quiet)
    assert again.started[:2] == ["proxy-2-beta-0-seed-0", "gold of proxy-2-beta-0-seed-0"]


class SideBySide(Children):
    """Counts how many run at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.lock, self.now, self.most = threading.Lock(), 0, 0
        self.proxies_running = 0

    def __call__(self, argv: Sequence[str], log: Path) -> int:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
            self.proxies_running += argv[0] == "reward"
            assert argv[0] == "reward" or self.proxies_running == 0
        time.sleep(0.02)
        code = super().__call__(argv, log)
        with self.lock:
            self.now -= 1
            self.proxies_running -= argv[0] == "reward"
        return code


def test_several_run_side_by_side_but_none_before_its_proxies(tmp_path: Path) -> None:
    prepared(tmp_path)
    children, lines = SideBySide(), [""][:0]
    work(plan(config(tmp_path)), children, lines.append, jobs=3)
    assert children.most == 3 and len(children.started) == 20
    for name in children.started:
        if name.startswith("gold of"):
            assert children.started.index(name) > children.started.index(name.removeprefix("gold of "))
    estimates = [line for line in lines if "policies that are left take about" in line]
    assert len(estimates) == 8


def test_processes_write_their_log_and_return_their_code(tmp_path: Path) -> None:
    log, run = tmp_path / "a.log", Processes()
    assert run(["--version"], log) == 0 and log.read_text().startswith("espalier ")
    assert run(["nothing"], log) == 2 and "no such command" in log.read_text()
    run.stop()
    assert run(["--version"], log) != 0
