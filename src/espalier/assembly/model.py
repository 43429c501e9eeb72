"""From a config to a model ready to be trained: loaded, adapted, frozen, laid out, with or without a scalar head."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from espalier.algorithms.dimensions import total_weights
from espalier.assembly.runs import RunConfig, judge_of
from espalier.config.sections import ModelConfig
from espalier.data.render.renderer import Renderer
from espalier.data.render.templates import apply_template
from espalier.errors import ConfigError
from espalier.models import heads, layout
from espalier.models.export import padding_of
from espalier.models.freeze import FreezeSummary
from espalier.models.load import Loaded, load_model, prepare
from espalier.models.policy import Policy


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
        says="tokens" if head is None else "reads",
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


def padding_notes(model: Model, renderer: Renderer) -> list[str]:
    """What to say of the pad token that a reward model will be exported with, where it is another one."""
    if model.policy.says == "tokens":
        return []
    note = padding_of(model.loaded.model, model.loaded.tokenizer, renderer.stop_ids).note
    return [note] if note else []
