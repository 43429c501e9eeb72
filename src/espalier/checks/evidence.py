"""What several checks look at, worked out once: the first rows, and the gradient of the first step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, islice
from typing import TYPE_CHECKING

from espalier.data.read import read
from espalier.data.render.drafts import Rendered, RenderedGroup
from espalier.data.render.renderer import Renderer
from espalier.data.store.store import Store
from espalier.errors import RowError
from espalier.loop.annotate import annotate
from espalier.types import Example, Sample

if TYPE_CHECKING:
    from espalier.assembly.session import Session
    from espalier.checks.preference import FirstPairs
    from espalier.data.store.stats import StoreStats

CHECKED_ROWS = 32  # of each source
PROBED_GROUPS = 4


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


class Evidence:
    """What the checks of a session look at. `probe` and `pairs` need its learner."""

    def __init__(self, session: Session):
        self.session = session

    @property
    def stats(self) -> list[tuple[str, StoreStats]]:
        """The name of every source and its counts."""
        return [(store.source, store.stats) for store in self.session.opened.all]

    @cached_property
    def rows(self) -> list[Row]:
        """The first rows of every source that can be rendered."""
        rows: list[Row] = []
        for store, examples in self._sources():
            rows += islice(matched(self.session.renderer, store, examples), CHECKED_ROWS)
        return rows

    def _sources(self) -> Iterator[tuple[Store, Iterator[Example]]]:
        """Every token store with the examples of its source, in the order of the source."""
        config, opened = self.session.config, self.session.opened
        sources = [*zip(opened.sources, (*opened.main, *opened.replay), strict=True)]
        if not config.preference.flip:  # held-out files are rendered without flips, by another renderer
            sources += zip(opened.held_sources, opened.held_out, strict=False)
        for source, store in sources:
            yield store, (example for example in read(source) if not isinstance(example, RowError))

    @cached_property
    def probe(self) -> Probe:
        """The first step's gradient on a few of its groups, cleared again."""
        session, algorithm = self.session, self.session.config.algorithm
        groups = session.dataset.groups(0)[: max(PROBED_GROUPS, session.processes.size)]
        state = annotate(groups, algorithm, session.learner, session.reference, {})
        result = session.learner.forward_backward(groups, algorithm.loss, state, 0)
        shares = session.learner.probe_update(session.config.optim.lr, session.model.loaded.source_dtype)
        loss = result.terms.get("nll", result.loss) if session.traits.likelihood else result.loss
        return Probe(loss, shares)

    @cached_property
    def pairs(self) -> FirstPairs | None:
        """Some judgements of the first step and what they say; None if it has none."""
        from espalier.checks.preference import first_pairs

        return first_pairs(self.session)


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
