"""What several checks look at, worked out once: the first rows, some of the first step and what the model says of it,
and its gradient."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING

from espalier.checks.first_groups import facts_of_scores, facts_of_tokens, first_groups, weighted
from espalier.checks.plainmath import Facts
from espalier.checks.rehearsal import first_step
from espalier.data.read import Source, read
from espalier.data.render.drafts import Rendered, RenderedGroup
from espalier.data.render.renderer import Renderer
from espalier.data.store.store import Store
from espalier.errors import RowError
from espalier.loop.annotate import annotate
from espalier.types import Example, Sample

if TYPE_CHECKING:
    from torch import Tensor

    from espalier.assembly.session import Session
    from espalier.data.store.stats import StoreStats

CHECKED_ROWS = 32  # of each source
PROBED_GROUPS = 4
FEW_GROUPS = 64
LOADED_NUMBERS = 64
FEW_TOKENS = 1024  # enough for several rows, little beside a step


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a source: the example, the group that it renders to, and the group that is stored of it."""

    example: Example
    rendered: Sequence[Rendered]
    stored: list[Sample]


@dataclass(frozen=True, slots=True)
class Probe:
    """What the gradient of some groups of the first step says; nothing is updated.

    loss: nats a token if held-out data is measured by likelihood. shares: see `TorchLearner.probe_update`.
    """

    loss: float
    shares: dict[str, float]


@dataclass(frozen=True, slots=True)
class First:
    """Some groups of the first step, what they say to the loss as plain numbers, and the algorithm's state after it
    has seen them."""

    groups: list[list[Sample]]
    facts: Facts
    state: dict[str, float]


class Evidence:
    """What the checks of a session look at. `probe` and `first` need its learner. chosen: at the end of a run, the
    checkpoint that was exported; the learner holds its weights."""

    def __init__(self, session: Session, chosen: Path | None = None):
        self.session, self.chosen = session, chosen
        self.loaded: dict[str, Tensor] = {}

    def keep_loaded(self) -> None:
        """Keep the first numbers of trained weights as they were loaded, before a learner casts them; none if the model
        computes in the dtype that it was loaded in, or is to be sharded."""
        import torch

        session = self.session
        if session.model.compute == torch.float32 or session.processes.size > 1:
            return
        for name, parameter in session.model.loaded.model.named_parameters():
            if parameter.requires_grad:
                self.loaded[name] = parameter.detach().reshape(-1)[:LOADED_NUMBERS].float().cpu().clone()

    @property
    def stats(self) -> list[tuple[str, StoreStats]]:
        """The name of every source and its counts."""
        return [(store.source, store.stats) for store in self.session.stores]

    @cached_property
    def rows(self) -> list[Row]:
        """The first rows of every source that can be rendered."""
        rows: list[Row] = []
        for store, examples in self._sources():
            rows += islice(matched(self.session.renderer, store, examples), CHECKED_ROWS)
        return rows

    @cached_property
    def given_rows(self) -> list[Row]:
        """The first rows of every source of given conversations that can be rendered."""
        given = self.session.conversations
        if given is None:
            return []
        rows: list[Row] = []
        for source, store in zip(given.opened.sources, given.opened.main, strict=True):
            rows += islice(matched(given.renderer, store, _examples(source)), CHECKED_ROWS)
        return rows

    @cached_property
    def held_rows(self) -> list[Row]:
        """The first rows of every held-out file that can be rendered; its judgements are never flipped."""
        from espalier.assembly.data import held_renderer

        session = self.session
        renderer = held_renderer(session.config, session.model.loaded) or session.renderer
        rows: list[Row] = []
        for source, store in zip(session.opened.held_sources, session.opened.held_out, strict=False):
            rows += islice(matched(renderer, store, _examples(source)), CHECKED_ROWS)
        return rows

    def few_rows(self) -> Iterator[Row]:
        """Rows of the first source, rendered as they are asked for."""
        store, examples = next(self._sources())
        return matched(self.session.renderer, store, examples)

    def _sources(self) -> Iterator[tuple[Store, Iterator[Example]]]:
        """Every token store with the examples of its source, in the order of the source."""
        config, opened = self.session.config, self.session.opened
        sources = [*zip(opened.sources, (*opened.main, *opened.replay), strict=True)]
        if not config.preference.flip:  # held-out files are rendered without flips, by another renderer
            sources += zip(opened.held_sources, opened.held_out, strict=False)
        for source, store in sources:
            yield store, _examples(source)

    @cached_property
    def probe(self) -> Probe:
        """The first step's gradient on a few of its groups, cleared again."""
        session, algorithm = self.session, self.session.config.algorithm
        groups = first_step(session)[: max(PROBED_GROUPS, session.processes.size)]
        state = annotate(groups, algorithm, session.roles, session.given)
        result = session.learner.forward_backward(groups, algorithm.loss, state, 0)
        shares = session.learner.probe_update(session.config.optim.lr, session.model.loaded.source_dtype)
        loss = result.terms.get("nll", result.loss) if session.traits.likelihood else result.loss
        return Probe(loss, shares)

    @cached_property
    def few(self) -> list[list[Sample]]:
        """Some groups of the first step, of few tokens together; text and replay if it has both."""
        groups = first_step(self.session)
        parts = {group[0].part for group in groups}
        chosen: list[list[Sample]] = []
        for part in sorted(parts):
            chosen += few([group for group in groups if group[0].part == part], FEW_TOKENS // len(parts))
        return chosen

    @cached_property
    def alone(self) -> Tensor:
        """What the architecture's own forward says of `few`: see `model.one_by_one`. The model must be in one piece."""
        import torch

        from espalier.checks.model import one_by_one

        with torch.no_grad():
            return one_by_one(self.session.model.policy, [s for group in self.few for s in group])

    @property
    def knows_alone(self) -> bool:
        """Whether `alone` can be had: it is there, or the model is not sharded."""
        return self.session.processes.size == 1 or "alone" in vars(self)

    @cached_property
    def first(self) -> First | None:
        """Some of the first step and what it says to the loss; None if it has nothing that the loss learns from."""
        session = self.session
        if session.traits.likelihood:
            return First(weighted(self.few), Facts(), {})
        if session.rollouts is not None:
            return self._answered()
        groups = first_groups(session)
        if not groups:
            return None
        state = annotate(groups, session.config.algorithm, session.roles, {})
        if session.traits.says == "reads":
            scores = [outputs.scores for outputs in session.learner.forwards.say(groups, ["scores"])]
            return First(groups, facts_of_scores(session.traits, groups, scores), state)
        logprobs = [outputs.logprobs for outputs in session.learner.say(groups, ["logprobs"])]
        facts = facts_of_tokens(session.traits, groups, logprobs)
        return First(groups, replace(facts, moving=state.get("delta", state.get("kl", 0.0))), state)

    def _answered(self) -> First:
        """A rehearsal of a step that learns from answers. Its advantages are made up: those of a group add up to 0, and
        so would its loss, of which nothing could be compared."""
        session = self.session
        groups = first_step(session)
        state = annotate(groups, session.config.algorithm, session.roles, session.given)
        for s in (s for group in groups for s in group):
            if "advantages" in s.streams:
                s.streams["advantages"] = [(1.0 + s.key % 3) * trained for trained in s.mask]
        return First(groups, Facts(), state)


def _examples(source: Source) -> Iterator[Example]:
    """The examples of a source that can be read."""
    return (example for example in read(source) if not isinstance(example, RowError))


def few(groups: Sequence[list[Sample]], budget: int) -> list[list[Sample]]:
    """Groups of at most `budget` tokens together: the longest that takes up half of it, then short ones; at least one,
    cut short if it must be."""
    sized = [(sum(len(s) for s in group), group) for group in islice(groups, FEW_GROUPS)]
    sized.sort(key=lambda pair: pair[0])
    half = [pair for pair in sized if pair[0] <= budget // 2]
    if half:
        sized.insert(0, sized.pop(len(half) - 1))
    chosen: list[list[Sample]] = []
    used = 0
    for size, group in sized:
        if chosen and used + size > budget:
            break
        chosen.append([_head(s, budget) for s in group] if size > budget else group)
        used += size
    return chosen


def _head(sample: Sample, length: int) -> Sample:
    """The first tokens of a sample, of which at least one is scored."""
    cut = Sample(
        sample.tokens[:length], sample.mask[:length], sample.weights[:length], part=sample.part, key=sample.key
    )
    if sample.reads:
        cut.reads = [min(read, length - 1) for read in sample.reads]
    if not any(cut.mask[1:]):
        cut.mask, cut.weights = [False] + [True] * (len(cut) - 1), [0.0] + [1.0] * (len(cut) - 1)
    return cut


def matched(renderer: Renderer, store: Store, examples: Iterable[Example]) -> Iterator[Row]:
    """The examples that can be rendered, in the order of the source, each with the group that is stored of it.

    They are matched by line: a store refuses rows that can be rendered (scores in other dimensions than those of the
    rows before). A line of several examples of which it refused some, or whose grades it left out, is skipped.
    """
    at = 0
    kept = store.stats.dimensions
    for line, examples_of_line in groupby(examples, key=lambda example: example.origin.line):
        rendered: list[tuple[Example, list[Rendered]]] = []
        for example in examples_of_line:
            group = _rendered(renderer, example)
            if group is not None:
                rendered.append((example, group))
        stored = store.groups_of(line, at)
        at = stored.stop
        odd = any(isinstance(group, RenderedGroup) and group.dimensions not in ((), kept) for _, group in rendered)
        if len(stored) == len(rendered) and not odd and store.dimensions == kept:
            for (example, group), i in zip(rendered, stored, strict=True):
                yield Row(example, group, store.group(i))
        if at == len(store):
            return


def _rendered(renderer: Renderer, example: Example) -> list[Rendered] | None:
    """The group that an example renders to; None if it cannot be rendered."""
    try:
        return renderer.render(example)
    except RowError:
        return None
