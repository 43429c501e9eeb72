"""Samples in, forest out: the one place that knows how tokens reach a model, and the one place that shifts.

    group 0:  sample 0 = P P P A A      sample 1 = P P P B B B         (P prompt, A and B answers, trained)

    inputs     P P P A B B            segments  [P: root] [A: child of P] [B: child of P]
    positions  0 1 2 3 3 4
    sources    2 3 | 2 4 5            the last P predicts the first A and the first B
    targets    A A | B B B

(Runs this short are copied rather than shared; see `trie.MIN_SHARED`.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from espalier.trie import Trie, build, laid_length
from espalier.types import Batch, Sample, Segment

Group = Sequence[Sample]
Totals = dict[tuple[str, str], float]


def totals(groups: Sequence[Group]) -> Totals:
    """What the terms of one optimizer step are divided by, for every part: sums over ALL its groups.

    tokens: the weights of scored tokens (a sample's first token is never scored, nothing precedes it); sequences:
    samples; groups: groups with a sample of that part; reads: positions where a scalar head is read.

    Raises ValueError where samples of one part disagree on their streams, naming the group.
    """
    _stream_names([s for group in groups for s in group])
    out: Totals = {}

    def add(over: str, part: str, amount: float) -> None:
        out[over, part] = out.get((over, part), 0.0) + amount

    for group in groups:
        for part in sorted({s.part for s in group}):
            add("groups", part, 1.0)
        for s in group:
            add("tokens", s.part, sum(w for w, m in zip(s.weights[1:], s.mask[1:], strict=True) if m))
            add("sequences", s.part, 1.0)
            add("reads", s.part, float(len(s.reads)))
    return out


def pack(
    groups: Sequence[Group],
    totals: Totals,
    *,
    state: dict[str, float] | None = None,
    share: bool = True,
    count_uses: bool = False,
    device: torch.device | str = "cpu",
) -> Batch:
    """Lay groups down as one forest.

    Args:
        groups: what goes into this forward; siblings stand in one group.
        totals: of the whole optimizer step, from `totals`.
        state: the algorithm's moving numbers, passed through.
        share: lay shared prefixes down once; False gives every sample a segment of its own.
        count_uses: fill `uses_N`, which the router loss of mixtures of experts needs.
        device: where the tensors go.

    Raises ValueError where samples of one part disagree on their streams, naming the group.
    """
    samples = [s for group in groups for s in group]
    names = _stream_names(samples)
    inputs: list[int] = []
    positions: list[int] = []
    segments: list[Segment] = []
    uses: list[int] = []
    sources: list[int] = []
    targets: list[int] = []
    temperatures: list[float] = []
    score: list[int] = []
    rows: list[int] = []
    weights: list[float] = []
    streams: dict[str, list[float]] = {name: [] for name in names}
    row = 0
    for group in groups:
        trie = build(group, share=share)
        _lay(trie, inputs, positions, segments)
        first, base = len(sources), len(inputs) - trie.size
        seen: dict[tuple[int, int, float], int] = {}
        for i, s in enumerate(group):
            scored = [t for t in range(1, len(s.tokens)) if s.mask[t]]
            where = trie.where(i, scored[-1] if scored else 0)
            for t in scored:
                key = (where[t - 1] + base, s.tokens[t], s.temperature)
                u = seen.setdefault(key, first + len(seen))
                if u == len(sources):
                    sources.append(key[0])
                    targets.append(key[1])
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
        targets_U=tensor(targets),
        temperatures_U=tensor(temperatures, torch.float32),
        score=tensor(score),
        rows=tensor(rows),
        weights=tensor(weights, torch.float32),
        streams={name: tensor(values, torch.float32) for name, values in streams.items()},
        parts=[s.part for s in samples],
        samples=samples,
        totals=totals,
        state=dict(state or {}),
        uses_N=tensor(uses) if count_uses else None,
    )


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
