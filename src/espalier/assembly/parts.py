"""From a config to the parts of a run that are there before a learner: model, renderer, data, processes."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy
import torch

from espalier.assembly.data import build_data, build_renderer, held_renderer
from espalier.assembly.model import Model, build_model, head_of, padding_notes
from espalier.assembly.reference import check_model
from espalier.assembly.runs import RunConfig
from espalier.data.dataset import Dataset, Opened
from espalier.data.render.renderer import Renderer
from espalier.engines import processes as worlds
from espalier.loop.progress import Progress


@dataclass(slots=True)
class Parts:
    """What `sft` and `check` share."""

    model: Model
    renderer: Renderer
    opened: Opened
    dataset: Dataset
    world: Any
    device: Any
    say: Progress


@contextmanager
def parts(config: RunConfig) -> Iterator[Parts]:
    """Model and data, read and described; ends the process group on the way out."""
    device = worlds.pick_device()
    if config.loop.deterministic and device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    for plant in (random.seed, numpy.random.seed, torch.manual_seed):  # checkpoints hold all three generators
        plant(config.loop.seed % 2**32)
    world = worlds.start(device)
    say = Progress(0, rank=world.rank)
    try:
        check_model(config)
        noise, head = getattr(config.algorithm, "neftune_alpha", 0.0), head_of(config)
        model = build_model(config.model, device, seed=config.loop.seed, neftune_alpha=noise, head=head)
        renderer = build_renderer(config, model.loaded)
        model.notes += padding_notes(model, renderer)
        held = held_renderer(config, model.loaded)
        opened, dataset = build_data(config, renderer, say.reading("rows tokenised"), held)
        yield Parts(model, renderer, opened, dataset, world, device, say)
    finally:
        world.close()
