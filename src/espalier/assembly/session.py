"""What a command works with, from its config to its learner."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy
import torch

from espalier.algorithms.traits import Traits
from espalier.assembly.conversations import Conversations, open_conversations
from espalier.assembly.critic_model import build_critic_model
from espalier.assembly.data import build_data, build_renderer, held_renderer, tasks_of
from espalier.assembly.model import Model, build_run_model, check_reference_model, padding_notes
from espalier.assembly.reward_choice import choices_of
from espalier.assembly.reward_models import build_reward_models
from espalier.assembly.rollouts import Rollouts, build_rollouts
from espalier.assembly.runs import RunConfig
from espalier.assembly.sizes import learner_bytes
from espalier.data.dataset import Dataset, Opened
from espalier.data.render.renderer import Renderer
from espalier.data.store.store import Store
from espalier.data.tasks import TaskData
from espalier.engines import processes
from espalier.engines.learner import TorchLearner
from espalier.engines.protocols import Reference, Roles
from espalier.loop.canary import Canary
from espalier.loop.progress import Progress
from espalier.types import Sample


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What a reward model was calibrated on: groups of training answers, the scores of every answer before and, of the
    first groups, after; whether all answers count (`every`) or the best of each group, by the dimensions' `weights` if
    the loss learns from grades; whether the deviation was made 1 (`scale`)."""

    groups: list[list[Sample]]
    before: list[list[tuple[float, ...]]]
    after: list[list[tuple[float, ...]]]
    every: bool
    scale: bool
    weights: tuple[float, ...] | None


@dataclass(slots=True)
class Session:
    """Everything that one call of a command has opened.

    `opened` are the token stores, `dataset` their order; `processes` train together on a `device` each; `console` is
    where rank 0 prints. `learner`, `reference` and `critic` are there once `learner.build_learner`,
    `reference.build_reference` and `critic.build_critic` have been called; a run that needs no reference or critic has
    None. `critic_model` is what a critic of its own is built from. `rollouts` are what draws and
    grades, in a session whose data are tasks, `conversations` what is trained beside the answers; `rehearsed` is a
    rehearsal of its first step, `canary` what the sampler is asked after every update. `beside` are the bytes that
    others hold on each rank (sampler, critic, reward model), by what they are.
    """

    config: RunConfig
    model: Model
    renderer: Renderer
    opened: Opened
    dataset: Dataset | TaskData
    processes: processes.OneProcess | processes.Distributed
    device: torch.device
    console: Progress
    learner: TorchLearner = field(init=False)
    reference: Reference | None = None
    critic_model: Model | None = None
    critic: TorchLearner | None = None
    calibrated: Calibrated | None = None
    rollouts: Rollouts | None = None
    conversations: Conversations | None = None
    rehearsed: list[list[Sample]] | None = None
    canary: Canary | None = None
    beside: dict[str, int] = field(default_factory=dict)

    @property
    def rows(self) -> Dataset:
        """The data of a run that learns from given rows. Raises ValueError for one that answers tasks."""
        if not isinstance(self.dataset, Dataset):
            raise ValueError(f"{self.config.command} answers tasks; it has no rows to learn from")
        return self.dataset

    @property
    def tasks(self) -> TaskData:
        """The data of a run that answers tasks. Raises ValueError for another."""
        if not isinstance(self.dataset, TaskData):
            raise ValueError(f"{self.config.command} learns from given rows; it has no tasks")
        return self.dataset

    @property
    def stores(self) -> list[Store]:
        """Every token store once."""
        return [*self.opened.all, *(self.conversations.opened.all if self.conversations else [])]

    @property
    def given(self) -> dict[str, float]:
        """What the algorithm's state holds from the start."""
        return {} if self.rollouts is None else {"max_tokens": float(self.config.rollout.max_tokens)}

    @property
    def traits(self) -> Traits:
        """What the run's algorithm says about itself."""
        return self.config.algorithm.traits

    @property
    def roles(self) -> Roles:
        """Who takes part in a step."""
        return Roles(self.learner, self.critic, self.reference)

    @property
    def main(self) -> bool:
        """Whether this is the process that writes files."""
        return self.processes.rank == 0


@contextmanager
def open_session(config: RunConfig, sampler: Mapping[str, int] | None = None) -> Iterator[Session]:
    """Load the model and open the data of a run; ends the process group on the way out. sampler: bounds of the sampler
    that a resumed run began with."""
    if config.algorithm.traits.consumes == "task":
        # A reward that does not exist is refused before a model is loaded.
        tasks_of(config)
    device = processes.pick_device()
    if config.loop.deterministic and device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    # Checkpoints hold the state of all three generators, so all three start from the seed.
    for seed_generator in (random.seed, numpy.random.seed, torch.manual_seed):
        seed_generator(config.loop.seed % 2**32)
    world = processes.start(device)
    console = Progress(0, rank=world.rank)
    session: Session | None = None
    try:
        check_reference_model(config)
        chosen = choices_of(config)
        model = build_run_model(config, device)
        renderer = build_renderer(config, model.loaded)
        model.notes += padding_notes(model, renderer)
        scorers = build_reward_models(config, chosen, model.loaded.tokenizer, renderer, device, world)
        held = held_renderer(config, model.loaded)
        opened, dataset = build_data(config, renderer, console.reading("rows tokenised"), held, console.note)
        session = Session(config, model, renderer, opened, dataset, world, device, console)
        if isinstance(dataset, TaskData):
            session.critic_model = build_critic_model(config, model.loaded, device)
            if session.critic_model is not None:
                session.beside["critic"] = learner_bytes(session.critic_model, ranks=world.size)
            session.conversations = open_conversations(
                config, model.loaded, dataset, console.reading("rows tokenised"), console.note
            )
            if scorers is not None:
                session.beside["reward model"] = scorers.bytes(world.size)
            session.rollouts = build_rollouts(session, sampler, scorers)
            session.beside["sampler's keys and values"] = session.rollouts.sampling.bytes
            if model.compute == torch.float32:
                session.beside["weights copied to sample"] = session.rollouts.sampling.copies
        yield session
    finally:
        if session is not None and session.rollouts is not None:
            for line in session.rollouts.graders.notes():
                console.note(line)
            session.rollouts.graders.close()
        world.close()
