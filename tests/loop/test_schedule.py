"""Learning rates by hand."""

import math

import pytest

from espalier.config.sections import OptimConfig
from espalier.loop.schedule import learning_rate


def rates(steps: int, **fields: object) -> list[float]:
    config = OptimConfig(**{"lr": 1.0, "warmup": 0.0, **fields})  # type: ignore[arg-type]
    return [learning_rate(i, steps, config) for i in range(steps)]


def test_constant_after_warmup() -> None:
    assert rates(8, schedule="constant", warmup=0.5, lr=4.0) == [1.0, 2.0, 3.0, 4.0, 4.0, 4.0, 4.0, 4.0]


def test_linear_falls_towards_the_floor() -> None:
    assert rates(4, schedule="linear") == pytest.approx([1.0, 0.75, 0.5, 0.25])
    assert rates(4, schedule="linear", min_lr=0.2) == pytest.approx([1.0, 0.8, 0.6, 0.4])


def test_cosine_is_half_way_in_the_middle() -> None:
    got = rates(8, schedule="cosine", warmup=0.5)
    assert got == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2])
    assert rates(4, schedule="cosine", min_lr=0.5)[2] == pytest.approx(0.75)


def test_wsd_is_flat_then_falls() -> None:
    assert rates(10, schedule="wsd", warmup=0.2, decay=0.4) == pytest.approx(
        [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25]
    )
    assert rates(4, schedule="wsd", decay=0.0) == [1.0] * 4


def test_shares_of_steps_are_rounded_up_but_not_by_rounding_errors() -> None:
    assert 0.07 * 100 > 7
    assert rates(100, schedule="constant", warmup=0.07)[:8] == pytest.approx([i / 7 for i in range(1, 8)] + [1.0])
    assert rates(3, schedule="constant", warmup=0.01) == [1.0] * 3  # one step of warm-up reaches the peak


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "wsd"])
def test_never_zero_and_never_above_the_peak(schedule: str) -> None:
    for steps in (1, 2, 7, 100):
        for warmup in (0.0, 0.03, 0.5, 1.0):
            decay = min(0.2, 1 - warmup)
            assert all(0 < r <= 1 for r in rates(steps, schedule=schedule, warmup=warmup, decay=decay))
