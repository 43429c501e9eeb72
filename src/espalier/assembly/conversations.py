"""Given conversations that a run trains on beside its answers: their stores, and the order in which steps draw them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from espalier.algorithms.online import GIVEN, PTX
from espalier.assembly.data import cache_folder
from espalier.assembly.runs import RunConfig
from espalier.data.dataset import Dataset, Opened, longest, open_data
from espalier.data.render.form import Form
from espalier.data.render.renderer import Renderer
from espalier.data.tasks import TaskData
from espalier.loop.given import Given, GivenSteps, Ptx
from espalier.models.load import Loaded
from espalier.models.stops import stops_of
from espalier.types import Sample


class Endless:
    """The steps of a plan, of which nobody knows how many are taken: `plan(steps)` is made longer when they run out,
    and begins with the same ones."""

    def __init__(self, plan: Callable[[int], Dataset]):
        self.plan, self.rows = plan, plan(1)

    def groups(self, step: int) -> list[list[Sample]]:
        while step >= self.rows.steps:
            self.rows = self.plan(2 * self.rows.steps)
        return self.rows.groups(step)


@dataclass(frozen=True, slots=True)
class Conversations:
    """The renderer of given conversations, which trains what the assistant says as sft does, their stores, and their
    order: a function of (seed, step). Their samples are the part `sft`, or `ptx`: then a step of `rows` is one group,
    `plan` makes as many steps as are taken, and `share` of a step's trained tokens are theirs."""

    renderer: Renderer
    opened: Opened
    rows: Dataset
    plan: Callable[[int], Dataset]
    share: float = 0.0

    def given(self, minibatches: int) -> Given:
        """What the loop adds to each step."""
        if self.share:
            return Ptx(Endless(self.plan).groups, self.share, minibatches)
        return GivenSteps(self.rows.groups)

    @property
    def per_step(self) -> int:
        """The most samples that a step takes."""
        return sum(map(len, self.rows.groups(0)))

    @property
    def longest(self) -> int:
        """Tokens of the longest sample."""
        return max(int(store.lengths.max()) for store in self.opened.main)


def open_conversations(
    config: RunConfig,
    loaded: Loaded,
    tasks: TaskData,
    on_progress: Callable[[str, int], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> Conversations | None:
    """Tokenise the conversations of a run, or find them tokenised; None if it has none. Their plan has as many steps
    as that of the tasks; a step takes `sft_per_step` samples, or as many as it has prompts. Of `ptx_data` a step takes
    what its answers leave room for, group by group.

    Raises ConfigError, DataError and RowError, as the data of sft do.
    """
    given, ptx, loop = config.conversations, config.ptx, config.loop
    if not given.sft_data and not ptx.ptx_data:
        return None
    renderer = Renderer(
        loaded.tokenizer,
        train_on="assistant",
        max_length=longest(config.data, loaded.limit),
        form=Form("chat", seed=loop.seed, turns=config.turns),
        known_stops=stops_of(loaded.folder, loaded.adapter),
    )
    # Columns and held-out files of the config are about tasks.
    data = replace(
        config.data,
        data=given.sft_data or ptx.ptx_data,
        format="auto",
        columns=(),
        ignore_columns=(),
        eval_data=(),
        eval_fraction=0.0,
    )
    opened = open_data(
        data,
        renderer,
        cache=cache_folder(config.data.cache),
        seed=loop.seed,
        on_progress=on_progress,
        note=note,
        part=GIVEN if given.sft_data else PTX,
    )

    def plan(steps: int) -> Dataset:
        return Dataset(
            opened,
            seed=loop.seed,
            samples_per_step=1 if ptx.ptx_data else given.sft_per_step or len(tasks.prompts(0)),
            tokens_per_step=0,
            replay_fraction=0.0,
            epochs=1.0,
            steps=steps,
        )

    return Conversations(renderer, opened, plan(tasks.steps), plan, ptx.ptx_share if ptx.ptx_data else 0.0)
