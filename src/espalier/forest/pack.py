"""Samples in, forest out: the one place that knows how tokens reach a model, and the one place that shifts.

    group 0:  sample 0 = P P P A A      sample 1 = P P P B B B         (P prompt, A and B answers, trained)

    inputs     P P P A B B            segments  [P: root] [A: child of P] [B: child of P]
    positions  0 1 2 3 3 4
    sources    2 3 | 2 4 5            the last P predicts the first A and the first B
    targets    A A | B B B

(Runs this short are copied rather than shared; see `trie.MIN_SHARED`.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from espalier.forest.trie import Trie, build, laid_length
from espalier.types import Batch, Sample, Says, Segment

Group = Sequence[Sample]
Totals = dict[tuple[str, str], float]


def totals(groups: Sequence[Group], *, streams: bool = True) -> Totals:
    """What the terms of one optimizer step are divided by, for every part: sums over ALL its groups.

    tokens: the weights of scored tokens (a sample's first token is never scored, nothing precedes it); sequences:
    samples; pairs: strict preferences, in the part of the preferred sample; groups: groups with a sample of that part;
    reads: positions where a scalar head is read, without those whose grades are all nan.

    If a group has pairs, those of its samples that beat another and are beaten by none count once more, as the part
    `chosen` (tokens, sequences, groups). A likelihood term on preferred answers is divided by it.

    Raises ValueError if samples of one part disagree on their streams, naming the group; without `streams` they may,
    because they are counted and not packed.
    """
    if streams:
        _stream_names([s for group in groups for s in group])
    out: Totals = {}

    def add(over: str, part: str, amount: float) -> None:
        out[over, part] = out.get((over, part), 0.0) + amount

    for group in groups:
        for part in sorted({s.part for s in group}):
            add("groups", part, 1.0)
        beaten = {place for s in group for place in s.beats}
        for place, s in enumerate(group):
            tokens = sum(weight for weight, trained in zip(s.weights[1:], s.mask[1:], strict=True) if trained)
            chosen = bool(s.beats) and place not in beaten
            for part in [s.part, "chosen"] if chosen else [s.part]:
                add("tokens", part, tokens)
                add("sequences", part, 1.0)
            add("pairs", s.part, float(len(s.beats)))
            add("reads", s.part, float(_graded(s)))
        if beaten:
            add("groups", "chosen", 1.0)
    return out


def _graded(s: Sample) -> int:
    """How many of a sample's reads count: all but those whose grades are all nan."""
    return len(s.reads) - sum(1 for grade in s.grades if all(math.isnan(x) for x in grade))


def pack(
    groups: Sequence[Group],
    totals: Totals,
    *,
    state: dict[str, float] | None = None,
    share: bool = True,
    count_uses: bool = False,
    says: Says = "tokens",
    device: torch.device | str = "cpu",
) -> Batch:
    """Lay groups down as one forest.

    Args:
        groups: what goes into this forward; siblings stand in one group.
        totals: of the whole optimizer step, from `totals`.
        state: the algorithm's moving numbers, passed through.
        share: lay shared prefixes down once; False gives every sample a segment of its own.
        count_uses: fill `uses_N`, which the router loss of mixtures of experts needs.
        says: what the model is read for; "reads" (a scalar head) scores no tokens and leaves T and U at 0.
        device: where the tensors go.

    Raises ValueError if samples of one part disagree on their streams, naming the group, and for pairs, reads or grades
    that do not fit their group.
    """
    samples = [s for group in groups for s in group]
    forest, scores, judged = _Forest(count_uses), _Scores(_stream_names(samples)), _Judged()
    row = 0
    for number, group in enumerate(groups):
        trie = build(group, share=share)
        base = forest.lay(trie)
        for i, s in enumerate(group):
            scored = [t for t in range(1, len(s.tokens)) if s.mask[t]]
            judged.add(s, number, row - i, len(group), len(scored))
            # Token t is scored at token t - 1, so the last target needs no place of its own; a
            # token that is read does.
            where = trie.where(i, max([scored[-1] if scored else 0, *(read + 1 for read in s.reads)]))
            judged.reads.extend(where[read] + base for read in s.reads)
            if says != "reads":
                scores.add(s, row, scored, where, base)
            row += 1
        forest.count(trie, group)
    return _batch(samples, forest, scores, judged, totals, dict(state or {}), device)


def _batch(
    samples: list[Sample],
    forest: _Forest,
    scores: _Scores,
    judged: _Judged,
    totals: Totals,
    state: dict[str, float],
    device: torch.device | str,
) -> Batch:
    """Lists become tensors, each list in one go."""

    def ints(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64).to(device, non_blocking=True)

    def floats(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32).to(device, non_blocking=True)

    return Batch(
        inputs_N=ints(forest.inputs),
        positions_N=ints(forest.positions),
        segments=forest.segments,
        sources_U=ints(scores.sources),
        targets_U=ints(scores.targets),
        temperatures_U=floats(scores.temperatures),
        score=ints(scores.score),
        rows=ints(scores.rows),
        weights=floats(scores.weights),
        streams={name: floats(values) for name, values in scores.streams.items()},
        parts=[s.part for s in samples],
        samples=samples,
        group_S=ints(judged.groups),
        labels_S=floats(judged.labels),
        lengths_S=floats(judged.lengths),
        wins_P2=ints(judged.wins).view(-1, 2),
        ties_Q2=ints(judged.ties).view(-1, 2),
        reads_R=ints(judged.reads),
        read_rows_R=ints(judged.read_rows),
        grades_RK=floats(judged.grades_or_nan()).view(len(judged.reads), judged.dimensions or 1),
        totals=totals,
        state=state,
        uses_N=None if forest.uses is None else ints(forest.uses),
    )


class _Forest:
    """The packed tokens of a batch, as they grow group by group. `uses` is None unless they are counted."""

    def __init__(self, count_uses: bool) -> None:
        self.inputs: list[int] = []
        self.positions: list[int] = []
        self.segments: list[Segment] = []
        self.uses: list[int] | None = [] if count_uses else None

    def lay(self, trie: Trie) -> int:
        """Add the tokens of one group; returns the place of its first."""
        base, first = len(self.inputs), len(self.segments)
        for node in trie.nodes:
            self.inputs.extend(node.tokens)
            self.positions.extend(range(node.depth, node.depth + len(node.tokens)))
            parent = node.parent + first if node.parent >= 0 else -1
            self.segments.append(Segment(base + node.start, len(node.tokens), parent, node.depth, first + node.leave))
        return base

    def count(self, trie: Trie, group: Group) -> None:
        """Count how many samples of the group that was laid last pass through each of its tokens."""
        if self.uses is None:
            return
        counts = [0] * trie.size
        for i, s in enumerate(group):
            for place in trie.where(i, laid_length(s)):
                counts[place] += 1
        self.uses.extend(counts)


class _Scores:
    """The scores of a batch (U) and their uses by samples (T), as they grow sample by sample."""

    def __init__(self, streams: Sequence[str]) -> None:
        self.sources: list[int] = []
        self.targets: list[int] = []
        self.temperatures: list[float] = []
        self.score: list[int] = []
        self.rows: list[int] = []
        self.weights: list[float] = []
        self.streams: dict[str, list[float]] = {name: [] for name in streams}
        self._numbers: dict[tuple[int, int, float], int] = {}

    def add(self, s: Sample, row: int, scored: list[int], where: list[int], base: int) -> None:
        """Add the tokens `scored` of a sample, which stand at `where`, counted from `base`."""
        numbers, sources, score = self._numbers, self.sources, self.score
        tokens, temperature = s.tokens, s.temperature
        for t in scored:
            # Siblings that share a source, a target and a temperature share the score: it is
            # computed once. Groups share nothing, because no two of them have a source in common.
            key = (where[t - 1] + base, tokens[t], temperature)
            number = numbers.setdefault(key, len(numbers))
            if number == len(sources):
                sources.append(key[0])
                self.targets.append(key[1])
                self.temperatures.append(temperature)
            score.append(number)
        self.rows.extend([row] * len(scored))
        self.weights.extend([s.weights[t] for t in scored])
        for name, values in self.streams.items():
            stream = s.streams.get(name)
            if stream is None:  # another part's stream
                values.extend([0.0] * len(scored))
            else:
                values.extend([stream[t] for t in scored])


class _Judged:
    """What a batch says about its samples, pairs and reads, as it grows sample by sample."""

    def __init__(self) -> None:
        self.groups: list[int] = []
        self.labels: list[float] = []
        self.lengths: list[int] = []
        self.wins: list[int] = []  # preferred row, other row, preferred row, ...
        self.ties: list[int] = []
        self.reads: list[int] = []
        self.read_rows: list[int] = []
        self.grades: list[float] = []
        self.dimensions: int | None = None

    def add(self, s: Sample, group: int, first: int, size: int, length: int) -> None:
        """Add a sample of `length` scored tokens; its group has `size` samples, of which row `first` is the first."""
        row = len(self.groups)
        self.groups.append(group)
        self.labels.append(math.nan if s.label is None else s.label)
        self.lengths.append(length)
        for others, pairs in ((s.beats, self.wins), (s.ties, self.ties)):
            for place in others:
                if not 0 <= place < size or place == row - first:
                    raise ValueError(
                        f"group {s.group}: sample {row - first} is compared with {place}; expected another of the "
                        f"{size} samples of its group. A group with pairs is never cut"
                    )
                pairs += (row, first + place)
        self.read_rows.extend([row] * len(s.reads))
        # Once a sample has grades, every read must have them: the rows of grades_RK are those of
        # reads_R.
        if s.grades or (self.dimensions and s.reads):
            self._add_grades(s)

    def _add_grades(self, s: Sample) -> None:
        width = {len(grade) for grade in s.grades}
        if len(s.grades) != len(s.reads) or len(width) > 1 or self.dimensions not in (None, *width):
            raise ValueError(
                f"group {s.group}: got {len(s.grades)} grades of {sorted(width)} dimensions for {len(s.reads)} reads; "
                f"expected one grade per read, each of {self.dimensions or 'one'} dimensions"
            )
        if self.dimensions is None and len(self.read_rows) > len(s.reads):
            raise ValueError(f"group {s.group}: has grades, but earlier reads have none; expected all or none")
        self.dimensions = width.pop()
        self.grades.extend([x for grade in s.grades for x in grade])

    def grades_or_nan(self) -> list[float]:
        """All grades, read by read; one nan per read if there are none."""
        return self.grades or [math.nan] * len(self.reads)


def _stream_names(samples: Sequence[Sample]) -> list[str]:
    """All stream names, sorted.

    Raises ValueError if a part has a stream on some of its samples only, or one that is not as long as its sample.
    """
    expected: dict[str, set[str]] = {}
    for s in samples:
        names = expected.setdefault(s.part, set(s.streams))
        if names != set(s.streams):
            odd = ", ".join(sorted(names ^ set(s.streams)))
            raise ValueError(
                f"group {s.group}, part {s.part!r}: stream {odd} is on some samples and not on others; "
                "expected all or none. Fill the stream for the whole part before packing"
            )
        for name, values in s.streams.items():
            if len(values) != len(s.tokens):
                raise ValueError(
                    f"group {s.group}: stream {name} has {len(values)} entries; expected {len(s.tokens)}, one per token"
                )
    return sorted(set().union(*expected.values())) if expected else []
