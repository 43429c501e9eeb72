"""From a config to the data of a run: renderer, stores, order."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from espalier.algorithms.dimensions import check_dimensions, total_weights
from espalier.algorithms.reward import Reward
from espalier.assembly.runs import RunConfig, judge_of, labels_of, preference_of
from espalier.data.dataset import Dataset, Opened, longest, open_data
from espalier.data.render.form import Form
from espalier.data.render.renderer import Renderer
from espalier.errors import DataError
from espalier.models.load import Loaded
from espalier.types import TrainOn


def cache_folder(asked: str) -> Path:
    """Where tokenised data is kept: as asked, else the user's cache folder."""
    if asked:
        return Path(asked).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "espalier"


def build_renderer(config: RunConfig, loaded: Loaded) -> Renderer:
    """The renderer of a run's data, cutting at `max_length` or the model's limit."""
    return _renderer(config, loaded, form_of(config))


def held_renderer(config: RunConfig, loaded: Loaded) -> Renderer | None:
    """The renderer of files that are held out, where it is another one: labels there are never turned around."""
    form = form_of(config)
    if not form.preference.flip:
        return None
    return _renderer(config, loaded, replace(form, preference=replace(form.preference, flip=0.0)))


def _renderer(config: RunConfig, loaded: Loaded, form: Form) -> Renderer:
    limit = longest(config.data, loaded.limit)
    return Renderer(loaded.tokenizer, train_on=train_on(config), max_length=limit, form=form)


def train_on(config: RunConfig) -> TrainOn:
    """Which turns of a conversation are trained; of an algorithm that does not ask, the assistant's."""
    asked: TrainOn = getattr(config.algorithm, "train_on", "assistant")
    return asked


def form_of(config: RunConfig) -> Form:
    """In which form the run reads its examples."""
    traits = config.algorithm.traits
    judged = preference_of(config), config.loop.seed, labels_of(config)
    # Nothing is trained: groups of equals alone say something, too (how often a best of n is right).
    wants = "comparisons" if judge_of(config).eval_only and traits.wants == "pairs" else traits.wants
    return Form(traits.consumes, wants, traits.reads, *judged)


def build_data(
    config: RunConfig,
    renderer: Renderer,
    on_progress: Callable[[str, int], None] | None = None,
    held_renderer: Renderer | None = None,
) -> tuple[Opened, Dataset]:
    """Tokenise (or find tokenised) all data, and put it in order. Raises ConfigError and DataError, for grades that the
    algorithm does not take, too."""
    opened = open_data(
        config.data, renderer, cache=cache_folder(config.data.cache), seed=config.loop.seed,
        held_renderer=held_renderer, on_progress=on_progress,
    )  # fmt: skip
    check_grades(config, opened)
    loop = config.loop
    dataset = Dataset(
        opened, seed=loop.seed, samples_per_step=loop.samples_per_step, tokens_per_step=loop.tokens_per_step,
        replay_fraction=config.data.replay_fraction, epochs=loop.epochs, steps=loop.steps,
    )  # fmt: skip
    return opened, dataset


def check_grades(config: RunConfig, opened: Opened) -> None:
    """Whether the stored grades are about the run's dimensions and, where it learns from them, on its scale.

    Raises ConfigError for other dimensions, DataError that names a row outside the scale or a source of other ones.
    """
    algorithm = config.algorithm
    if not isinstance(algorithm, Reward):
        return
    learned = algorithm.learns_grades
    check_dimensions(tuple(total_weights(algorithm.dimensions)), opened.dimensions, learned=learned)
    if not learned:
        return
    low, high = algorithm.grade_low, algorithm.grade_high
    for store in opened.all:
        if store.stats.dimensions not in ((), opened.dimensions):
            raise DataError(
                f"{store.path}: its scores are about {', '.join(store.stats.dimensions)}; expected "
                f"{', '.join(opened.dimensions)}, as in the sources before it, because one head learns them all"
            )
        lowest, highest = store.stats.lowest, store.stats.highest
        if lowest is None or highest is None or low <= lowest <= highest <= high:
            continue
        given = ((i, x) for i in range(len(store)) for s in store.group(i) for grade in s.grades for x in grade)
        i, x = next((i, x) for i, x in given if not math.isnan(x) and not low <= x <= high)
        raise DataError(
            f"{store.path}:{store.origin(i).line}: a response has the grade {x:g}, expected {low:g} to {high:g} (the "
            f"source has {lowest:g} to {highest:g}); set grade_low and grade_high to the ends of the scale that people "
            "used, or leave the row out"
        )
