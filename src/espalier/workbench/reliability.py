"""Reliability diagrams: how often something happens, beside the probability that a model gives it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BINS = 10


def log_sigmoid(x: np.ndarray) -> np.ndarray:
    """log sigma(x) = -log(1 + exp(-x)), without overflow."""
    logs: np.ndarray = -np.logaddexp(0, -x)
    return logs


def sigmoid(x: np.ndarray) -> np.ndarray:
    """sigma(x) = 1 / (1 + exp(-x)), without overflow."""
    p: np.ndarray = np.exp(log_sigmoid(x))
    return p


@dataclass(frozen=True, slots=True)
class Bin:
    """Cases with about the same predicted probability: how many, the mean prediction and the mean outcome (None if the
    bin is empty)."""

    count: int
    predicted: float | None
    observed: float | None


def bin_places(position: np.ndarray) -> np.ndarray:
    """The bin of each case, 0 to `BINS` - 1; `position` runs from 0 to 1 over the bins, 1 belongs to the last one."""
    # 1e-9: 0.7 * 10 may be 6.999..., and a value on an edge belongs to the bin that begins there.
    places: np.ndarray = np.minimum((position * BINS + 1e-9).astype(np.int64), BINS - 1)
    return places


def bins(places: np.ndarray, predicted: np.ndarray, observed: np.ndarray) -> list[Bin]:
    """The `BINS` bins of cases with these places, predicted probabilities and outcomes."""
    filled = []
    for place in range(BINS):
        inside = places == place
        count = int(inside.sum())
        if count:
            means = float(predicted[inside].mean()), float(observed[inside].mean())
            filled.append(Bin(count, *means))
        else:
            filled.append(Bin(0, None, None))
    return filled


def calibration_error(filled: Sequence[Bin], total: int) -> float:
    """ECE = sum_b n_b / n * |mean outcome_b - mean prediction_b|. Guo et al., arXiv:1706.04599."""
    error = 0.0
    for each in filled:
        if each.predicted is not None and each.observed is not None:
            error += each.count / total * abs(each.observed - each.predicted)
    return error
