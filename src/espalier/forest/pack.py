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

from espalier.forest.trie import Trie, build, laid_length
from espalier.types import Batch, Sample, Says, Segment

Group = Sequence[Sample]
Totals = dict[tuple[str, str], float]


def totals(groups: Sequence[Group]) -> Totals:
    """What the terms of one optimizer step are divided by, for every part: sums over ALL its groups.

    tokens: the weights of scored tokens (a sample's first token is never scored, nothing precedes it); sequences:
    samples; pairs: strict preferences, in the part of the preferred sample; groups: groups with a sample of that part;
    reads: positions where a scalar head is read, without those whose grades are all nan.

    Where a group has pairs, its samples that beat one and that none beats count once more, as the part `chosen`
    (tokens, sequences, groups), which is what a likelihood term on preferred answers is divided by.

    Raises ValueError where samples of one part disagree on their streams, naming the group.
    """
    _stream_names([s for group in groups for s in group])
    out: Totals = {}

    def add(over: str, part: str, amount: float) -> None:
        out[over, part] = out.get((over, part), 0.0) + amount

    for group in groups:
        for part in sorted({s.part for s in group}):
            add("groups", part, 1.0)
        beaten = {place for s in group for place in s.beats}
        for place, s in enumerate(group):
            tokens = sum(w for w, m in zip(s.weights[1:], s.mask[1:], strict=True) if m)
            chosen = bool(s.beats) and place not in beaten
            for part in (s.part, "chosen")[: 1 + chosen]:
                add("tokens", part, tokens)
                add("sequences", part, 1.0)
            add("pairs", s.part, float(len(s.beats)))
            add("reads", s.part, float(_graded(s)))
        if beaten:
            add("groups", "chosen", 1.0)
    return out


def _graded(s: Sample) -> int:
    """How many of a sample's reads count: all that have no grades, or one that is not nan."""
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

    Raises ValueError where samples of one part disagree on their streams, naming the group, and for pairs, reads or
    grades that do not fit their group.
    """
    samples = [s for group in groups for s in group]
    names = _stream_names(samples)
    inputs: list[int] = []
    positions: list[int] = []
    segments: list[Segment] = []
    uses: list[int] = []
    sources: list[int] = []
    target_ids: list[int] = []
    temperatures: list[float] = []
    score: list[int] = []
    rows: list[int] = []
    weights: list[float] = []
    streams: dict[str, list[float]] = {name: [] for name in names}
    judged = _Judged()
    row = 0
    for number, group in enumerate(groups):
        trie = build(group, share=share)
        _lay(trie, inputs, positions, segments)
        first, base = len(sources), len(inputs) - trie.size
        seen: dict[tuple[int, int, float], int] = {}
        for i, s in enumerate(group):
            scored = [t for t in range(1, len(s.tokens)) if s.mask[t]]
            judged.add(s, number, row - i, len(group), len(scored))
            where = trie.where(i, max([scored[-1] if scored else 0, *(read + 1 for read in s.reads)]))
            judged.reads.extend(where[read] + base for read in s.reads)
            scored = scored if says == "tokens" else []
            for t in scored:
                key = (where[t - 1] + base, s.tokens[t], s.temperature)
                u = seen.setdefault(key, first + len(seen))
                if u == len(sources):
                    sources.append(key[0])
                    target_ids.append(key[1])
                    temperatures.append(key[2])
                score.append(u)
            rows.extend([row] * len(scored))
            weights.extend(s.weights[t] for t in scored)
            for name, values in streams.items():
                stream = s.streams.get(name)
                values.extend((stream[t] for t in scored) if stream is not None else [0.0] * len(scored))
            row += 1
        if count_uses:
            counts = [0] * trie.size
            for i, s in enumerate(group):
                for position in trie.where(i, laid_length(s)):
                    counts[position] += 1
            uses.extend(counts)

    def tensor(values: Sequence[float], dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)

    return Batch(
        inputs_N=tensor(inputs),
        positions_N=tensor(positions),
        segments=segments,
        sources_U=tensor(sources),
        targets_U=tensor(target_ids),
        temperatures_U=tensor(temperatures, torch.float32),
        score=tensor(score),
        rows=tensor(rows),
        weights=tensor(weights, torch.float32),
        streams={name: tensor(values, torch.float32) for name, values in streams.items()},
        parts=[s.part for s in samples],
        samples=samples,
        group_S=tensor(judged.groups),
        labels_S=tensor(judged.labels, torch.float32),
        lengths_S=tensor(judged.lengths, torch.float32),
        wins_P2=tensor(judged.wins).view(-1, 2),
        ties_Q2=tensor(judged.ties).view(-1, 2),
        reads_R=tensor(judged.reads),
        read_rows_R=tensor(judged.read_rows),
        grades_RK=tensor(judged.grades, torch.float32).view(len(judged.reads), -1)
        if judged.grades
        else torch.full((len(judged.reads), 1), math.nan, device=device),
        totals=totals,
        state=dict(state or {}),
        uses_N=tensor(uses) if count_uses else None,
    )


class _Judged:
    """What a batch says about its samples, pairs and reads, as it grows."""

    def __init__(self) -> None:
        self.groups: list[int] = []
        self.labels: list[float] = []
        self.lengths: list[int] = []
        self.wins: list[int] = []  # preferred and other row by turns
        self.ties: list[int] = []
        self.reads: list[int] = []
        self.read_rows: list[int] = []
        self.grades: list[float] = []
        self._dimensions: int | None = None

    def add(self, s: Sample, group: int, first: int, size: int, length: int) -> None:
        """Add a sample; its group has `size` samples, and `first` is the row of the first of them."""
        row = len(self.groups)
        self.groups.append(group)
        self.labels.append(math.nan if s.label is None else s.label)
        self.lengths.append(length)
        for others, into in ((s.beats, self.wins), (s.ties, self.ties)):
            for place in others:
                if not 0 <= place < size or place == row - first:
                    raise ValueError(
                        f"group {s.group}: sample {row - first} is compared with {place}; expected another of the "
                        f"{size} samples of its group. A group with pairs is never cut"
                    )
                into += (row, first + place)
        self.read_rows.extend([row] * len(s.reads))
        if s.grades or (self._dimensions and s.reads):
            width = {len(grade) for grade in s.grades}
            if len(s.grades) != len(s.reads) or len(width) > 1 or self._dimensions not in (None, *width):
                raise ValueError(
                    f"group {s.group}: got {len(s.grades)} grades of {sorted(width)} dimensions for {len(s.reads)} "
                    f"reads; expected one a read, all of {self._dimensions or 'one'} dimensions"
                )
            if self._dimensions is None and len(self.read_rows) > len(s.reads):
                raise ValueError(f"group {s.group}: has grades, but earlier reads have none; expected all or none")
            self._dimensions = width.pop()
            self.grades.extend(x for grade in s.grades for x in grade)


def _lay(trie: Trie, inputs: list[int], positions: list[int], segments: list[Segment]) -> None:
    base, first = len(inputs), len(segments)
    for node in trie.nodes:
        inputs.extend(node.tokens)
        positions.extend(range(node.depth, node.depth + len(node.tokens)))
        parent = node.parent + first if node.parent >= 0 else -1
        segments.append(Segment(base + node.start, len(node.tokens), parent, node.depth, node.leave + first))


def _stream_names(samples: Sequence[Sample]) -> list[str]:
    """All stream names; within a part a stream is everywhere or nowhere, and as long as its sample."""
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
                    f"group {s.group}: stream {name} has {len(values)} entries; expected {len(s.tokens)}, one a token"
                )
    return sorted(set().union(*expected.values())) if expected else []
