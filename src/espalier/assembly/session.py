"""What a command works with, from its config to its learner."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy
import torch

from espalier.algorithms.traits import Traits
from espalier.assembly.data import build_data, build_renderer, held_renderer
from espalier.assembly.model import Model, build_run_model, check_reference_model, padding_notes
from espalier.assembly.runs import RunConfig
from espalier.data.dataset import Dataset, Opened
from espalier.data.render.renderer import Renderer
from espalier.engines import processes
from espalier.engines.learner import TorchLearner
from espalier.engines.protocols import Reference, Roles
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
    where rank 0 prints. `learner` and `reference` are there once `learner.build_learner` and
    `reference.build_reference` have been called; a run that needs no reference has None. `beside` are the bytes that
    others hold on each rank (sampler, critic, reward model), by what they are.
    """

    config: RunConfig
    model: Model
    renderer: Renderer
    opened: Opened
    dataset: Dataset
    processes: processes.OneProcess | processes.Distributed
    device: torch.device
    console: Progress
    learner: TorchLearner = field(init=False)
    reference: Reference | None = None
    calibrated: Calibrated | None = None
    beside: dict[str, int] = field(default_factory=dict)

    @property
    def traits(self) -> Traits:
        """What the run's algorithm says about itself."""
        return self.config.algorithm.traits

    @property
    def roles(self) -> Roles:
        """Who takes part in a step."""
        return Roles(self.learner, reference=self.reference)

    @property
    def main(self) -> bool:
        """Whether this is the process that writes files."""
        return self.processes.rank == 0


@contextmanager
def open_session(config: RunConfig) -> Iterator[Session]:
    """Load the model and open the data of a run; ends the process group on the way out."""
    device = processes.pick_device()
    if config.loop.deterministic and device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    # Checkpoints hold the state of all three generators, so all three start from the seed.
    for seed_generator in (random.seed, numpy.random.seed, torch.manual_seed):
        seed_generator(config.loop.seed % 2**32)
    world = processes.start(device)
    console = Progress(0, rank=world.rank)
    try:
        check_reference_model(config)
        model = build_run_model(config, device)
        renderer = build_renderer(config, model.loaded)
        model.notes += padding_notes(model, renderer)
        held = held_renderer(config, model.loaded)
        opened, dataset = build_data(config, renderer, console.reading("rows tokenised"), held, console.note)
        yield Session(config, model, renderer, opened, dataset, world, device, console)
    finally:
        world.close()
