"""Reference answers have mean 0 after the calibration, whichever way it went wrong."""

from dataclasses import replace

from espalier.assembly.session import Calibrated
from espalier.checks.calibration import calibration
from espalier.types import Sample

PAIR = [Sample(beats=[1]), Sample()]
BEFORE = [[(3.0,), (1.0,)], [(5.0,), (2.0,)]]  # the better answers have mean 4 and deviation 1


def made(after, scale=False, every=False, weights=None, groups=None):
    return Calibrated(groups or [PAIR, PAIR], BEFORE, after, every, scale, weights)


def test_the_better_answers_have_mean_0():
    good = made([[(-1.0,), (-3.0,)], [(1.0,), (-2.0,)]])
    assert calibration(good, 1e-6).verdict == "pass"
    for shift in (4.0, -4.0, -8.0):  # no bias, the wrong sign, twice
        wrong = [[(s[0] + shift,) for s in group] for group in good.after]
        assert calibration(made(wrong), 1e-6).verdict == "fail"
    on_the_worse = [[(1.5,), (-0.5,)], [(3.5,), (0.5,)]]
    assert calibration(made(on_the_worse), 1e-6).verdict == "fail"
    assert calibration(replace(good, after=[[(float("nan"),), (0.0,)]]), 1e-6).verdict == "fail"


def test_all_answers_have_mean_0_and_deviation_1():
    # 3, 1, 5, 2: mean 2.75, deviation sqrt(2.1875)
    scaled = [[((x[0] - 2.75) / 2.1875**0.5,) for x in group] for group in BEFORE]
    assert calibration(made(scaled, scale=True, every=True), 1e-6).verdict == "pass"
    assert calibration(made(scaled, every=True), 1e-6).verdict == "fail"


def test_grades_say_which_answers_count():
    graded = [Sample(grades=[(1.0, 9.0)]), Sample(grades=[(2.0, 0.0)])]
    after = [[(1.5,), (-0.5,)], [(3.5,), (0.5,)]]  # the second ones, 1 and 2, have mean 1.5
    assert calibration(made(after, weights=(1.0, 0.0), groups=[graded, graded]), 1e-6).verdict == "pass"
    assert calibration(made(after, weights=(0.0, 1.0), groups=[graded, graded]), 1e-6).verdict == "fail"
