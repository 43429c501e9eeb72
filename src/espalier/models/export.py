"""A plain Hugging Face directory out of a model in training, whole or not at all."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from espalier.errors import ConfigError, ModelError
from espalier.files import PARTIAL, beside, discard, fsync_tree, make_dir, replace_dir
from espalier.models import heads
from espalier.models.adapters import ADAPTER, adapter_state, has_adapter, merged_state
from espalier.models.companions import copy_companions, readable_before_5
from espalier.models.dropouts import NOISE_NAMES
from espalier.models.load import quiet, read_differently
from espalier.models.own_files import carrying
from espalier.models.padding import Padding, choose_padding
from espalier.models.readme import Facts, write_readme
from espalier.models.stops import as_ids


def export(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    source_dtype: torch.dtype,
    stop_ids: Sequence[int] = (),
    adapter_only: bool = False,
    source: Path | None = None,
    state: Iterable[tuple[str, Tensor]] | None = None,
    write: bool = True,
    shard_size: str = "5GB",
) -> None:
    """Write the model so that transformers alone loads it: weights, config, generation config, tokenizer with template.

    Weights are `state` (by default `merged_state(model)`), cast to `source_dtype`, in safetensors of at most
    `shard_size`. The config is the source's: dropouts and use_cache as they were before loading changed them, no
    attention function, adapter or quantisation of the training. Every id in `stop_ids` ends a generation, and so do
    those that ended one of the source. With `adapter_only`, a peft adapter directory (float32), the tokenizer and the
    generation config instead; a base whose embedding grew must be resized first (`adapter_tokens.resizing`).

    A model with a scalar head becomes its architecture's sequence-classification model: its `logits` for right-padded
    rows, plus `espalier_reward_bias` of config.json, are the calibrated scores. `score.weight` is stored in float32
    whatever the dtype; the pad token of config and tokenizer is one that ends no response (`padding`).

    `README.md` says how to load, prompt and read the model. Of the folder `source`, if it is given, files that are
    neither weights nor written anew are copied, and the tokenizer keeps its class (`companions`).

    Everything is written beside `folder`, flushed to disk, and put in place by a rename; an earlier export there is
    replaced, and files that a user put beside it stay (`own_files`). On an OSError what stood there is untouched. The
    model is not changed. Under FSDP every rank calls this, with `write` on one of them.

    Raises ConfigError if `folder` holds something else, if there is no adapter to write alone, or if a scalar head
    would be left out of it.
    """
    _refuse(model, folder, adapter_only)
    if adapter_only:
        weights = adapter_state(model)
    else:
        weights = _cast(model, merged_state(model) if state is None else state, source_dtype, write)
    if not write:
        return

    def fill(partial: Path) -> None:
        saved = tokenizer
        facts = _facts(model, stop_ids, adapter_only)
        if adapter_only:
            _write_adapter(model, weights, partial)
            # For whoever merges it: the base knows nothing of what the training stops at.
            _write_generation(model, partial, stop_ids)
        elif heads.scalar_head(model) is not None:
            padding = padding_of(model, tokenizer, stop_ids)
            _write_reward(model, weights, partial, source_dtype, shard_size, padding)
            saved = padding.tokenizer
        else:
            _write_model(model, weights, partial, source_dtype, shard_size)
            _write_generation(model, partial, stop_ids)
        saved.save_pretrained(str(partial))
        readable_before_5(partial, source)
        if source is not None and not adapter_only:
            copy_companions(source, partial, code=bool(getattr(model.config, "auto_map", None)))
        if read_differently(partial, saved):
            facts = replace(facts, tokenizer="PreTrainedTokenizerFast")
        write_readme(partial, facts, saved, earlier=folder)

    _replace(folder, fill)


def _facts(model: Any, stop_ids: Sequence[int], adapter_only: bool) -> Facts:
    """What the README says of a model."""
    head = heads.scalar_head(model)
    if head is not None:
        kind = "reward model" if head.kind == "response" else "process reward model"
        return Facts(heads.class_name(model), kind, stop_ids, head.calibration.bias, head.names)
    name = _plain_class(model).__name__
    if not adapter_only:
        return Facts(name, "language model", stop_ids)
    grown = model.get_input_embeddings().weight.shape[0]
    return Facts(
        name,
        "adapter",
        stop_ids,
        base=model.peft_config[ADAPTER].base_model_name_or_path or "",
        rows=0 if grown == _source_rows(model) else grown,
    )


def _source_rows(model: Any) -> int:
    """Rows of the embedding that the source has."""
    source: dict[str, Any] = getattr(model, "espalier_source", {})
    rows: int = source.get("vocab_size") or source.get("text_config", {}).get("vocab_size") or _rows(model)
    return rows


def _refuse(model: PreTrainedModel, folder: Path, adapter_only: bool) -> None:
    """Raise ConfigError for an export that would lack something, or replace what is not an export."""
    if adapter_only and heads.scalar_head(model) is not None:
        raise ConfigError("export adapter leaves out the scalar head and its calibration; use export merged")
    if adapter_only and not has_adapter(model):
        raise ConfigError("export adapter needs LoRA training (lora_rank above 0); use export merged")
    if folder.exists() and any(folder.iterdir()) and not _is_export(folder):
        raise ConfigError(f"{folder} exists and holds no model; expected an empty or new directory. Move it away first")


def _cast(model: Any, state: Iterable[tuple[str, Tensor]], source_dtype: torch.dtype, write: bool) -> dict[str, Tensor]:
    """The weights on the CPU, each in the dtype it is stored in; without `write`, none.

    A rank that does not write iterates to the end all the same, since it takes part in gathering shards.
    """
    reward = heads.scalar_head(model) is not None
    # transformers loads these modules in float32 whatever the dtype of the model.
    strict = getattr(model, "_keep_in_fp32_modules_strict", None) or ()
    exact = [re.compile(rf"(^|\.){module}(\.|$)") for module in strict]
    weights: dict[str, Tensor] = {}
    for name, tensor in state:
        if not write:
            continue
        if reward and name == heads.WEIGHT:
            weights[name] = heads.folded(model, tensor.detach()).cpu().contiguous()
            continue
        dtype = tensor.dtype
        if tensor.is_floating_point():
            dtype = torch.float32 if any(pattern.search(name) for pattern in exact) else source_dtype
        weights[name] = tensor.detach().to(device="cpu", dtype=dtype).contiguous()
    return weights


def _replace(folder: Path, fill: Callable[[Path], None]) -> None:
    """Put a directory that `fill` wrote in the place of `folder`: all of it, or none if it fails on the way."""
    make_dir(folder.parent)
    partial = beside(folder, PARTIAL)
    discard(partial)
    partial.mkdir()
    try:
        fill(partial)
        carrying(folder)(partial)
        fsync_tree(partial)
        replace_dir(partial, folder)
    finally:
        discard(partial)


def _write_model(model: Any, weights: dict[str, Tensor], folder: Path, dtype: torch.dtype, shard_size: str) -> None:
    """transformers' own writer on an empty twin of the model, which knows nothing of how it was trained."""
    with torch.device("meta"):
        twin = _plain_class(model)(_plain_config(model))
    _write(model, twin, weights, folder, dtype, shard_size)


def _write_reward(
    model: Any, weights: dict[str, Tensor], folder: Path, dtype: torch.dtype, shard_size: str, padding: Padding
) -> None:
    """The same for the sequence-classification model, whose embedding has one more row of zeros if the pad token needs
    it."""
    config = _plain_config(model)
    for inner in (config, config.get_text_config()):
        inner.pad_token_id = padding.id
    rows = _rows(model)
    if padding.id >= rows:
        table = model.get_input_embeddings()
        name = next(path for path, module in model.named_modules() if module is table) + ".weight"
        weights[name] = torch.nn.functional.pad(weights[name], (0, 0, 0, padding.id + 1 - rows))
        config.get_text_config().vocab_size = padding.id + 1
    twin = heads.exported(model, config)
    expected = {name: tensor.shape for name, tensor in twin.state_dict().items()}
    odd = sorted(name for name, tensor in weights.items() if expected.get(name) != tensor.shape)
    if odd:
        raise ModelError(
            f"{type(twin).__name__} does not take {len(odd)} of the weights, such as {odd[0]}; its "
            f"pad token {padding.token} = {padding.id} may need a row that the class does not "
            "have. Give the tokenizer a pad token of its own"
        )
    _write(model, twin, weights, folder, dtype, shard_size)


def _rows(model: Any) -> int:
    """Rows of the embedding, by the config."""
    rows: int = model.config.get_text_config().vocab_size
    return rows


def padding_of(model: Any, tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int]) -> Padding:
    """The pad token that an export of this reward model would have; its `note` is a line for the user if that is not
    the tokenizer's. A response may end in the run's stop tokens and in those of the source.
    """
    ends = set(stop_ids)
    for config in (model.generation_config, model.config.get_text_config()):
        ends.update(as_ids(getattr(config, "eos_token_id", None)))
    return choose_padding(tokenizer, _rows(model), ends)


def _plain_config(model: Any) -> Any:
    """A copy of the model's config without what loading and training changed."""
    config = copy.deepcopy(model.config)
    _restore(config, getattr(model, "espalier_source", {}))
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    # Not the forest's, which only training registers; config.json does not hold this choice.
    config._attn_implementation = "eager"
    return config


def _write(
    model: Any, twin: Any, weights: dict[str, Tensor], folder: Path, dtype: torch.dtype, shard_size: str
) -> None:
    """Config and weights of an empty model, by the names and the dtype of the source's files."""
    twin = twin.to(dtype)
    # How the source's files name the weights: experts, for example, are stored one by one there.
    conversions = getattr(model, "_weight_conversions", None)
    if conversions is not None:
        twin._weight_conversions = conversions
    with quiet():
        twin.save_pretrained(str(folder), state_dict=weights, max_shard_size=shard_size)


def _write_generation(model: PreTrainedModel, folder: Path, stop_ids: Sequence[int]) -> None:
    source = model.generation_config or GenerationConfig()  # type: ignore[no-untyped-call]
    settings = copy.deepcopy(source)
    if stop_ids:
        settings.eos_token_id = list(dict.fromkeys((*map(int, stop_ids), *as_ids(source.eos_token_id))))
    # to_json_file, because save_pretrained refuses settings that published models do carry.
    settings.to_json_file(str(folder / "generation_config.json"), use_diff=True)


def _write_adapter(model: PreTrainedModel, weights: dict[str, Tensor], folder: Path) -> None:
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in weights.items()}
    save_file(tensors, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})
    settings = copy.deepcopy(model.peft_config[ADAPTER])
    settings.inference_mode = True
    settings.save_pretrained(str(folder))


def _restore(config: PreTrainedConfig, source: dict[str, Any]) -> None:
    """Set dropouts and use_cache of a config, and of those nested in it, to the source's values."""
    for name, value in source.items():
        inner = getattr(config, name, None)
        if isinstance(value, dict) and isinstance(inner, PreTrainedConfig):
            _restore(inner, value)
        elif name == "use_cache" or NOISE_NAMES.search(name):
            setattr(config, name, value)


def _plain_class(model: Any) -> Any:
    """The model's class in transformers; fully_shard puts a subclass of its own in front."""
    return next(base for base in type(model).__mro__ if not base.__name__.startswith("FSDP"))


def _is_export(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))
