"""From a config to the data of a run: renderer, stores, order."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from espalier.algorithms.dimensions import check_dimensions
from espalier.assembly.reward_choice import names_of
from espalier.assembly.runs import RunConfig
from espalier.data.dataset import Dataset, Opened, longest, open_data
from espalier.data.render.form import Form, TaskForm
from espalier.data.render.renderer import Renderer
from espalier.data.store.store import Store
from espalier.data.tasks import TaskData
from espalier.errors import DataError
from espalier.models.load import Loaded
from espalier.models.stops import stops_of
from espalier.rewards import build
from espalier.rewards.builtin import BUILTIN
from espalier.types import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def cache_folder(cache: str) -> Path:
    """Where tokenised data is kept: the folder that the config names, else the user's cache folder."""
    if cache:
        return Path(cache).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "espalier"


def build_renderer(config: RunConfig, loaded: Loaded) -> Renderer:
    """The renderer of a run's data, cutting at `max_length` or the model's limit."""
    stops = stops_of(loaded.folder, loaded.adapter)
    return renderer_of(config, loaded.tokenizer, loaded.limit, stops, unread_of(config, loaded))


def held_renderer(config: RunConfig, loaded: Loaded) -> Renderer | None:
    """The renderer of files that are held out, if it is another one: labels there are never flipped."""
    if not config.preference.flip:
        return None
    unflipped = replace(config, preference=replace(config.preference, flip=0.0))
    return renderer_of(unflipped, loaded.tokenizer, loaded.limit, stops_of(loaded.folder, loaded.adapter))


def unread_of(config: RunConfig, loaded: Loaded) -> int | None:
    """The token that a model which is only judged is not read at: its pad token, which transformers skips at the end of
    a text, a stop token included. A model that is trained gets a pad token that no text ends in."""
    if not config.judge.eval_only:
        return None
    pad: int | None = loaded.model.config.get_text_config().pad_token_id
    return pad


def renderer_of(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    limit: int | None,
    stops: Sequence[int],
    unread: int | None = None,
) -> Renderer:
    """The renderer of a run's data under a tokenizer. limit: the most tokens that the model takes. stops: ids that it
    stops on. unread: see `data.render.form.Form`."""
    longest_sample = longest(config.data, limit)
    train_on = config.algorithm.traits.train_on
    form = form_of(config, unread)
    return Renderer(tokenizer, train_on=train_on, max_length=longest_sample, form=form, known_stops=stops)


def form_of(config: RunConfig, unread: int | None = None) -> Form:
    """In which form the run reads its examples."""
    traits = config.algorithm.traits
    wants = traits.wants
    if config.judge.eval_only and wants == "pairs":
        # Nothing is trained, and groups of equals count, too: in how many is a best of n right?
        wants = "comparisons"
    return Form(
        traits.consumes,
        wants,
        reads=traits.says == "reads",
        preference=config.preference,
        seed=config.loop.seed,
        labels=config.labels,
        unread=unread,
        turns=config.turns,
        tasks=tasks_of(config) if traits.consumes == "task" else None,
    )


def tasks_of(config: RunConfig) -> TaskForm:
    """What the run asks of tasks: room for an answer, and a reward that grades it. Raises ConfigError for rewards that
    do not exist."""
    # Every built-in reward may be a task's verifier; which ones are is known when the tasks are read.
    plan = build.plan(config.rewards, BUILTIN, verifiers=BUILTIN)
    settings = {entry.name: dict(entry.settings) for entry in plan.entries}
    key = json.dumps([settings, sorted(plan.added)], sort_keys=True)
    grading = plan.grading
    models = tuple(names_of(config.rewards, plan).values())
    if not models:
        return TaskForm(config.rollout.max_tokens, grading.refusal, grading.grades, key)

    def graders(task: Task) -> tuple[str, ...]:
        return (*grading.grades(task), *models)

    return TaskForm(config.rollout.max_tokens, grading.refusal, graders, f"{key} {models}")


def build_data(
    config: RunConfig,
    renderer: Renderer,
    on_progress: Callable[[str, int], None] | None = None,
    held_renderer: Renderer | None = None,
    note: Callable[[str], None] | None = None,
) -> tuple[Opened, Dataset | TaskData]:
    """Tokenise (or find tokenised) all data, and put it in order.

    Raises ConfigError and DataError, also for grades that the algorithm does not take.
    """
    loop = config.loop
    opened = open_data(
        config.data,
        renderer,
        cache=cache_folder(config.data.cache),
        seed=loop.seed,
        held_renderer=held_renderer,
        on_progress=on_progress,
        note=note,
    )
    if config.algorithm.traits.consumes == "task":
        rollout = config.rollout
        tasks = TaskData(
            opened,
            seed=loop.seed,
            prompts_per_step=rollout.prompts_per_step,
            epochs=loop.epochs,
            steps=loop.steps,
        )
        return opened, tasks
    check_grades(config, opened)
    dataset = Dataset(
        opened,
        seed=loop.seed,
        samples_per_step=loop.samples_per_step,
        tokens_per_step=loop.tokens_per_step,
        replay_fraction=config.data.replay_fraction,
        epochs=loop.epochs,
        steps=loop.steps,
    )
    return opened, dataset


def check_grades(config: RunConfig, opened: Opened) -> None:
    """Whether the stored grades are about the run's dimensions and, if it learns from them, on its scale.

    Raises ConfigError for other dimensions, DataError that names a row outside the scale or a source of other ones.
    """
    traits = config.algorithm.traits
    check_dimensions(tuple(traits.dimensions), opened.dimensions, learned=traits.grades is not None)
    if traits.grades is None:
        return
    low, high = traits.grades.low, traits.grades.high
    for store in opened.all:
        if store.stats.dimensions not in ((), opened.dimensions):
            raise DataError(
                f"{store.path}: its scores are about {', '.join(store.stats.dimensions)}; expected "
                f"{', '.join(opened.dimensions)}, as in the sources before it, because one head learns them all"
            )
        lowest, highest = store.stats.lowest, store.stats.highest
        if lowest is None or highest is None or low <= lowest <= highest <= high:
            continue
        line, grade = _outside(store, low, high)
        raise DataError(
            f"{store.path}:{line}: a response has the grade {grade:g}, expected {low:g} to {high:g} (the source has "
            f"{lowest:g} to {highest:g}); set grade_low and grade_high to the ends of the scale that people used, or "
            "leave the row out"
        )


def _outside(store: Store, low: float, high: float) -> tuple[int, float]:
    """The line and the value of the first grade of a store that is not between low and high."""
    for i in range(len(store)):
        for s in store.group(i):
            for grade in s.grades:
                for x in grade:
                    if not math.isnan(x) and not low <= x <= high:
                        return store.origin(i).line, x
    raise ValueError(f"{store.path}: the statistics have a grade outside {low:g} to {high:g}, but no row has")
