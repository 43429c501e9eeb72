"""Held-out groups by hand, for the workbench."""

from espalier.workbench.bootstrap import Resampling
from espalier.workbench.records import HeldOutGroup, JudgedResponse

HOW = Resampling(seed=3, resamples=400)


def group(*scores: float, pairs: tuple[tuple[int, int], ...] = (), source: str = "a", **more: object) -> HeldOutGroup:
    """Answers with these scores and lengths 10, 20, ..."""
    answers = [JudgedResponse(s, length=10 * (i + 1)) for i, s in enumerate(scores)]
    return HeldOutGroup(source, 5, answers, list(pairs), **more)  # type: ignore[arg-type]
