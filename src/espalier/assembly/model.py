"""From a config to a model ready to be trained: loaded, adapted, frozen, laid out, with or without a scalar head."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from espalier.assembly.runs import RunConfig
from espalier.config.critic_section import SHARED
from espalier.config.sections import ModelConfig
from espalier.data.files.content import content_hash
from espalier.data.render.renderer import Renderer
from espalier.data.render.templates import apply_template, complete, markup_of
from espalier.errors import ConfigError, ModelError
from espalier.models import heads, layout
from espalier.models.adapter_files import is_adapter, read_adapter
from espalier.models.continued import refuse_unmergeable
from espalier.models.export import padding_of
from espalier.models.freeze import FreezeSummary
from espalier.models.load import Loaded, check_causal, load_model
from espalier.models.merge import base_of, load_merged
from espalier.models.policy import Policy
from espalier.models.prepare import prepare
from espalier.types import Says


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


def build_run_model(config: RunConfig, device: torch.device) -> Model:
    """The model that a run trains or judges. Raises ModelError and ConfigError."""
    traits = config.algorithm.traits
    shared = "values" in traits.needs and config.critic.critic == SHARED
    return build_model(
        config.model,
        device,
        seed=config.loop.seed,
        neftune_alpha=traits.noise,
        head=head_of(config),
        value_head=shared,
    )


def build_model(
    config: ModelConfig,
    device: torch.device,
    *,
    seed: int = 0,
    neftune_alpha: float = 0.0,
    head: HeadSpec | None = None,
    merged: bool = False,
    value_head: bool = False,
) -> Model:
    """Load, adapt, freeze; choose the layout. With `merged`, the config's adapter is merged into the model first. With
    `head`, the model is read by a scalar head: the one it comes with, or a new one; with `value_head`, by a new one
    beside its token head. Raises ModelError and ConfigError.
    """
    if merged:
        loaded = load_merged(config, device=device, head=head is not None)
        config = replace(config, adapter="")
    else:
        loaded = load_model(config, device=device, head=head is not None)
    if head is not None:
        put_head(loaded, head, seed)
    markup = markup_of(loaded.tokenizer, config.add_tokens, config.template)
    frozen = prepare(loaded, config, seed=seed, markup=markup)
    apply_template(loaded.tokenizer, config.template)
    completed = complete(loaded.tokenizer)
    chosen, reason = layout.choose(loaded.model, config.layout)
    if config.router_loss and not getattr(loaded.model.config.get_text_config(), "num_experts_per_tok", 0):
        raise ConfigError("router_loss is given, but the model has no experts; drop it", key="router_loss")
    if config.router_loss and chosen == "padded":
        raise ConfigError(
            f"router_loss needs a packed layout, but layout is padded: {reason}; drop it", key="router_loss"
        )
    policy = Policy(
        loaded.model,
        chosen,
        neftune_alpha=neftune_alpha,
        dropout=config.dropout,
        router_loss=config.router_loss > 0,
        says="tokens" if head is None else head.says,
        value_head=value_head,
    )
    notes = [*loaded.notes, f"layout {chosen}: {reason}"]
    if completed:
        notes.append(completed)
    if config.router_loss:
        notes.append(
            "router loss on: it is not linear in the tokens, so it alone depends on the split into micro-batches"
        )
    return Model(loaded, policy, frozen, compute_dtype(config.dtype, device), notes)


def check_reference_model(config: RunConfig) -> None:
    """Whether another model as the reference can be one, by its config alone, so that it is known before data is read.

    Raises ConfigError if it is missing or not a causal language model, such as a reward model.
    """
    if not config.reference.reference_model:
        return
    path, adapter = reference_parts(config)
    try:
        if adapter:
            refuse_unmergeable(read_adapter(adapter))
        check_causal(path, trust_remote_code=config.model.trust_remote_code)
    except ModelError as error:
        raise ConfigError(f"reference_model: {error}", key="reference_model") from error


def reference_parts(config: RunConfig) -> tuple[str, str]:
    """The reference model and the adapter that is merged into it; `reference_model` may be either. An adapter's base is
    the one that it names, if that is here, else the run's own model. Raises ConfigError for an adapter that is broken.
    """
    path = config.reference.reference_model
    folder = Path(path).expanduser()
    if not is_adapter(folder):
        return path, ""
    try:
        return base_of(path, config.model.model), path
    except ModelError as error:
        raise ConfigError(f"reference_model: {error}", key="reference_model") from error


@dataclass(frozen=True, slots=True)
class HeadSpec:
    """The scalar head that a run asks for: names of its dimensions (none for a single, nameless one) and where it is
    read. trained: a model without a head gets a new one; otherwise it is refused. any: the head that the model has is
    taken, whatever its dimensions and kind. says: what it is read for; a head for values says 0 in a model without a
    head, and is the head of one that has it, its dimensions weighted by `weights`."""

    names: tuple[str, ...]
    kind: heads.Kind
    trained: bool = True
    any: bool = False
    says: Says = "reads"
    weights: tuple[float, ...] = (1.0,)


def head_of(config: RunConfig) -> HeadSpec | None:
    """The scalar head of a run; None if its algorithm reads none."""
    traits = config.algorithm.traits
    if traits.says != "reads":
        return None
    kind: heads.Kind = "steps" if traits.consumes == "steps" else "response"
    return HeadSpec(tuple(traits.dimensions), kind, trained=not config.judge.eval_only)


def put_head(loaded: Loaded, head: HeadSpec, seed: int) -> None:
    """Attach the head, or keep the one the model has. Raises ConfigError if the model has another one."""
    size = max(1, len(head.names))
    present = heads.scalar_head(loaded.model)
    if head.says == "values":
        weight, bias = heads.as_value(loaded.model, head.weights) if present else (None, 0.0)
        heads.attach_value(loaded.model, weight, bias)
        return
    if present is None:
        if not head.trained:
            command = "prm" if head.kind == "steps" else "reward"
            raise ConfigError(
                f"{loaded.folder} has no scalar head, and the scores of an untrained one mean nothing; expected a "
                f"model that `espalier {command}` trained"
            )
        heads.attach(loaded.model, size, seed=seed, names=head.names, kind=head.kind)
        return
    if head.any:
        return
    other_names = bool(head.names) and present.names != head.names
    if present.dimensions != size or present.kind != head.kind or other_names:
        raise ConfigError(
            f"the model has a head of {present.dimensions} dimensions ({', '.join(present.names) or 'nameless'}, "
            f"{present.kind}); this run asks for {size} ({', '.join(head.names) or 'nameless'}, {head.kind}). Give its "
            "dimensions, or start from a model without a head"
        )
    loaded.notes.append("continues the scalar head that the model has")


def padding_notes(model: Model, renderer: Renderer) -> list[str]:
    """What to say of the pad token that a reward model will be exported with, if it is a new one."""
    if model.policy.says == "tokens":
        return []
    note = padding_of(model.loaded.model, model.loaded.tokenizer, renderer.ends).note
    return [note] if note else []


def weights_of(loaded: Loaded, adapter: str, cache: Path) -> dict[str, str]:
    """Content hashes of what a model was read from: its weights and configs, and those of its adapter."""
    folders = [loaded.folder]
    if adapter:
        folders.append(Path(adapter).expanduser())
    hashes = {}
    for folder in folders:
        for path in sorted((*folder.glob("*.safetensors"), *folder.glob("*config.json"))):
            name = f"{path.parent.name}/{path.name}"
            # Both folders may have the same name.
            if name in hashes:
                name = f"adapter {name}"
            hashes[name] = content_hash(path, cache)[:16]
    return hashes
