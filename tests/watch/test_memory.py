"""Memory that grows step by step is noted once; a jump, noise and the first steps are not."""

from __future__ import annotations

import math
import random

import pytest

from espalier.watch.memory import LEAST, MemoryWatch, slope, slope_error

MIB = 2**20


def warned(values: list[float], watch: MemoryWatch | None = None) -> list[int]:
    """The steps, from 1, after which a line is returned."""
    watch = watch or MemoryWatch()
    return [step for step, held in enumerate(values, 1) if watch.see(step, {"loss": 1.0, "resident_bytes": held})]


def test_the_slope_by_hand() -> None:
    """Around the middle (1): (-1 * -2 + 0 + 1 * 3) / 2."""
    assert slope([1.0, 2.0, 6.0]) == 2.5
    assert slope([4.0] * 5) == 0.0
    # The line is 0.5, 3, 5.5: 0.25 + 1 + 0.25 is left, over 1 degree of freedom and 2.
    assert slope_error([1.0, 2.0, 6.0]) == pytest.approx(math.sqrt(1.5 / 1 / 2))


def test_a_mib_a_step_is_noted_once() -> None:
    """20 steps settle, and 100 make a window: 100 MiB of growth is above 64 MiB, and above 2 % of 1 to 1.2 GiB."""
    growing = [1024 * MIB + step * MIB for step in range(400)]
    assert warned(growing) == [120]
    watch = MemoryWatch()
    lines = [line for step, held in enumerate(growing, 1) for line in watch.see(step, {"resident_bytes": held})]
    (line,) = lines
    assert line.startswith("resident memory grows by 1.00 MiB a step: 100 MiB over the last 100 steps, to 1.12 GiB")


@pytest.mark.parametrize("start, step", [(1024, 0.6), (8192, 1.5)], ids=["60 MiB < 64 MiB", "150 MiB < 2 % of 8 GiB"])
def test_growth_below_the_limit_is_not_noted(start: int, step: float) -> None:
    assert warned([(start + step * i) * MIB for i in range(120)]) == []


def test_jumps_and_noise_are_not_noted() -> None:
    for jump in range(20, 220, 10):
        assert warned([(1000 + 800 * (i >= jump)) * MIB for i in range(220)]) == []
    draw = random.Random(0)
    assert warned([(1000 + draw.gauss(0, 100)) * MIB for _ in range(1000)]) == []
    assert warned([(1000 + 50 * min(i, 20)) * MIB for i in range(300)]) == []


def test_a_resumed_run_looks_at_its_own_process_and_does_not_warn_twice() -> None:
    growing = [float(1024 * MIB + step * MIB) for step in range(130)]
    watch = MemoryWatch()
    lines = [
        {"step": step, "resident_bytes": held, "notes": watch.see(step, {"resident_bytes": held})}
        for step, held in enumerate(growing, 1)
    ]
    assert warned(growing, MemoryWatch.replay(lines)) == []
    # Cut before it warned: 20 steps settle again, and the window begins anew.
    assert warned(growing, MemoryWatch.replay(lines[:119])) == [120]
    assert MemoryWatch().see(3, {"eval_score": 1.0}) == [] and LEAST == 64 * MIB
