"""What a run shows: lines outside a terminal, one live line in it, nothing from other ranks."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from espalier.loop.progress import Progress, duration, peak_memory


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def plain() -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=80), out


def test_plain_lines_come_first_then_by_time_and_at_the_end() -> None:
    console, out = plain()
    clock = Clock()
    with Progress(100, console=console, interval=10, clock=clock) as progress:
        for step in range(1, 101):
            progress.update(step, {"loss": 1 / step})
            clock.now += 1
    steps = [int(line.split("/")[0].removeprefix("step ")) for line in out.getvalue().splitlines()]
    assert steps == [1, 2, 3, 13, 23, 33, 43, 53, 63, 73, 83, 93, 100]


def test_a_line_holds_loss_speed_time_left_and_memory() -> None:
    console, out = plain()
    clock = Clock()
    progress = Progress(12, console=console, clock=clock)
    progress.update(1, {"loss": 2.5, "lr": 1.0})
    clock.now = 4.0
    progress.update(3, {"loss": 1.23456, "tokens_per_second": 12345.6})
    first, second = out.getvalue().splitlines()
    assert first == "step 1/12  loss 2.5000"
    # 2 steps took 4 s, so 9 more take 18 s.
    assert re.fullmatch(r"step 3/12  loss 1\.2346  12,346 tokens/s  18s left  \d+\.\d\d GiB", second)


def test_a_draw_that_takes_minutes_says_how_far_it_is() -> None:
    """Every 30 s from its start; a quick one says nothing."""
    console, out = plain()
    clock = Clock()
    with Progress(9, console=console, interval=10, clock=clock) as progress:
        for what, seconds in (("step 1", 20), ("step 2", 70)):
            for graded in range(seconds):
                progress.answers(what, graded, 1_024)
                clock.now += 1
    assert out.getvalue().splitlines() == ["step 2: 30 of 1,024 answers", "step 2: 60 of 1,024 answers"]


def test_of_rollouts_a_line_holds_reward_length_and_kl() -> None:
    """Never the loss, which is near 0 whatever happens; the kl only if it is known."""
    progress = Progress(12, console=plain()[0], clock=Clock())
    drawn = {"loss": 0.01, "reward": 0.4567, "length": 31.25, "sampled_tokens": 99.0}
    assert progress.line(1, drawn, 0.0) == "reward 0.457  length 31.2"
    assert progress.line(1, {**drawn, "kl": 0.00123}, 0.0) == "reward 0.457  length 31.2  kl 0.0012"


def test_a_resumed_run_estimates_from_its_own_steps() -> None:
    console, out = plain()
    clock = Clock()
    progress = Progress(110, console=console, clock=clock)
    progress.update(100, {})
    clock.now = 3.0
    progress.update(101, {})
    assert "27s left" in out.getvalue().splitlines()[1]


def test_only_rank_0_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    def say(**given: int) -> str:
        console, out = plain()
        with Progress(2, console=console, **given) as progress:
            progress.update(1, {"loss": 1.0})
            progress.note("note")
            progress.table("t", ["a"], [[1]])
        return out.getvalue()

    assert say(rank=1) == ""
    assert "note" in say(rank=0)
    monkeypatch.setenv("RANK", "2")
    assert say() == ""


def test_a_terminal_gets_one_live_line_with_notes_above_it() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120, color_system=None)
    with Progress(3, console=console, rank=0) as progress:
        progress.update(1, {"loss": 4.0})
        progress.note("saved [step] 1")
        progress.update(3, {"loss": 2.0})
    text = out.getvalue()
    assert "saved [step] 1\n" in text
    last = text.split("\r")[-1]
    assert "3/3" in last and "loss 2.0000" in last
    assert "step 1/3" not in text


def test_tables_print_cells_as_they_are_and_numbers_to_the_right() -> None:
    console, out = plain()
    Progress(0, console=console, rank=0).table("Data", ["source", "rows"], [["a[b]", 1234567], ["c", 8]])
    title, head, one, two = (line.rstrip() for line in out.getvalue().splitlines())
    assert title == "Data"
    assert head == "source       rows"
    assert one == "a[b]    1,234,567"
    assert two == "c               8"


def test_reading_says_nothing_until_it_takes_long() -> None:
    console, out = plain()
    clock = Clock()
    tell = Progress(0, console=console, rank=0, interval=10, clock=clock).reading("rows read")
    tell("a.jsonl", 10)
    clock.now = 10.0
    tell("a.jsonl", 25_000)
    clock.now = 12.0
    tell("a.jsonl", 30_000)
    assert out.getvalue() == "a.jsonl: 25,000 rows read\n"


def test_durations_and_memory() -> None:
    assert [duration(s) for s in (-1, 0.4, 59.6, 3599, 3600, 86400)] == [
        "0s",
        "0s",
        "1m00s",
        "59m59s",
        "1h00m",
        "1d00h",
    ]
    before = peak_memory()
    assert before > 2**20
    ballast = bytearray(64 * 2**20)
    assert peak_memory() >= before
    assert len(ballast) == 64 * 2**20
