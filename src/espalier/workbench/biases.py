"""What a score gives to form rather than to content: length, lists, markup."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from espalier.workbench.bootstrap import Resampling, mean, ratio
from espalier.workbench.records import HeldOutGroup, JudgedResponse, Pair, strict_pairs, tied_pairs

PER = 100  # slopes are given per so many tokens
# \uff08 \uff09 \u3001: the parentheses and the comma after numbers in Chinese lists
_ITEM = re.compile(r"^\s{0,8}(?:[-*+•‣·]\s+|\(?\d{1,3}[.):]\s+|[\uff08(]?\d{1,3}[)\uff09\u3001])\S", re.MULTILINE)
_HEADING = re.compile(r"^#{1,6}\s+\S", re.MULTILINE)
_BOLD = re.compile(r"\*\*[^*\n]+\*\*")
_TABLE = re.compile(r"^\s*\|.+\|\s*\n\s*\|[\s:|-]+\|", re.MULTILINE)


def formatted(text: str) -> bool:
    """Whether a text is laid out: at least two list items (bullets or numbers at the start of a line), a heading,
    bold text or a table in Markdown.

    >>> formatted("Buy\\n- milk\\n- bread"), formatted("Milk - and bread - in 2. hand")
    (True, False)
    """
    # One item is no list: a sentence may begin with a number or a dash.
    return len(_ITEM.findall(text)) >= 2 or any(pattern.search(text) for pattern in (_HEADING, _BOLD, _TABLE))


# --------------------------------------------------------------------------------------------------------------- length


def length_bias(groups: Sequence[HeldOutGroup], prompts: Sequence[int], resampling: Resampling) -> dict[str, Any]:
    """How the score depends on the response's length.

    slope: least squares within prompts, everything demeaned by prompt group g,

        slope = 100 * sum_g sum_i (l_i - mean_g l)(s_i - mean_g s) / sum_g sum_i (l_i - mean_g l)^2

    score per 100 tokens, resampled by prompt. By hand: lengths 100 and 300 with scores 0 and 1 in one group, 200 and
    200 with 5 and 9 in another: 100 * (-100 * -0.5 + 100 * 0.5) / (2 * 100^2) = 0.5; equal lengths add nothing.

    Longer answers may be better answers. So correlation (of score and length within prompts) stands beside
    label_correlation, that of the labels and length, over the responses that have a label; and slope_at_ties is the
    slope through the origin over pairs that people find equal, 100 * sum dl ds / sum dl^2, where quality explains
    nothing.

    longer_wins, longer_loses, equal_length: accuracy on the pairs of which people prefer the longer response, the
    shorter one, and on those of equal length. preferred_longer: how often people, and how often the model, prefer the
    longer one of the pairs of unequal length.
    """
    longer_wins, longer_loses, equal_length = [], [], []
    for pair in strict_pairs(groups):
        if pair.first.length > pair.second.length:
            longer_wins.append(pair)
        elif pair.first.length < pair.second.length:
            longer_loses.append(pair)
        else:
            equal_length.append(pair)
    return {
        "per_tokens": PER,
        "slope": _slope(groups, prompts, resampling),
        "slope_at_ties": _slope_at_ties(groups, prompts, resampling),
        "correlation": _correlation_with_length(groups, "score"),
        "label_correlation": _correlation_with_length(groups, "label"),
        "longer_wins": accuracy(longer_wins, prompts, resampling),
        "longer_loses": accuracy(longer_loses, prompts, resampling),
        "equal_length": accuracy(equal_length, prompts, resampling),
        "preferred_longer": _preferred_longer(groups, prompts, resampling),
    }


def _slope(groups: Sequence[HeldOutGroup], prompts: Sequence[int], resampling: Resampling) -> dict[str, Any]:
    """Score per `PER` tokens within prompts, with the number of responses in groups of unequal lengths as its count."""
    products, squares, of_prompts, responses = [], [], [], 0
    for group, prompt in zip(groups, prompts, strict=True):
        if not group.responses:
            continue
        lengths = np.array([response.length for response in group.responses], dtype=np.float64)
        centred = _centred(lengths)
        products.append(PER * float(centred @ _centred(np.array(group.scores, dtype=np.float64))))
        squares.append(float(centred @ centred))
        of_prompts.append(prompt)
        if len(set(lengths)) > 1:
            responses += len(lengths)
    return ratio(products, squares, of_prompts, resampling, count=responses).as_dict()


def _slope_at_ties(groups: Sequence[HeldOutGroup], prompts: Sequence[int], resampling: Resampling) -> dict[str, Any]:
    """Score per `PER` tokens between responses that people find equal."""
    products, squares, of_prompts = [], [], []
    for pair in tied_pairs(groups):
        first, second = _longer_first(pair.first, pair.second)
        longer_by = first.length - second.length
        if longer_by:
            products.append(PER * longer_by * (first.score - second.score))
            squares.append(float(longer_by * longer_by))
            of_prompts.append(prompts[pair.group])
    return ratio(products, squares, of_prompts, resampling, count=len(products)).as_dict()


def _preferred_longer(groups: Sequence[HeldOutGroup], prompts: Sequence[int], resampling: Resampling) -> dict[str, Any]:
    by_people, by_model, of_prompts = [], [], []
    for pair in strict_pairs(groups):
        if pair.first.length == pair.second.length:
            continue
        first, second = _longer_first(pair.first, pair.second)
        by_people.append(float(pair.first.length > pair.second.length))
        by_model.append(Pair(pair.group, first, second).win)
        of_prompts.append(prompts[pair.group])
    return {
        "people": mean(by_people, of_prompts, resampling, share=True),
        "model": mean(by_model, of_prompts, resampling, share=True),
    }


def _longer_first(one: JudgedResponse, other: JudgedResponse) -> tuple[JudgedResponse, JudgedResponse]:
    return (one, other) if one.length >= other.length else (other, one)


def _correlation_with_length(groups: Sequence[HeldOutGroup], name: Literal["score", "label"]) -> float | None:
    """Pearson correlation of the responses' score or label with their length, both demeaned by group; responses without
    a label are left out. None if one of the two never varies."""
    products = lengths_squared = values_squared = 0.0
    for group in groups:
        lengths, values = [], []
        for response in group.responses:
            value = response.score if name == "score" else response.label
            if value is not None:
                lengths.append(response.length)
                values.append(value)
        if len(values) < 2:
            continue
        x = _centred(np.array(lengths, dtype=np.float64))
        y = _centred(np.array(values, dtype=np.float64))
        products += float(x @ y)
        lengths_squared += float(x @ x)
        values_squared += float(y @ y)
    if lengths_squared > 0 and values_squared > 0:
        return products / float(np.sqrt(lengths_squared * values_squared))
    return None


def _centred(values: np.ndarray) -> np.ndarray:
    difference: np.ndarray = values - values.mean()
    return difference


# --------------------------------------------------------------------------------------------------------------- format


def format_bias(groups: Sequence[HeldOutGroup], prompts: Sequence[int], resampling: Resampling) -> dict[str, Any]:
    """What the score gives to lists and markup, over the pairs of which exactly one response is `formatted`.

    people, model: how often each prefers the formatted one (equal scores count half); excess: the difference of the
    two. gap_at_ties: mean score of the formatted one minus the plain one, of pairs that people find equal. By hand: two
    pairs, people prefer the plain one in both, the model the formatted one in one: people 0, model 0.5, excess 0.5.
    """
    by_people, by_model, excess, of_prompts = [], [], [], []
    for pair, people_prefer_it in _formatted_first(strict_pairs(groups)):
        by_people.append(float(people_prefer_it))
        by_model.append(pair.win)
        excess.append(pair.win - float(people_prefer_it))
        of_prompts.append(prompts[pair.group])
    gaps, of_ties = [], []
    for pair, _ in _formatted_first(tied_pairs(groups)):
        gaps.append(pair.gap)
        of_ties.append(prompts[pair.group])
    return {
        "formatted": _share_formatted(groups),
        "people": mean(by_people, of_prompts, resampling, share=True),
        "model": mean(by_model, of_prompts, resampling, share=True),
        "excess": mean(excess, of_prompts, resampling),
        "gap_at_ties": mean(gaps, of_ties, resampling),
    }


def _formatted_first(pairs: Sequence[Pair]) -> list[tuple[Pair, bool]]:
    """The pairs of which exactly one response is formatted, that one first, and whether it was the first before."""
    mixed = []
    for pair in pairs:
        first, second = formatted(pair.first.text), formatted(pair.second.text)
        if first and not second:
            mixed.append((pair, True))
        elif second and not first:
            mixed.append((Pair(pair.group, pair.second, pair.first), False))
    return mixed


def _share_formatted(groups: Sequence[HeldOutGroup]) -> float | None:
    texts = [formatted(response.text) for group in groups for response in group.responses]
    return sum(texts) / len(texts) if texts else None


# ------------------------------------------------------------------------------------------------------------- accuracy


def accuracy(pairs: Sequence[Pair], prompts: Sequence[int], resampling: Resampling) -> dict[str, Any]:
    """Share of pairs whose preferred response the model scores higher; equal scores count half.

    `prompts` has the number of each group's prompt.
    """
    wins = [pair.win for pair in pairs]
    of_prompts = [prompts[pair.group] for pair in pairs]
    return mean(wins, of_prompts, resampling, share=True)
