"""Checks of the order of data: what is held out is not trained on, and steps draw what was asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from espalier.checks.table import Outcome, failed, passed, skipped
from espalier.errors import CheckError
from espalier.types import Sample

if TYPE_CHECKING:
    from espalier.checks.evidence import Evidence

LOOKED_AT = 20_000
"""Groups of a side whose prompts are compared; draws that are looked at."""


def check_held_out(evidence: Evidence) -> Outcome:
    """The prompts that steps draw, that a calibration takes, and that are held out."""
    session = evidence.session
    opened, plan = session.opened, session.dataset.plan
    if not any(opened.sizes_held):
        return skipped("nothing is held out")
    if opened.held_out is not opened.main:
        return skipped("files of their own are held out")
    judged = session.traits.consumes != "chat"
    drawn: dict[int, set[int]] = {}
    for source, group in first_draws(plan):
        drawn.setdefault(source, set()).add(group)
    sides = []
    for number, (store, chosen, kept) in enumerate(zip(opened.main, opened.chosen, opened.kept_back, strict=True)):
        mine, held = sorted(drawn.get(number, set())), _numbers(kept, len(store))
        ours, theirs = ({_prompt(store.group(int(i)), judged) for i in some[:LOOKED_AT]} for some in (mine, held))
        sides.append(side_of(len(store), _numbers(chosen, len(store)), held, mine, len(ours & theirs)))
    return held_out(sides)


class Side(NamedTuple):
    """One source: groups trained on and held out; how many are both, or neither; how many held-out ones the first steps
    draw; and how many prompts stand on both sides."""

    train: int
    held: int
    both: int
    neither: int
    drawn: int
    shared: int


def side_of(size: int, train: Any, held: Any, drawn: Sequence[int], shared: int = 0) -> Side:
    """The counts of a source of `size` groups from the numbers of those trained on, held out and drawn."""
    import numpy as np

    both = len(np.intersect1d(train, held))
    neither = size - len(np.union1d(train, held))
    return Side(len(train), len(held), both, neither, len(np.intersect1d(drawn, held)), shared)


def held_out(sides: Sequence[Side]) -> Outcome:
    """Training and held-out groups are disjoint and add up; no step draws a held-out one, and no prompt is on both
    sides."""
    limit = "no group and no prompt on both sides"
    total = Side(*(sum(column) for column in zip(*sides, strict=True)))
    if total.both or total.neither or total.drawn or total.shared:
        value = (
            f"{total.both} groups on both sides, {total.neither} on none, {total.drawn} held-out ones drawn, "
            f"{total.shared} prompts on both sides"
        )
        return failed(value, limit, "Held-out numbers would be about training data: report this.")
    return passed(f"{total.train:,} groups trained on, {total.held:,} held out", limit)


def refuse_side(opened: Any, groups: Sequence[list[Sample]], *, held: bool, judged: bool = True) -> None:
    """Raise CheckError if some of `groups` are of the other side of the data than `held` says: held-out rows among
    those that a model is fitted to, or training rows among those that it is judged by. Files of their own are not
    looked at."""
    other: set[tuple[int, ...]] = set()
    if opened.held_out is not opened.main:
        return
    for store, chosen, kept in zip(opened.main, opened.chosen, opened.kept_back, strict=True):
        for i in _numbers(chosen if held else kept, len(store))[:LOOKED_AT]:
            other.add(_prompt(store.group(int(i)), judged))
    wrong = sum(1 for group in groups if _prompt(group, judged) in other)
    if wrong:
        here, there = ("held-out", "training") if held else ("training", "held-out")
        raise CheckError(
            f"held_out: {wrong} of {len(groups)} {here} groups are {there} data, expected none: report this"
        )


def check_order(evidence: Evidence) -> Outcome:
    """The draws of the first epochs."""
    session = evidence.session
    plan, loop, opened = session.dataset.plan, session.config.loop, session.opened
    draws = first_draws(plan)
    stores = [*opened.main, *opened.replay]
    sizes = []
    for number, chosen in enumerate([*opened.chosen, *[None] * len(opened.replay)]):
        sizes.append(len(_numbers(chosen, len(stores[number]))))
    proportions = [source.proportion for source in opened.sources]
    main = len(opened.main)
    replay = session.config.data.replay_fraction if opened.replay else 0.0
    epochs = 0.0 if loop.steps else loop.epochs
    faults = [
        *_coverage(draws, sizes[:main], proportions[:main], epochs, whole=len(draws) < LOOKED_AT),
        *_shares(draws, sizes, proportions, main, replay),
        *_full(session),
    ]
    value = f"{len(draws):,} draws of {plan.steps:,} steps"
    return order(value, faults)


def order(value: str, faults: Sequence[str]) -> Outcome:
    """What is wrong with the order of draws, if something is."""
    limit = "every row once an epoch, shares and steps as asked"
    if faults:
        return failed("; ".join(faults), limit, "The order of the data is not what was asked for: report this.")
    return passed(value, limit)


def first_draws(plan: Any) -> list[tuple[int, int]]:
    """(source, group) of the first LOOKED_AT draws or fewer, whole steps."""
    draws: list[tuple[int, int]] = []
    for step in range(plan.steps):
        draws += plan.step(step)
        if len(draws) >= LOOKED_AT:
            break
    return draws


def _coverage(
    draws: Sequence[tuple[int, int]], sizes: Sequence[int], asked: Sequence[float | None], epochs: float, *, whole: bool
) -> list[str]:
    """Without proportions: each epoch draws every main group once, the next in another order, and all epochs are
    there."""
    if any(share is not None for share in asked):
        return []
    main = [draw for draw in draws if draw[0] < len(sizes)]
    size = sum(sizes)
    faults = []
    passes = [main[low : low + size] for low in range(0, len(main), size)]
    for number, drawn in enumerate(passes, 1):
        twice = len(drawn) - len(set(drawn))
        if twice:
            faults.append(f"epoch {number} draws {twice} rows again")
    if len(passes) > 1 and len(passes[1]) == size > 4 and passes[0] == passes[1]:
        faults.append("epoch 2 has the order of epoch 1")
    expected = max(1, int(epochs * size + 0.5))
    if epochs and whole and len(main) != expected:
        faults.append(f"{len(main):,} rows are drawn in {epochs:g} epochs, expected {expected:,}")
    return faults


def _shares(
    draws: Sequence[tuple[int, int]], sizes: Sequence[int], asked: Sequence[float | None], main: int, replay: float
) -> list[str]:
    """Sources with a proportion have it, of main draws or of replay draws; replay has its share of all."""
    count = Counter(source for source, _ in draws)
    faults = []
    of_replay = sum(count[number] for number in range(main, len(sizes)))
    if replay and abs(of_replay - replay * len(draws)) > 2:
        faults.append(f"replay is {of_replay} of {len(draws)} draws, expected {replay:.0%}")
    for numbers, total in ((range(main), len(draws) - of_replay), (range(main, len(sizes)), of_replay)):
        given = [share for number in numbers if (share := asked[number]) is not None]
        scale = sum(given) if len(given) == len(numbers) and given else 1.0  # 0.333 three times is a third each
        for number in numbers:
            share = asked[number]
            if share is not None and abs(count[number] - share / scale * total) > 2 + 0.001 * total:
                faults.append(f"source {number + 1} is {count[number]} of {total} draws, expected {share:.0%}")
    return faults


def _full(session: Any) -> list[str]:
    """No step has more samples, or tokens, than asked for, unless it is a single group."""
    loop = session.config.loop
    if session.rollouts is not None:
        prompts, most = len(session.tasks.prompts(0)), session.config.rollout.prompts_per_step
        return [f"the first step has {prompts:,} prompts, expected at most {most:,}"] if most and prompts > most else []
    groups = session.rows.groups(0)
    samples, tokens = sum(map(len, groups)), sum(len(s) for group in groups for s in group)
    for amount, most, what in ((samples, loop.samples_per_step, "samples"), (tokens, loop.tokens_per_step, "tokens")):
        if most and len(groups) > 1 and amount > most:
            return [f"the first step has {amount:,} {what}, expected at most {most:,}"]
    return []


def _numbers(chosen: Any, size: int) -> Any:
    """The numbers of a selection, or of all groups, as an array."""
    import numpy as np

    return np.arange(size) if chosen is None else chosen


def _prompt(group: Sequence[Sample], judged: bool) -> tuple[int, ...]:
    """What decides the side of a group: of judged rows the tokens before the first trained one, of others all."""
    if not judged:
        return tuple(t for s in group for t in s.tokens)
    s = group[0]
    return tuple(s.tokens[: s.mask.index(True)] if True in s.mask else s.tokens)
