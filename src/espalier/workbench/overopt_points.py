"""Points of the over-optimisation curve, from stored answers: proxy and gold reward by how far the policy has gone."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from espalier.workbench.bestof import best_of


class Scored(NamedTuple):
    """A stored answer: the number of its prompt, the rewards that trained and those that only measure, the KL to the
    start in nats (sum over its tokens of k3; None if nothing measured it)."""

    prompt: int
    proxy: float
    gold: float
    kl: float | None


@dataclass(frozen=True, slots=True)
class Point:
    """Answers at one distance. at: the last step of a run, or n of best-of-n. prompts: numbers of their prompts, each
    once; proxy, gold and kl are sums over the answers to each of them, counts their numbers."""

    at: int
    prompts: tuple[int, ...]
    proxy: tuple[float, ...]
    gold: tuple[float, ...]
    kl: tuple[float, ...]
    counts: tuple[float, ...]

    def mean(self, name: str) -> float:
        """The mean of `proxy`, `gold` or `kl` over the answers."""
        return math.fsum(getattr(self, name)) / math.fsum(self.counts)

    @property
    def d(self) -> float:
        """sqrt(KL); an estimate below 0 counts as 0."""
        return math.sqrt(max(0.0, self.mean("kl")))


def records(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a samples.jsonl."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def scored(lines: Iterable[Mapping[str, Any]], gold: str) -> Iterator[tuple[int, Scored]]:
    """Step and answer of each line that could be graded. `gold` is the name of a part.

    Raises ValueError for a line without that part.
    """
    for line in lines:
        if line["error"]:
            continue
        parts = line["parts"]
        if gold not in parts:
            known = ", ".join(parts) or "none"
            raise ValueError(f"an answer of step {line.get('step')} has no reward {gold}; its rewards are {known}")
        kl = line.get("kl")
        of_answer = None if kl is None else kl * line["length"]
        yield line.get("step", 0), Scored(line["task"]["row"], line["score"], parts[gold], of_answer)


def of_run(answers: Iterable[tuple[int, Scored]], width: int) -> list[Point]:
    """A point for every `width` steps, in order; answers without a KL are left out."""
    bins: dict[int, dict[int, list[Scored]]] = {}
    for step, answer in answers:
        if answer.kl is not None:
            at = -(-step // width) * width
            bins.setdefault(at, {}).setdefault(answer.prompt, []).append(answer)
    return [_point(at, bins[at]) for at in sorted(bins)]


def _point(at: int, prompts: Mapping[int, Sequence[Scored]]) -> Point:
    groups = list(prompts.values())
    return Point(
        at,
        tuple(prompts),
        tuple(math.fsum(a.proxy for a in group) for group in groups),
        tuple(math.fsum(a.gold for a in group) for group in groups),
        tuple(math.fsum(a.kl or 0.0 for a in group) for group in groups),
        tuple(float(len(group)) for group in groups),
    )


def divergence(n: int) -> float:
    """KL of best-of-n from the start, nats: log n - (n - 1) / n; at most that if answers or scores can be equal
    (Beirami et al., arXiv:2401.01879).

    >>> round(divergence(2), 4), divergence(1)
    (0.1931, 0.0)
    """
    return math.log(n) - (n - 1) / n


def of_best(groups: Mapping[int, Sequence[tuple[float, float]]], sizes: Sequence[int]) -> list[Point]:
    """A point for each n: of (proxy, gold) of the answers to each prompt, expected proxy and gold of the one of n that
    has the highest proxy, over all subsets exactly. Prompts with fewer answers than the largest n are left out."""
    full = {prompt: answers for prompt, answers in groups.items() if len(answers) >= max(sizes)}
    points = []
    for n in sizes:
        chosen = []
        for answers in full.values():
            proxies, golds = [proxy for proxy, _ in answers], [gold for _, gold in answers]
            chosen.append((best_of(proxies, proxies, n), best_of(proxies, golds, n)))
        kl = (divergence(n),) * len(chosen)
        ones = (1.0,) * len(chosen)
        proxy, gold = tuple(p for p, _ in chosen), tuple(g for _, g in chosen)
        points.append(Point(n, tuple(full), proxy, gold, kl, ones))
    return points


def powers(most: int) -> list[int]:
    """1, 2, 4, ... up to `most`.

    >>> powers(9)
    [1, 2, 4, 8]
    """
    return [2**k for k in range(most.bit_length()) if 2**k <= most]


def ties(groups: Mapping[int, Sequence[float]]) -> float:
    """The share of pairs of answers to one prompt whose scores are equal: where there are some, best-of-n stays closer
    to the start than `divergence` says.

    >>> ties({0: [1.0, 1.0, 2.0]})
    0.3333333333333333
    """
    equal = pairs = 0
    for scores in groups.values():
        counts: dict[float, int] = {}
        for score in scores:
            counts[score] = counts.get(score, 0) + 1
        equal += sum(count * (count - 1) // 2 for count in counts.values())
        pairs += len(scores) * (len(scores) - 1) // 2
    return equal / pairs if pairs else 0.0
