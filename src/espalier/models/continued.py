"""A LoRA adapter that others trained, put on the model to be trained further; what cannot be is refused beforehand.

docs/adapters.md says which adapters are continued, which must be merged first and which can be neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from espalier.config.sections import ModelConfig
from espalier.errors import ConfigError, ModelError
from espalier.models.adapter_files import PREFIX, Adapter, read_adapter
from espalier.models.adapters import READ_WITHOUT_CALL, adapter_state, inject, summary

# Settings with which an adapter is continued, whatever their values.
_ANY_VALUE = {
    *("peft_type", "task_type", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping"),
    *("peft_version", "runtime_config", "megatron_core", "qalora_group_size"),
    *("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out"),
    *("trainable_token_indices", "init_lora_weights"),
    # It says how weights that are saved whole are tied, and such adapters are merged first.
    "ensure_weight_tying",
}
# Kinds with `merge_and_unload` whose layers decide at run time what they add.
_RUN_TIME = ("XLORA", "POLY", "SHADOW")
# Ways to start an adapter that leave the base as it is; others change its weights, too.
_PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")


def check_continued(model: PreTrainedModel, adapter: Adapter, base: str) -> None:
    """Raise ModelError, with the way out, for an adapter that cannot be continued on `model`, read from `base`."""
    refuse_unmergeable(adapter)
    refuse_lora_bias(model, adapter)
    reason = _unfit(adapter) or _unfit_modules(model, adapter)
    if reason:
        raise ModelError(
            f"adapter {adapter.path} {reason}, which cannot be continued. Merge it into its base first: "
            f"{adapter.merging(base)}, then train DIR (with --lora-rank for a new adapter)"
        )


def refuse_unmergeable(adapter: Adapter) -> None:
    """Raise ModelError for an adapter that is more than a change of weights, by its settings, or that peft lacks."""
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    known = {str(kind.value): tuner for kind, tuner in PEFT_TYPE_TO_TUNER_MAPPING.items()}
    settings = adapter.settings
    if adapter.kind not in known:
        raise ModelError(
            f"adapter {adapter.path} is of the type {adapter.kind[:40]!r}, which the installed peft does not know. "
            "Install the peft that wrote it, or merge it into its base there"
        )
    reason = ""
    if not hasattr(known[adapter.kind], "merge_and_unload") or adapter.kind in _RUN_TIME:
        reason = f"it is of the type {adapter.kind}, which changes the prompt or the forward pass and not the weights"
    elif settings.get("alora_invocation_tokens"):
        reason = "it is an activated LoRA (alora_invocation_tokens), which acts on part of a sequence only"
    elif settings.get("megatron_config"):
        reason = "megatron_config names a module to import"
    elif "niter" in str(settings.get("init_lora_weights")):
        start = settings["init_lora_weights"]
        reason = f"it was started with {start}, a random decomposition of the base that nobody can repeat"
    if reason:
        raise _neither(adapter, reason)


def refuse_lora_bias(model: PreTrainedModel, adapter: Adapter) -> None:
    """Raise ModelError for biases of LoRA matrices on layers without a bias, which have no place for them."""
    if not adapter.settings.get("lora_bias"):
        return
    for name in sorted(adapter.modules()):
        module = dict(model.named_modules()).get(name)
        if module is not None and getattr(module, "bias", None) is None:
            raise _neither(adapter, f"lora_bias needs a bias in {name}, and the base has none there")


def _neither(adapter: Adapter, reason: str) -> ModelError:
    return ModelError(
        f"adapter {adapter.path} can be neither merged nor continued: {reason}. Use it with peft as it is, or train a "
        "new adapter on the base (--lora-rank)"
    )


def _unfit(adapter: Adapter) -> str:
    """What in an adapter's settings cannot be continued; empty if everything can."""
    settings = adapter.settings
    if adapter.kind != "LORA":
        return f"is of the type {adapter.kind[:40]}"
    if settings.get("init_lora_weights", True) not in _PLAIN_STARTS:
        return f"was started with {settings['init_lora_weights']}, which changes the base's weights"
    for name, value in settings.items():
        # Off, or absent.
        if name in _ANY_VALUE or value in (None, False, [], {}, "", "none"):
            continue
        return f"uses {name}"
    return ""


def _unfit_modules(model: Any, adapter: Adapter) -> str:
    """What an adapter adapts that cannot be continued; empty if everything can."""
    named = {id(module): name for name, module in model.named_modules()}
    head = model.get_output_embeddings()
    table = named[id(model.get_input_embeddings())]
    token_head = named.get(id(head), "")
    modules = adapter.modules()
    for module in sorted(modules & {table, token_head}):
        whole = adapter.shapes.get(f"{PREFIX}{module}.weight")
        if whole is not None:
            return f"holds {module} whole, with {whole[0]} rows"
        return f"adapts {module}"
    kind = model.config.model_type
    for module in sorted(modules):
        if module.rpartition(".")[2] in READ_WITHOUT_CALL.get(kind, ()):
            return f"adapts {module}, whose weight {kind} reads without calling the layer"
    # Of a model with a scalar head, which has no token head.
    gone = any(name.removeprefix(PREFIX).startswith("lm_head.") for name in adapter.shapes)
    if gone and head is None:
        return "adapts lm_head"
    return ""


def continue_adapter(model: PreTrainedModel, config: ModelConfig, new_tokens: Sequence[int] = ()) -> list[str]:
    """Put the adapter of `config.adapter` on the model, its weights included. Returns lines for the user.

    Raises ModelError for an adapter that cannot be continued or does not fit the model, ConfigError for new tokens
    whose rows it does not train.
    """
    from safetensors.torch import load_file

    adapter = read_adapter(config.adapter)
    check_continued(model, adapter, config.model)
    settings = _settings(adapter, config, new_tokens)
    inject(model, settings, seed=0)
    _refuse_other_layers(model, adapter, config)
    stored = load_file(str(adapter.folder / "adapter_model.safetensors"))
    live = adapter_state(model)
    named = f" (adapter_config.json names {adapter.named_base})" if adapter.named_base else ""
    if set(stored) != set(live):
        odd = sorted(set(stored) ^ set(live))
        raise ModelError(
            f"adapter {config.adapter} does not fit {config.model}: {len(odd)} tensors are in one "
            f"of the two only, such as {odd[0]}. Pass the model it was trained on{named}"
        )
    for name, tensor in stored.items():
        if tensor.shape != live[name].shape:
            raise ModelError(
                f"adapter {config.adapter}: {name} is {tuple(tensor.shape)}, "
                f"the model takes {tuple(live[name].shape)}. "
                f"Pass the model it was trained on{named}"
            )
        if not tensor.isfinite().all():
            raise ModelError(f"adapter {config.adapter}: {name} is not finite. Copy the adapter again")
        # Into the model itself: a state dict hands out the parameters' own storage.
        live[name].copy_(tensor)
    return [f"continues adapter {config.adapter}", summary(model, settings)]


def _settings(adapter: Adapter, config: ModelConfig, new_tokens: Sequence[int]) -> Any:
    """peft's settings of an adapter, as training needs them. Raises ModelError if peft does not take them and
    ConfigError for new tokens that it does not train."""
    settings = peft_settings(adapter)
    missing = set(new_tokens) - adapter.trained_rows
    if missing:
        raise ConfigError(
            f"add_tokens are tokens {sorted(missing)}, which adapter {config.adapter} does not "
            f"train. Merge it into its base ({adapter.merging(config.model)}), then start a new adapter"
        )
    # What it was trained on may be named by another machine's path. Nothing is known of the model's revision.
    folder = Path(config.model).expanduser()
    settings.base_model_name_or_path = str(folder) if folder.is_dir() else config.model
    settings.revision = None
    # Exports are written for inference, without gradients.
    settings.inference_mode = False
    # What it starts from is read from its file, and its own start may take long.
    settings.init_lora_weights = True
    if not config.dropout:
        settings.lora_dropout = 0.0
    return settings


def peft_settings(adapter: Adapter) -> Any:
    """peft's own settings object of an adapter. Raises ModelError if peft does not take them."""
    import warnings

    from peft import PeftConfig

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return PeftConfig.from_pretrained(str(adapter.folder))
    # A settings class may raise anything on values it does not expect.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise ModelError(
            f"adapter {adapter.path} cannot be read by the installed peft (peft_type {adapter.kind[:40]}): {reason}. "
            "Install the peft that wrote it, or merge it into its base there"
        ) from error


def _refuse_other_layers(model: PreTrainedModel, adapter: Adapter, config: ModelConfig) -> None:
    """Raise ModelError for LoRA on layers that are not linear, whose merge is another one."""
    from peft.tuners.lora import Linear, LoraLayer

    for name, module in model.named_modules():
        quantised = type(module).__name__ == "Linear4bit"
        if isinstance(module, LoraLayer) and not isinstance(module, Linear) and not quantised:
            raise ModelError(
                f"adapter {adapter.path} adapts {name}, a {type(module.get_base_layer()).__name__}, which cannot be "
                f"continued. Merge it into its base first: {adapter.merging(config.model)}"
            )
