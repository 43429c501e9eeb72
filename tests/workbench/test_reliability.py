"""The bins of reliability diagrams, and the calibration error over them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from espalier.workbench.reliability import BINS, Bin, bin_places, bins, calibration_error, log_sigmoid, sigmoid


def test_a_value_on_an_edge_belongs_to_the_bin_that_begins_there() -> None:
    """0.7 * 10 and 0.3 * 10 are not exact; 1 belongs to the last bin."""
    assert bin_places(np.array([0.0, 0.0999, 0.1, 0.3, 0.7, 0.99, 1.0])).tolist() == [0, 0, 1, 3, 7, 9, 9]


def test_bins_have_means_and_empty_ones_have_none() -> None:
    """Predictions 0.1 and 0.3 with outcomes 0 and 1: 0.2 beside 0.5."""
    filled = bins(np.array([4, 4]), np.array([0.1, 0.3]), np.array([0.0, 1.0]))
    assert len(filled) == BINS and filled[4] == Bin(2, pytest.approx(0.2), 0.5)  # type: ignore[arg-type]
    assert filled[0] == Bin(0, None, None)
    assert calibration_error(filled, 2) == pytest.approx(0.3)


def test_sigmoids_of_large_numbers_do_not_overflow() -> None:
    assert sigmoid(np.array([0.0, 800.0, -800.0])).tolist() == [0.5, 1.0, 0.0]
    assert log_sigmoid(np.array([-800.0, 0.0])).tolist() == [-800.0, -math.log(2)]
