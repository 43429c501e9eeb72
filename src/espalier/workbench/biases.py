"""What a score gives to form rather than to content: length, lists, markup."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from espalier.workbench.bootstrap import Resampling, ratio
from espalier.workbench.records import Judged, Pair, pairs, ties

PER = 100  # tokens that slopes are given for
_ITEM = re.compile(r"^\s{0,8}(?:[-*+•‣·]\s+|\(?\d{1,3}[.):]\s+|[\uff08(]?\d{1,3}[)\uff09\u3001])\S", re.MULTILINE)
# \uff08 \uff09 \u3001: the parentheses and the comma after numbers in Chinese lists
_HEADING = re.compile(r"^#{1,6}\s+\S", re.MULTILINE)
_BOLD = re.compile(r"\*\*[^*\n]+\*\*")
_TABLE = re.compile(r"^\s*\|.+\|\s*\n\s*\|[\s:|-]+\|", re.MULTILINE)


def formatted(text: str) -> bool:
    """Whether a text is laid out: at least two list items (bullets or numbers at the start of a line), a heading,
    bold text or a table in Markdown.

    >>> formatted("Buy\\n- milk\\n- bread"), formatted("Milk - and bread - in 2. hand")
    (True, False)
    """
    return len(_ITEM.findall(text)) >= 2 or any(p.search(text) for p in (_HEADING, _BOLD, _TABLE))


def length_bias(records: Sequence[Judged], cluster: Sequence[int], how: Resampling) -> dict[str, Any]:
    """What the score has to do with the response's length.

    slope: least squares within prompts, everything demeaned by prompt group g,

        slope = 100 * sum_g sum_i (l_i - mean_g l)(s_i - mean_g s) / sum_g sum_i (l_i - mean_g l)^2

    score per 100 tokens, resampled by prompt. By hand: lengths 100 and 300 with scores 0 and 1 in one group, 200 and
    200 with 5 and 9 in another: 100 * (-100 * -0.5 + 100 * 0.5) / (2 * 100^2) = 0.5; equal lengths add nothing.

    Longer answers may be better answers. So correlation (of score and length within prompts) stands beside
    label_correlation, what the labels themselves have to do with length, over the responses that have one; and
    slope_at_ties is the slope through the origin over pairs that people find equal, 100 * sum dl ds / sum dl^2, where
    quality explains nothing.

    longer_wins, longer_loses, equal_length: accuracy on the pairs where people prefer the longer one, the shorter one,
    and where both are as long. preferred_longer: how often people, and how often the model, prefer the longer one of
    the pairs of unequal length.
    """
    products, squares, groups = [], [], []
    for number, record in enumerate(records):
        length = np.array([r.length for r in record.responses], dtype=np.float64)
        score = np.array([r.score for r in record.responses], dtype=np.float64)
        if len(length):
            products.append(PER * float(_centred(length) @ _centred(score)))
            squares.append(float(_centred(length) @ _centred(length)))
            groups.append(cluster[number])
    responses = sum(len(r.responses) for r in records if len({x.length for x in r.responses}) > 1)
    tied = ties(records)
    apart = [_longer_first(p) for p in tied if p.first.length != p.second.length]
    reach = [p.first.length - p.second.length for p in apart]
    strict = pairs(records)
    unequal = [p for p in strict if p.first.length != p.second.length]
    return {
        "per_tokens": PER,
        "slope": ratio(products, squares, groups, how, count=responses).as_dict(),
        "slope_at_ties": ratio(
            [PER * x * p.gap for x, p in zip(reach, apart, strict=True)], [float(x * x) for x in reach],
            [cluster[p.group] for p in apart], how, count=len(apart),
        ).as_dict(),
        "correlation": _within(records, [[r.score for r in g.responses] for g in records]),
        "label_correlation": _within(records, [[r.label for r in g.responses] for g in records]),
        "longer_wins": accuracy([p for p in unequal if p.first.length > p.second.length], cluster, how),
        "longer_loses": accuracy([p for p in unequal if p.first.length < p.second.length], cluster, how),
        "equal_length": accuracy([p for p in strict if p.first.length == p.second.length], cluster, how),
        "preferred_longer": {
            "people": _share([float(p.first.length > p.second.length) for p in unequal], unequal, cluster, how),
            "model": _share([right(_longer_first(p)) for p in unequal], unequal, cluster, how),
        },
    }  # fmt: skip


def format_bias(records: Sequence[Judged], cluster: Sequence[int], how: Resampling) -> dict[str, Any]:
    """What the score gives to lists and markup, over the pairs of which exactly one response is `formatted`.

    people, model: how often each prefers the formatted one (equal scores count half); excess: the difference of the
    two. gap_at_ties: mean score of the formatted one minus the plain one, where people find them equal. By hand: two
    pairs, people prefer the plain one in both, the model the formatted one in one: people 0, model 0.5, excess 0.5.
    """
    mixed = [p for p in pairs(records) if formatted(p.first.text) != formatted(p.second.text)]
    by_people = [float(formatted(p.first.text)) for p in mixed]
    by_model = [right(_formatted_first(p)) for p in mixed]
    level = [_formatted_first(p) for p in ties(records) if formatted(p.first.text) != formatted(p.second.text)]
    texts = [formatted(r.text) for g in records for r in g.responses]
    where = [cluster[p.group] for p in mixed]
    excess = [m - p for m, p in zip(by_model, by_people, strict=True)]
    return {
        "formatted": sum(texts) / len(texts) if texts else None,
        "people": _share(by_people, mixed, cluster, how),
        "model": _share(by_model, mixed, cluster, how),
        "excess": ratio(excess, [1.0] * len(mixed), where, how).as_dict(),
        "gap_at_ties": ratio(
            [p.gap for p in level], [1.0] * len(level), [cluster[p.group] for p in level], how
        ).as_dict(),
    }


def right(pair: Pair) -> float:
    """1 where the model scores the first response higher, 0 where lower, 1/2 where both alike."""
    return 1.0 if pair.gap > 0 else 0.0 if pair.gap < 0 else 0.5


def accuracy(chosen: Sequence[Pair], cluster: Sequence[int], how: Resampling) -> dict[str, Any]:
    """Share of pairs in which the model scores the preferred response higher; equal scores count half."""
    return _share([right(p) for p in chosen], chosen, cluster, how)


def _share(values: Sequence[float], of: Sequence[Pair], cluster: Sequence[int], how: Resampling) -> dict[str, Any]:
    return ratio(values, [1.0] * len(values), [cluster[p.group] for p in of], how, share=True).as_dict()


def _longer_first(p: Pair) -> Pair:
    return p if p.first.length >= p.second.length else Pair(p.group, p.second, p.first)


def _formatted_first(p: Pair) -> Pair:
    return p if formatted(p.first.text) else Pair(p.group, p.second, p.first)


def _centred(x: np.ndarray) -> np.ndarray:
    out: np.ndarray = x - x.mean()
    return out


def _within(records: Sequence[Judged], values: Sequence[Sequence[float | None]]) -> float | None:
    """Pearson correlation of `values` with length, both demeaned by group; responses without a value are left out.
    None where one of the two never varies."""
    xy = xx = yy = 0.0
    for record, some in zip(records, values, strict=True):
        known = [(r.length, v) for r, v in zip(record.responses, some, strict=True) if v is not None]
        if len(known) > 1:
            x, y = (_centred(np.array(column, dtype=np.float64)) for column in zip(*known, strict=True))
            xy, xx, yy = xy + float(x @ y), xx + float(x @ x), yy + float(y @ y)
    return xy / float(np.sqrt(xx * yy)) if xx > 0 and yy > 0 else None
