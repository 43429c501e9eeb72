"""From a config to the parts of a run: model, renderer, data, learner. The only place where an engine meets an
algorithm."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from espalier.algorithms.dimensions import check_dimensions, total_weights
from espalier.algorithms.reward import Reward
from espalier.config.sections import ModelConfig
from espalier.data.dataset import Dataset, Opened, longest, open_data
from espalier.data.render.chats import TrainOn
from espalier.data.render.form import Form
from espalier.data.render.renderer import Renderer
from espalier.data.render.templates import apply_template
from espalier.engines.learner import ExportOptions, LearnerOptions, TorchLearner
from espalier.engines.processes import Distributed, OneProcess
from espalier.errors import ConfigError, DataError
from espalier.forest.microbatches import Layout
from espalier.models import heads, layout
from espalier.models.export import padding_of
from espalier.models.freeze import FreezeSummary
from espalier.models.load import Loaded, load_model, prepare
from espalier.models.policy import Policy
from espalier.runs import RunConfig, judge_of, labels_of, preference_of

CPU_BUDGET = 2048
CUDA_BUDGET = 8192


@dataclass(slots=True)
class Model:
    """A model ready to be trained, with what was decided about it; `notes` are lines for the user."""

    loaded: Loaded
    policy: Policy
    frozen: FreezeSummary
    compute: torch.dtype
    notes: list[str]


def compute_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of forward and backward: bfloat16 on CUDA and float32 elsewhere, unless named."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def cache_folder(asked: str) -> Path:
    """Where tokenised data is kept: as asked, else the user's cache folder."""
    if asked:
        return Path(asked).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "espalier"


def build_model(
    config: ModelConfig, device: torch.device, *, seed: int = 0, neftune_alpha: float = 0.0, head: Head | None = None
) -> Model:
    """Load, adapt, freeze; choose the layout. With `head`, the model is read by a scalar head: the one it comes with,
    or a new one. Raises ModelError and ConfigError."""
    loaded = load_model(config, device=device, head=head is not None)
    if head is not None:
        put_head(loaded, head, seed)
    frozen = prepare(loaded, config, seed=seed)
    apply_template(loaded.tokenizer, config.template)
    chosen, reason = layout.choose(loaded.model, config.layout)
    if config.router_loss and not getattr(loaded.model.config.get_text_config(), "num_experts_per_tok", 0):
        raise ConfigError("router_loss is given, but the model has no experts; drop it", key="router_loss")
    if config.router_loss and chosen == "padded":
        raise ConfigError(
            f"router_loss needs a packed layout, but layout is padded: {reason}; drop it", key="router_loss"
        )
    policy = Policy(
        loaded.model, chosen, neftune_alpha=neftune_alpha, dropout=config.dropout, router_loss=config.router_loss > 0,
        reads=head is not None,
    )  # fmt: skip
    notes = [*loaded.notes, f"layout {chosen}: {reason}"]
    if config.router_loss:
        notes.append(
            "router loss on: it is not linear in the tokens, so it alone depends on the split into micro-batches"
        )
    return Model(loaded, policy, frozen, compute_dtype(config.dtype, device), notes)


@dataclass(frozen=True, slots=True)
class Head:
    """The scalar head a run asks for: names of its dimensions (none is a single, nameless one) and where it is read.
    trained: a model without one gets a new one."""

    names: tuple[str, ...]
    kind: heads.Kind
    trained: bool = True


def head_of(config: RunConfig) -> Head | None:
    """The scalar head of a run whose algorithm reads one."""
    if not config.algorithm.traits.reads:
        return None
    names = tuple(total_weights(getattr(config.algorithm, "dimensions", ())))
    return Head(names, kind_of(config), trained=not judge_of(config).eval_only)


def kind_of(config: RunConfig) -> heads.Kind:
    return "steps" if config.algorithm.traits.consumes == "steps" else "response"


def put_head(loaded: Loaded, head: Head, seed: int) -> None:
    """Attach the head, or keep the one the model has. Raises ConfigError where that is another one."""
    size = max(1, len(head.names))
    had = heads.scalar_head(loaded.model)
    if had is None and not head.trained:
        command = "prm" if head.kind == "steps" else "reward"
        raise ConfigError(
            f"{loaded.folder} has no scalar head, and one that nobody trained says nothing; expected a model that "
            f"`espalier {command}` trained"
        )
    if had is None:
        heads.attach(loaded.model, size, seed=seed, names=head.names, kind=head.kind)
        return
    if had.dimensions != size or had.kind != head.kind or (head.names and had.names != head.names):
        raise ConfigError(
            f"the model has a head of {had.dimensions} dimensions ({', '.join(had.names) or 'nameless'}, {had.kind}); "
            f"this run asks for {size} ({', '.join(head.names) or 'nameless'}, {head.kind}). Give its dimensions, or "
            "start from a model without a head"
        )
    loaded.notes.append("continues the scalar head that the model has")


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


def padding_notes(model: Model, renderer: Renderer) -> list[str]:
    """What to say of the pad token that a reward model will be exported with, where it is another one."""
    if not model.policy.reads:
        return []
    note = padding_of(model.loaded.model, model.loaded.tokenizer, renderer.stop_ids).note
    return [note] if note else []


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


def budget(config: RunConfig, device: torch.device) -> int:
    """Packed tokens in a forward."""
    return config.loop.tokens_per_microbatch or (CUDA_BUDGET if device.type == "cuda" else CPU_BUDGET)


def token_layout(model: Model, *, whole: bool = False) -> Layout:
    """How tokens are counted against the budget; `whole` keeps groups in one piece."""
    loaded, policy = model.loaded, model.policy
    stretched = loaded.original_limit if loaded.original_limit != loaded.limit else None
    return Layout(policy.shares, policy.layout == "padded", whole=whole, long_from=stretched or 0)


def build_learner(
    config: RunConfig, model: Model, renderer: Renderer, world: OneProcess | Distributed, device: torch.device
) -> TorchLearner:
    """The learner of a run; shards the policy under a distributed world."""
    loaded = model.loaded
    options = LearnerOptions(
        budget=budget(config, device),
        compute=model.compute,
        linear=config.algorithm.traits.linear,
        whole=config.algorithm.traits.whole,
        reads=config.algorithm.traits.reads,
        router_coef=config.model.router_loss,
        grad_checkpointing=config.loop.grad_checkpointing,
        compile=config.loop.compile,
        long_from=token_layout(model).long_from,
        seed=config.loop.seed,
    )
    export = ExportOptions(
        loaded.tokenizer, loaded.source_dtype, renderer.stop_ids, adapter_only=config.model.export == "adapter"
    )
    return TorchLearner(model.policy, config.optim, options, world=world, export_options=export)


def estimate(model: Model, tokens: int, *, ranks: int, checkpointing: bool) -> dict[str, int]:
    """Bytes a rank needs, roughly: weights, gradients, optimizer, and the activations of one forward of `tokens`.

    Activations of a layer count 2 x 9 hidden and 2 x 3 intermediate widths a token in the compute dtype (inputs of the
    matrices, norms, attention, gates); checkpointing keeps one hidden width a layer and recomputes one layer.
    """
    config: Any = model.loaded.model.config.get_text_config()
    size = torch.empty(0, dtype=model.compute).element_size()
    masters = 0 if model.compute == torch.float32 else 4 * model.frozen.trainable
    hidden = config.hidden_size
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    layer = (18 * hidden + 6 * inner) * size
    layers = config.num_hidden_layers
    per_token = layers * hidden * size + layer if checkpointing else layers * layer
    return {
        "weights": (model.frozen.total * size + masters) // ranks,
        "gradients": 4 * model.frozen.trainable // ranks,
        "optimizer": 8 * model.frozen.trainable // ranks,
        "activations": tokens * per_token,
    }
