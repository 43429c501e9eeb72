"""Which answers rejection sampling keeps, by hand."""

from espalier.credit import selection


def test_the_best_of_each_group() -> None:
    groups: list[list[float | None]] = [[0.0, 2.0, 1.0, None], [1.0, 1.0]]
    assert selection.top(groups, 0.0) == [[False, True, False, False], [True, False]]


def test_the_top_share_of_each_group() -> None:
    """Of ten answers 20 % are two; of four, one."""
    groups: list[list[float | None]] = [[float(n) for n in range(10)], [3.0, 1.0, 2.0, 0.0]]
    kept = selection.top(groups, 0.2)
    assert [[place for place, stays in enumerate(g) if stays] for g in kept] == [[8, 9], [0]]


def test_no_answer_as_bad_as_the_worst_is_kept() -> None:
    """With scores of 0 and 1: none of a prompt that nobody solved, one of a prompt that all solved."""
    assert selection.top([[0.0, 0.0], [1.0, 1.0]], 0.0) == [[False, False], [True, False]]
    assert selection.top([[1.0, 1.0], [1.0, 1.0]], 0.0) == [[False, False], [False, False]]
    assert selection.top([[None, None]], 0.0) == [[False, False]]


def test_the_top_of_the_step_above_a_margin() -> None:
    """Mean of 0, 1, 4, 3 is 2: with margin 1 what scores 3 or more stays, of a top half."""
    assert selection.lead([[0.0, 1.0], [4.0, 3.0, None]], 0.5, 1.0) == [[False, False], [True, True, False]]
    assert selection.lead([[0.0, 1.0], [4.0, 3.0, None]], 0.5, 1.5) == [[False, False], [True, False, False]]
    assert selection.lead([[0.0, 1.0], [4.0, 3.0]], 0.25, 0.0) == [[False, False], [True, False]]
