"""The check of judgements as they are stored, against the rows that they came from.

Levels, labels and targets are worked out here a second time, from the example alone.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from espalier.checks.table import Outcome, failed, passed, skipped
from espalier.types import Ranking, Response, Sample, Steps

if TYPE_CHECKING:
    from espalier.algorithms.traits import Traits
    from espalier.checks.evidence import Evidence, Row
    from espalier.config.sections import PreferenceConfig, StepLabelsConfig

CLOSE = 1e-6
"""Levels no further apart than this, relative above 1, are not told apart here."""


@dataclass(frozen=True, slots=True)
class Claim:
    """One thing that a row says of its samples, and whether the stored ones agree. kind "flip" may be the other way
    round in as many cases as flips were asked for."""

    about: str
    holds: bool
    kind: str = "exact"


def check_judgements(evidence: Evidence) -> Outcome:
    """The stored judgements of the first rows of every source."""
    config, traits = evidence.session.config, evidence.session.traits
    behind = _behind(evidence) if traits.says == "reads" else frozenset()
    trained = claims(evidence.rows, traits, config.preference, config.labels, behind)
    held = claims(evidence.held_rows, traits, config.preference, config.labels, behind)
    return judgements(trained, held, config.preference.flip)


def _behind(evidence: Evidence) -> frozenset[int]:
    """The tokens that may stand behind the one at which an answer is read: the pad token and, if the template writes
    nothing behind a last answer (as transformers alone says), what ends it elsewhere."""
    renderer, tokenizer = evidence.session.renderer, evidence.session.model.loaded.tokenizer
    behind = set() if renderer.form.unread is None else {renderer.form.unread}
    said = [{"role": "user", "content": "Zqu"}, {"role": "assistant", "content": "Zqa"}]
    try:
        text = str(tokenizer.apply_chat_template(said, tokenize=False))
    # A template is a program, and may raise anything.
    except Exception:
        return frozenset(behind)
    return frozenset(behind | set(renderer.stop_ids) if text.rstrip().endswith("Zqa") else behind)


def judgements(trained: Iterable[Claim], held: Iterable[Claim], flip: float) -> Outcome:
    """Judgements of training rows, of which a share `flip` is flipped, and of held-out rows, of which none is."""
    limit = "all" if not flip else f"all but {flip:.0%} flips, none of held-out rows"
    count = 0
    for claimed, share in ((list(trained), flip), (list(held), 0.0)):
        drawn = [claim for claim in claimed if claim.kind == "flip"]
        wrong = [claim for claim in claimed if claim.kind == "exact" and not claim.holds]
        other = [claim for claim in drawn if not claim.holds]
        most = share * len(drawn) + 4 * math.sqrt(len(drawn) * share * (1 - share)) + (1 if share else 0)
        if len(other) > most:
            wrong += other
        if wrong:
            way_out = f"First: {wrong[0].about}. Look at it with `espalier inspect`, and report it."
            return failed(f"{len(wrong)} of {len(claimed)} judgements are not the row's", limit, way_out)
        count += len(claimed)
    if not count:
        return skipped("nothing is judged among the first rows", limit)
    return passed(f"{count} judgements of the first rows", limit)


def claims(
    rows: Iterable[Row],
    traits: Traits,
    preference: PreferenceConfig,
    labels: StepLabelsConfig,
    behind: Collection[int] = (),
) -> Iterator[Claim]:
    """What the examples of rows say of the stored samples. behind: tokens that may follow where an answer is read."""
    for row in rows:
        if len(row.rendered) != len(row.stored):
            continue
        where = str(row.example.origin)
        if isinstance(row.example, Steps):
            (s,) = row.stored
            yield from _of_steps(row.example, s, labels, where)
        elif isinstance(row.example, Ranking) and traits.consumes == "ranking":
            responses = [r.response for r in row.rendered]
            if None not in responses:
                known = [r for r in responses if r is not None]
                yield from _of_ranking(row.example, known, row.stored, traits, preference, where)
                if traits.says == "reads" or traits.wants == "grades":
                    yield from _reads(row.stored, behind, where)


# ------------------------------------------------------------------------------------------------------------- rankings


def _of_ranking(
    example: Ranking,
    responses: Sequence[Response],
    stored: Sequence[Sample],
    traits: Traits,
    preference: PreferenceConfig,
    where: str,
) -> Iterator[Claim]:
    """What a ranking says of its samples, which stand in the order of `responses`."""
    for s, response in zip(stored, responses, strict=True):
        answer = f"{where}, answer {response.message.content[:40]!r}"
        if s.grades and not all(map(math.isnan, s.grades[0])):
            grade = [math.nan if x is None else float(x) for x in response.scores]
            yield Claim(f"{answer} has the grade {s.grades[0]}", not grade or _same(s.grades[0], grade))
    levels = levels_of(example, responses, traits, preference)
    if traits.wants == "labels":
        sure = len(set(levels)) > 1 or any(r.good is not None for r in responses)  # else which one is left is not known
        for s, level, response in zip(stored, levels, responses, strict=True):
            about = f"{where}, answer {response.message.content[:40]!r} has the label {s.label}"
            yield Claim(about, s.label == level or not sure, "flip")
    elif traits.wants != "grades":
        for s, level, response in zip(stored, levels, responses, strict=True):
            about = f"{where}, answer {response.message.content[:40]!r} has the level {s.label}"
            equal = (s.label is None) == (level is None)
            yield Claim(about, equal and (level is None or abs((s.label or 0.0) - level) <= CLOSE * max(1, abs(level))))
        yield from _compared(levels, stored, preference, where)


def _reads(stored: Sequence[Sample], behind: Collection[int], where: str) -> Iterator[Claim]:
    """Each answer is read once, at its last token but for those that are never read."""
    for number, s in enumerate(stored, 1):
        right = len(s.reads) == 1 and all(token in behind for token in s.tokens[s.reads[0] + 1 :])
        yield Claim(f"{where}: answer {number} is read at {s.reads} of its {len(s)} tokens", right)


def _compared(
    levels: Sequence[float | None], stored: Sequence[Sample], preference: PreferenceConfig, where: str
) -> Iterator[Claim]:
    """Every comparison follows the levels, and, unless some are left out on purpose, every two levels are compared."""
    compared: set[tuple[int, int]] = set()
    for i, s in enumerate(stored):
        for j in s.beats:
            gap = _gap(levels, i, j)
            yield Claim(f"{where}: answer {i + 1} beats answer {j + 1}, which is as good", gap != 0)
            yield Claim(f"{where}: answer {i + 1} beats answer {j + 1}, which is better", gap > 0, "flip")
            compared.add((min(i, j), max(i, j)))
        for j in s.ties:
            yield Claim(f"{where}: answers {i + 1} and {j + 1} are a tie, and differ", _gap(levels, i, j) == 0)
            compared.add((min(i, j), max(i, j)))
    if preference.min_gap or preference.max_pairs:
        return
    for i in range(len(stored)):
        for j in range(i + 1, len(stored)):
            if levels[i] is not None and levels[j] is not None:
                yield Claim(f"{where}: answers {i + 1} and {j + 1} are not compared", (i, j) in compared)


def _gap(levels: Sequence[float | None], i: int, j: int) -> float:
    """How much better answer i is than answer j; nan if one of them has no level."""
    one, other = levels[i], levels[j]
    if one is None or other is None:
        return math.nan
    gap = one - other
    return 0.0 if abs(gap) <= CLOSE * max(1.0, abs(one)) else gap


def levels_of(
    example: Ranking, responses: Sequence[Response], traits: Traits, preference: PreferenceConfig
) -> list[float | None]:
    """How good each response is: by its rank, its scores' weighted mean or its label, whichever decides for the row."""
    every = example.responses
    by = preference.judged_by
    if by == "auto" and traits.wants == "labels" and any(r.good is not None for r in every):
        by = "labels"
    if by == "auto" and any(r.rank is not None for r in every):
        by = "ranks"
    if by == "auto":
        by = "scores" if any(x is not None for r in every for x in r.scores) else "labels"
    if by == "labels":
        return [None if r.good is None else float(r.good) for r in responses]
    if by == "ranks":
        by_response = {id(r): None if r.rank is None else -float(r.rank) for r in every}
    else:
        by_response = {id(r): _mean_score(r, example.dimensions, preference) for r in every}
    if traits.wants != "labels":
        return [by_response[id(r)] for r in responses]
    own = [by_response[id(r)] for r in responses]
    best = max((level for level in own if level is not None), default=0.0)  # of two levels, the better one is good
    return [None if level is None else float(level == best) for level in own]


def _mean_score(response: Response, dimensions: Sequence[str], preference: PreferenceConfig) -> float | None:
    """sum_d w_d s_d / sum_d |w_d|; None if a score that weighs something is missing."""
    weights = preference.weights
    of_dimension = [weights.get(name, 0.0) if weights else 1.0 for name in dimensions] or [1.0] * len(response.scores)
    weighed = [(w, x) for w, x in zip(of_dimension, response.scores, strict=False) if w]
    if not weighed or any(x is None for _, x in weighed):
        return None
    return sum(w * (x or 0.0) for w, x in weighed) / sum(abs(w) for w, _ in weighed)


def _same(stored: Sequence[float], grade: Sequence[float]) -> bool:
    """Whether two grades are equal, up to float32; nan equals nan."""
    if len(stored) != len(grade):
        return False
    for x, y in zip(stored, grade, strict=True):
        if math.isnan(x) != math.isnan(y) or abs(x - y) > CLOSE * max(1.0, abs(y)):
            return False
    return True


# ---------------------------------------------------------------------------------------------------------------- steps


def _of_steps(example: Steps, s: Sample, config: StepLabelsConfig, where: str) -> Iterator[Claim]:
    """Every read of a solution has the target of its own step."""
    targets = targets_of(example, config)
    yield Claim(f"{where} has {len(s.reads)} reads and {len(s.grades)} targets", len(s.reads) == len(s.grades))
    for number, grade in enumerate(s.grades):
        about = f"{where}: step {number + 1} has the target {grade[0]}, its label is {example.labels[number]}"
        yield Claim(about, _same(grade, [targets[number]]))
    solved = None if example.solved is None else float(example.solved)
    yield Claim(f"{where} has the label {s.label}, its outcome is {example.solved}", s.label == solved)


def targets_of(example: Steps, config: StepLabelsConfig) -> list[float]:
    """What the head should say after each step; nan for a step that is left out."""
    count, labels = len(example.steps), example.labels
    if config.supervision == "outcome" or all(label is None for label in labels):
        outcome = math.nan if example.solved is None else float(example.solved)
        rest = outcome if config.outcome == "spread" else math.nan
        return [rest] * (count - 1) + [outcome]
    neutral = {"good": 1.0, "bad": 0.0, "half": 0.5, "ignore": math.nan}[config.neutral]
    own = [math.nan if x is None else neutral if x == 0.5 else float(x) for x in labels]
    if config.after_mistake == "keep" or 0.0 not in own:
        return own
    first = own.index(0.0)
    behind = 0.0 if config.after_mistake == "bad" else math.nan
    return own[: first + 1] + [behind] * (count - first - 1)
