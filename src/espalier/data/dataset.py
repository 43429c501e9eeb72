"""The data of a run: its sources, their token stores, what is held out, and the order in which steps draw from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from espalier.config.data_source import DataSource
from espalier.config.sections import DataConfig
from espalier.data.columns.ledger import Ledger
from espalier.data.columns.mapping import Columns
from espalier.data.files.content import content_key
from espalier.data.places import refuse_missing
from espalier.data.plan import REPLAY, Plan, PlanSource
from espalier.data.read import Source, parse_sources, read
from espalier.data.store.store import Store, open_store, split
from espalier.errors import ConfigError, DataError
from espalier.types import Consumes, Sample

if TYPE_CHECKING:
    from espalier.data.render.renderer import Renderer

EVAL_GROUPS = 64
"""Groups handed to an evaluation at a time."""
Selection = NDArray[np.int64] | None
"""Numbers of groups of a store; None for all of them."""


@dataclass(frozen=True, slots=True)
class Sources:
    """The sources of a data config: `main` and `replay` are trained on, `held_out` are the files named as held out."""

    main: tuple[Source, ...]
    replay: tuple[Source, ...]
    held_out: tuple[Source, ...]

    @property
    def trained(self) -> tuple[Source, ...]:
        return *self.main, *self.replay


def sources_of(config: DataConfig, consumes: Consumes, part: str = "main") -> Sources:
    """The sources of a config, each with all that `read` needs of it: this is the one place that decides it.

    `consumes` is what the run learns from, `part` that of main data. Replay is text unless a source names
    another format. A source's own columns go before those of all data, which are not about replay. Raises ConfigError
    as `parse_sources` does.
    """

    everywhere = Columns.parse(config.columns, config.ignore_columns)

    def sources(specs: Sequence[str | DataSource], part: str, default_format: str) -> tuple[Source, ...]:
        prompt, sources = config.alpaca_prompt, []
        for source in parse_sources(specs):
            source = replace(source, part=part, default_format=default_format, alpaca_prompt=prompt, consumes=consumes)
            source = replace(source, keep_wrong=config.keep_wrong)
            columns = source.columns if part == REPLAY else everywhere.updated(source.columns)
            columns = replace(columns, instead=consumes != "task")
            sources.append(replace(source, columns=columns))
        return tuple(sources)

    return Sources(
        main=sources(config.data, part, config.format),
        replay=sources(config.replay, REPLAY, "text"),
        held_out=sources(config.eval_data, part, config.format),
    )


@dataclass(frozen=True, slots=True)
class Opened:
    """The stores of a data config: `main` and `replay` are drawn from, `held_out` is evaluated on.

    `sources` are those of main and replay, `held_sources` the files named as held out (none if a share of main is held
    out). `chosen[i]` are the groups of main store i that are trained on, None for all; `kept_back` likewise for
    held_out.
    """

    main: list[Store]
    replay: list[Store]
    held_out: list[Store]
    sources: list[Source]
    held_sources: list[Source]
    chosen: list[Selection]
    kept_back: list[Selection]

    @property
    def sizes_held(self) -> list[int]:
        """How many groups of each held-out store are evaluated on."""
        sizes = []
        for store, kept in zip(self.held_out, self.kept_back, strict=True):
            sizes.append(len(store) if kept is None else len(kept))
        return sizes

    @property
    def all(self) -> list[Store]:
        """Every store once."""
        return [*self.main, *self.replay, *(store for store in self.held_out if store not in self.main)]

    @property
    def dimensions(self) -> tuple[str, ...]:
        """The names of the samples' grades, in their order; none if they have no grades. If sources disagree, those of
        the first one count, and the others' are left out."""
        for store in self.all:
            if store.stats.dimensions:
                return store.stats.dimensions
        return ()


def open_data(
    config: DataConfig,
    renderer: Renderer,
    *,
    cache: Path,
    seed: int,
    held_renderer: Renderer | None = None,
    on_progress: Callable[[str, int], None] | None = None,
    note: Callable[[str], None] | None = None,
    part: str = "main",
) -> Opened:
    """Tokenise every source of a config, once, in the form that the renderer takes. `part` is that of main data.

    Files named as held out are rendered by `held_renderer`, if it is given. `on_progress` is called with a source's
    name and the number of rows read so far, `note` with lines about the cache. Raises ConfigError, DataError or
    RowError, as `open_store` does.
    """

    def store(source: Source, renderer: Renderer) -> Store:
        ledger = Ledger()
        refuse_missing(source.path)
        return open_store(
            source,
            lambda: read(source, ledger),
            renderer,
            cache=cache,
            content_key=content_key(source.path, cache),
            options=source.options,
            part=source.part,
            on_bad_row=config.on_bad_row,
            on_progress=(lambda rows: on_progress(source.name, rows)) if on_progress else None,
            ledger=ledger,
            note=note,
        )

    sources = sources_of(config, renderer.form.consumes, part)
    main = [store(source, renderer) for source in sources.main]
    replay = [store(source, renderer) for source in sources.replay]
    held_out = [store(source, held_renderer or renderer) for source in sources.held_out]
    chosen: list[Selection] = [None] * len(main)
    kept_back: list[Selection] = [None] * len(held_out)
    if config.eval_fraction:
        chosen, kept_back, held_out = [], [], main
        for one in main:
            train, held = split(one, config.eval_fraction, seed)
            chosen.append(train)
            kept_back.append(held)
    opened = Opened(main, replay, held_out, list(sources.trained), list(sources.held_out), chosen, kept_back)
    _share_dimensions(opened, learned=renderer.form.wants == "grades")
    return opened


def _share_dimensions(opened: Opened, *, learned: bool) -> None:
    """Give all stores the dimensions of the first graded one, by which batches are laid out.

    Raises DataError if grades are `learned` and a source has others: one head learns them all.
    """
    dimensions = opened.dimensions
    for store in opened.all:
        store.dimensions = dimensions
        if learned and store.stats.dimensions not in ((), dimensions):
            got, expected = ", ".join(store.stats.dimensions), ", ".join(dimensions)
            raise DataError(
                f"{store.path}: its scores are about {got}; expected {expected}, as in the sources before it, because "
                "one head learns them all. Train on one of them, or give all rows the same scores"
            )


class Dataset:
    """Groups by step, as `train.Source` asks: a function of (seed, step)."""

    def __init__(
        self,
        opened: Opened,
        *,
        seed: int,
        samples_per_step: int,
        tokens_per_step: int,
        replay_fraction: float,
        epochs: float,
        steps: int,
    ):
        self.opened = opened
        self._stores = [*opened.main, *opened.replay]
        choices = [*opened.chosen, *([None] * len(opened.replay))]
        self.plan = Plan(
            [
                PlanSource.of(store, source.proportion, groups)
                for store, source, groups in zip(self._stores, opened.sources, choices, strict=True)
            ],
            seed=seed,
            samples_per_step=samples_per_step,
            tokens_per_step=tokens_per_step,
            replay_fraction=replay_fraction if opened.replay else 0.0,
            epochs=epochs,
            steps=steps,
        )
        self.steps = self.plan.steps

    def groups(self, step: int) -> list[list[Sample]]:
        """The groups of a step, numbered in the order drawn, so that equal rows of two sources stay apart."""
        groups = [self._stores[source].group(i) for source, i in self.plan.step(step)]
        for number, group in enumerate(groups):
            for sample in group:
                sample.group = number
        return groups

    def held_out(self) -> Iterator[list[list[Sample]]]:
        """The groups that are held out, EVAL_GROUPS at a time, store by store."""
        for store, kept in zip(self.opened.held_out, self.opened.kept_back, strict=True):
            numbers: Sequence[int] = range(len(store)) if kept is None else kept.tolist()
            for low in range(0, len(numbers), EVAL_GROUPS):
                yield [store.group(i) for i in numbers[low : low + EVAL_GROUPS]]

    def epoch_of(self, step: int) -> float:
        """Epochs of main data drawn before `step`."""
        return self.plan.epoch_of(step)

    def consumed(self, step: int) -> str:
        """sha256 of what the steps before `step` drew, in order."""
        return self.plan.consumed(step)


def longest(config: DataConfig, limit: int | None) -> int:
    """The length at which samples are cut, 0 for none; `limit` is the model's. Raises ConfigError for one beyond it."""
    if limit is not None and config.max_length > limit:
        raise ConfigError(
            f"max_length: got {config.max_length}, but the model takes at most {limit} tokens; expected 0 (the model's "
            f"limit) to {limit}",
            key="max_length",
        )
    return config.max_length or limit or 0
