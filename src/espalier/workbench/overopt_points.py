"""Points of the over-optimisation curve, from stored answers: proxy and gold reward by how far the policy has gone."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from espalier.errors import EspalierError
from espalier.workbench.bestof import best_of

Prompt = tuple[str, int]
"""Source and line of a task."""


class Scored(NamedTuple):
    """A stored answer: its prompt, the reward that trained and the one that only measures, the KL to the start in nats
    (sum over its tokens of k3; None if nothing measured it)."""

    prompt: Prompt
    proxy: float
    gold: float
    kl: float | None


@dataclass(frozen=True, slots=True)
class Point:
    """Answers at one distance. at: the last step of a run, or n of best-of-n. prompts: each once; proxy, gold and kl
    are sums over the answers to each of them, counts their numbers."""

    at: int
    prompts: tuple[Prompt, ...]
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


def prompt_of(line: Mapping[str, Any]) -> Prompt:
    """The task of a line of samples.jsonl."""
    return line["task"]["source"], line["task"]["line"]


def regraded(lines: Iterable[Mapping[str, Any]], graded: Iterable[Mapping[str, Any]]) -> Iterator[float | None]:
    """The score of each line in a file of the same answers, graded by gold; None if it could not be graded there.

    Raises EspalierError if the files are about other answers.
    """
    for line, again in zip_longest(lines, graded):
        same = line and again and all(line[key] == again[key] for key in ("task", "step", "k"))
        if not same:
            raise EspalierError(
                "the answers that gold graded are not those of the run; remove the folder `gold`, and give the command "
                "again"
            )
        yield again["score"]


def scored(lines: Iterable[Mapping[str, Any]], golds: Iterable[float | None]) -> Iterator[tuple[int, Scored | None]]:
    """Step and answer of each line; None for one that could not be graded, by the proxy or by gold, and for one that
    does not qualify: its score is a stated one, and no proxy's.

    kl of a line is the mean over its tokens, so that of the answer is kl x length.
    """
    for line, gold in zip(lines, golds, strict=True):
        if line["error"] or line.get("invalid") or line["score"] is None or gold is None:
            yield line["step"], None
            continue
        kl = line.get("kl")
        of_answer = None if kl is None else kl * line["length"]
        yield line["step"], Scored(prompt_of(line), line["score"], gold, of_answer)


def of_run(answers: Iterable[tuple[int, Scored | None]], width: int) -> list[Point]:
    """A point for every `width` steps, in order; answers that were not graded, or have no KL, are left out."""
    bins: dict[int, dict[Prompt, list[Scored]]] = {}
    for step, answer in answers:
        if answer is not None and answer.kl is not None:
            at = -(-step // width) * width
            bins.setdefault(at, {}).setdefault(answer.prompt, []).append(answer)
    return [_point(at, bins[at]) for at in sorted(bins)]


def _point(at: int, prompts: Mapping[Prompt, Sequence[Scored]]) -> Point:
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


def of_best(groups: Mapping[Prompt, Sequence[tuple[float, float]]], sizes: Sequence[int]) -> list[Point]:
    """A point for each n: of (proxy, gold) of the answers to each prompt, expected proxy and gold of the one of n that
    has the highest proxy, over all subsets exactly. Prompts with fewer answers than the largest n are left out.

    Raises EspalierError if that leaves none.
    """
    full = {prompt: answers for prompt, answers in groups.items() if len(answers) >= max(sizes)}
    if not full:
        raise EspalierError(
            f"no prompt has {max(sizes):,} answers of the start that were graded; see why in the errors of its "
            "samples.jsonl, or lower --best-of"
        )
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


def ties(groups: Iterable[Sequence[Hashable]]) -> float:
    """The share of pairs of answers to one prompt that are equal; of their scores, or of the answers themselves. If
    there are some, best-of-n stays closer to the start than `divergence` says.

    >>> ties([[1.0, 1.0, 2.0]])
    0.3333333333333333
    """
    equal = pairs = 0
    for values in groups:
        equal += sum(count * (count - 1) // 2 for count in Counter(values).values())
        pairs += len(values) * (len(values) - 1) // 2
    return equal / pairs if pairs else 0.0
