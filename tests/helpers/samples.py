"""Samples for tests: by hand, at random, and as hypothesis strategies; and what a batch says, read back by hand."""

from __future__ import annotations

import random
from collections.abc import Sequence

from hypothesis import strategies as st

from espalier.types import Batch, Sample

Groups = list[list[Sample]]


def sample(prompt: Sequence[int], answer: Sequence[int], *, weight: float = 1.0, **fields: object) -> Sample:
    """A prompt that is not trained and an answer that is."""
    made = Sample(**fields)  # type: ignore[arg-type]
    made.append(list(prompt), trained=False)
    made.append(list(answer), trained=True, weight=weight)
    return made


def tree_groups(seed: int = 0, *, vocab: int = 128) -> Groups:
    """Three groups: a tree three runs deep with four leaves (runs longer than 16), and two samples on their own."""
    rng = random.Random(seed)

    def run(n: int) -> list[int]:
        return [rng.randrange(5, vocab) for _ in range(n)]

    stem = run(20)
    branch = stem + run(18)
    return [
        [sample(stem, run(10)), sample(branch, run(7)), sample(branch, run(12)), sample(stem, run(3))],
        [sample(run(9), run(14))],
        [sample(run(30), run(5))],
    ]


@st.composite
def groups(draw: st.DrawFn, *, samples: int = 6, tokens: int = 3, longest: int = 40) -> Groups:
    """Groups that share prefixes often: each sample continues a cut of an earlier one with a few token ids."""
    out: Groups = []
    for number in range(draw(st.integers(1, 3))):
        group: list[Sample] = []
        for _ in range(draw(st.integers(1, samples))):
            stem: list[int] = []
            if group and draw(st.booleans()):
                earlier = group[draw(st.integers(0, len(group) - 1))].tokens
                stem = earlier[: draw(st.integers(0, len(earlier)))]
            tail = draw(st.lists(st.integers(0, tokens - 1), min_size=0 if stem else 1, max_size=longest))
            made = Sample(group=number, key=len(group), temperature=draw(st.sampled_from([1.0, 0.5])))
            for token in stem + tail:
                made.append([token], trained=draw(st.booleans()), weight=draw(st.sampled_from([1.0, 0.25, 0.0])))
            group.append(made)
        out.append(group)
    return out


def path_tokens(batch: Batch, position: int) -> list[int]:
    """Tokens from the root to a packed position, read from inputs and segments alone."""
    inputs = batch.inputs_N.tolist()
    index = next(i for i, s in enumerate(batch.segments) if s.start <= position < s.start + s.length)
    segment = batch.segments[index]
    out = inputs[segment.start : position + 1]
    while segment.parent >= 0:
        segment = batch.segments[segment.parent]
        out = inputs[segment.start : segment.start + segment.length] + out
    return out
