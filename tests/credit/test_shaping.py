"""What is taken from scores, and which tokens count, by hand."""

import pytest

from espalier.credit import shaping
from espalier.types import Sample
from samples import sample


def test_overlong_answers_lose_score_linearly() -> None:
    """Limit 100, buffer 40: 60 tokens cost nothing, 70 a quarter, 100 all."""
    assert [shaping.overlong(n, 100, 40) for n in (1, 60, 70, 90, 100, 120)] == [0, 0, -0.25, -0.75, -1, -1]
    assert shaping.overlong(100, 100, 0) == 0


def test_the_ratio_sums_over_trained_tokens() -> None:
    s = sample([5, 6], [7, 8])
    s.streams["old_logprobs"] = [1e6, 1e6, -1.0, -2.0]
    s.streams["ref_logprobs"] = [-1e6, -1e6, -1.5, -1.0]
    assert shaping.ratio(s) == -0.5


def test_a_missing_stream_is_named() -> None:
    s = sample([5], [6], group=3)
    s.streams["old_logprobs"] = [0.0, 0.0]
    with pytest.raises(ValueError, match="group 3, part 'main': has no ref_logprobs"):
        shaping.ratio(s)


def test_cut_answers_lose_their_weights() -> None:
    group = [sample([5], [6, 7], stop="length"), sample([5], [6, 7], weight=0.5)]
    assert shaping.mask_cut([group]) == 1
    assert [s.weights for s in group] == [[0, 0, 0], [0, 0.5, 0.5]]
    assert all(s.mask == [False, True, True] for s in group)


def test_advantages_stand_at_trained_tokens_only() -> None:
    s = Sample()
    s.append([5, 6], trained=False)
    s.append([7], trained=True)
    s.append([8], trained=False)
    s.append([9], trained=True)
    assert shaping.spread(s, 2.0) == [0, 0, 2, 0, 2]
    assert shaping.spread(s, 2.0, [1.0, 10.0, 100.0]) == [0, 0, 3, 0, 102]
