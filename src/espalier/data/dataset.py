"""The data of a run: token stores, what is held out, and the order in which steps draw from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from espalier.config.sections import DataConfig
from espalier.data.files.content import content_key
from espalier.data.plan import REPLAY, Plan, PlanSource
from espalier.data.read import READ_VERSION, Source, parse_sources, read
from espalier.data.store.store import Store, open_store, split
from espalier.errors import ConfigError, DataError
from espalier.types import Sample

if TYPE_CHECKING:
    from espalier.data.render.renderer import Renderer

EVAL_GROUPS = 64  # groups handed to an evaluation at a time


@dataclass(frozen=True, slots=True)
class Opened:
    """The stores of a data config: `main` and `replay` are drawn from, `held_out` is evaluated on.

    `sources` are those of main and replay, `held_sources` the files named as held out (none where a share of main is).
    `chosen[i]` are the groups of main store i that are trained on, None for all; `kept_back` likewise for held_out.
    """

    main: list[Store]
    replay: list[Store]
    held_out: list[Store]
    sources: list[Source]
    held_sources: list[Source]
    chosen: list[Any]
    kept_back: list[Any]

    @property
    def sizes_held(self) -> list[int]:
        """How many groups of each held-out store are evaluated on."""
        return [len(s) if kept is None else len(kept) for s, kept in zip(self.held_out, self.kept_back, strict=True)]

    @property
    def all(self) -> list[Store]:
        """Every store once."""
        return [*self.main, *self.replay, *(s for s in self.held_out if s not in self.main)]

    @property
    def dimensions(self) -> tuple[str, ...]:
        """What the samples' grades are about, in their order; nothing where they have none. Of sources that disagree,
        those of the first one count, and the others' are left out."""
        return next((s.stats.dimensions for s in self.all if s.stats.dimensions), ())


def open_data(
    config: DataConfig,
    renderer: Renderer,
    *,
    cache: Path,
    seed: int,
    held_renderer: Renderer | None = None,
    on_progress: Callable[[str, int], None] | None = None,
) -> Opened:
    """Tokenise every source of a config, once, in the form that the renderer takes; files named as held out by
    `held_renderer`, where it is another one.

    Raises ConfigError, DataError or RowError, as `open_store` does.
    """
    form = renderer.form.consumes

    def store(source: Source, part: str, default_format: str, renderer: Renderer = renderer) -> Store:
        return open_store(
            source,
            lambda: read(source, default_format=default_format, alpaca_prompt=config.alpaca_prompt, form=form),
            renderer,
            cache=cache,
            content_key=content_key(source.path, cache),
            options=f"{READ_VERSION} {form} {default_format} {config.alpaca_prompt}",
            part=part,
            on_bad_row=config.on_bad_row,
            on_progress=(lambda rows: on_progress(source.name, rows)) if on_progress else None,
        )

    sources = list(parse_sources(config.data))
    main = [store(s, "main", config.format) for s in sources]
    texts = list(parse_sources(config.replay))
    replay = [store(s, REPLAY, "text") for s in texts]
    held_sources = list(parse_sources(config.eval_data))
    held = [store(s, "main", config.format, held_renderer or renderer) for s in held_sources]
    chosen: list[Any] = [None] * len(main)
    kept_back: list[Any] = [None] * len(held)
    if config.eval_fraction:
        sides = [split(s, config.eval_fraction, seed) for s in main]
        chosen, kept_back, held = [train for train, _ in sides], [back for _, back in sides], main
    opened = Opened(main, replay, held, [*sources, *texts], held_sources, chosen, kept_back)
    dimensions = opened.dimensions
    for one in opened.all:
        one.dimensions = dimensions
        if renderer.form.wants == "grades" and one.stats.dimensions not in ((), dimensions):
            got, expected = (", ".join(names) for names in (one.stats.dimensions, dimensions))
            raise DataError(
                f"{one.path}: its scores are about {got}; expected {expected}, as in the sources before it, because "
                "one head learns them all. Train on one of them, or give all rows the same scores"
            )
    return opened


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
        drawn = [
            PlanSource.of(store, source.proportion, groups)
            for store, source, groups in zip(self._stores, opened.sources, choices, strict=True)
        ]
        self.plan = Plan(
            drawn, seed=seed, samples_per_step=samples_per_step, tokens_per_step=tokens_per_step,
            replay_fraction=replay_fraction if opened.replay else 0.0, epochs=epochs, steps=steps,
        )  # fmt: skip
        self.steps = self.plan.steps

    def groups(self, step: int) -> list[list[Sample]]:
        """The groups of a step, numbered in the order drawn, so that equal rows of two sources stay apart."""
        found = [self._stores[s].group(g) for s, g in self.plan.step(step)]
        for number, group in enumerate(found):
            for sample in group:
                sample.group = number
        return found

    def held_out(self) -> Iterator[list[list[Sample]]]:
        for store, kept in zip(self.opened.held_out, self.opened.kept_back, strict=True):
            wanted: Sequence[int] = range(len(store)) if kept is None else kept.tolist()
            for low in range(0, len(wanted), EVAL_GROUPS):
                yield [store.group(i) for i in wanted[low : low + EVAL_GROUPS]]

    def epoch_of(self, step: int) -> float:
        return self.plan.epoch_of(step)

    def consumed(self, step: int) -> str:
        return self.plan.consumed(step)


def longest(config: DataConfig, limit: int | None) -> int:
    """The length at which samples are cut, 0 for none. Raises ConfigError for one beyond the model's."""
    if limit is not None and config.max_length > limit:
        raise ConfigError(
            f"max_length: got {config.max_length}, but the model takes at most {limit} tokens; expected 0 (the model's "
            f"limit) to {limit}",
            key="max_length",
        )
    return config.max_length or limit or 0
