"""A plain Hugging Face directory out of a model in training, whole or not at all."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from espalier.errors import ConfigError, ModelError
from espalier.files import PARTIAL, beside, discard, fsync_tree, make_dir, replace_dir
from espalier.models import heads
from espalier.models.adapters import ADAPTER, adapter_state, has_adapter, merged_state
from espalier.models.load import quiet
from espalier.models.padding import Padding, choose_padding

_RESTORED = re.compile(r"dropout|pdrop|layerdrop|jitter|^use_cache$")


def export(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    source_dtype: torch.dtype,
    stop_ids: Sequence[int] = (),
    adapter_only: bool = False,
    state: Iterable[tuple[str, Tensor]] | None = None,
    write: bool = True,
    shard_size: str = "5GB",
) -> None:
    """Write the model so that transformers alone loads it: weights, config, generation config, tokenizer with template.

    Weights are `state` (by default `merged_state(model)`), cast to `source_dtype`, in safetensors of at most
    `shard_size`. The config is the source's: dropouts and use_cache as they were before loading changed them, no
    attention function, adapter or quantisation of the training. Every id in `stop_ids` ends a generation; without any,
    the source's stay. With `adapter_only`, a peft adapter directory (float32) and the tokenizer instead; a base whose
    embedding grew must be resized to the tokenizer before the adapter is put on it.

    A model with a scalar head becomes its architecture's sequence-classification model: its `logits` for right-padded
    rows, plus `espalier_reward_bias` of config.json, are the calibrated scores. `score.weight` is stored in float32
    whatever the dtype; the pad token of config and tokenizer is one that ends no response (`padding`).

    Everything is written beside `folder`, flushed to disk, and put in place by a rename; an earlier export there is
    replaced. On an OSError what stood there is untouched. The model is not changed. Under FSDP every rank calls this,
    with `write` on one of them.

    Raises ConfigError where `folder` holds something else, no adapter is there to be written alone, or a scalar head
    would be left out of it.
    """
    reward = heads.scalar_head(model) is not None
    if adapter_only and reward:
        raise ConfigError("export adapter leaves out the scalar head and its calibration; use export merged")
    if adapter_only and not has_adapter(model):
        raise ConfigError("export adapter needs LoRA training (lora_rank above 0); use export merged")
    if folder.exists() and any(folder.iterdir()) and not _is_export(folder):
        raise ConfigError(f"{folder} exists and holds no model; expected an empty or new directory. Move it away first")
    if adapter_only:
        weights = adapter_state(model)
    else:
        keep = [re.compile(rf"(^|\.){p}(\.|$)") for p in getattr(model, "_keep_in_fp32_modules_strict", None) or ()]
        weights = {}
        for name, tensor in state if state is not None else merged_state(model):
            if write:  # the other ranks only take part in gathering
                if reward and name == heads.WEIGHT:
                    weights[name] = heads.folded(model, tensor.detach()).cpu().contiguous()
                    continue
                dtype = torch.float32 if any(p.search(name) for p in keep) else source_dtype
                tensor = tensor.detach().to(device="cpu", dtype=dtype if tensor.is_floating_point() else tensor.dtype)
                weights[name] = tensor.contiguous()
    if not write:
        return
    make_dir(folder.parent)
    partial = beside(folder, PARTIAL)
    discard(partial)
    partial.mkdir()
    try:
        if adapter_only:
            _write_adapter(model, weights, partial)
        elif reward:
            padding = padding_of(model, tokenizer, stop_ids)
            _write_reward(model, weights, partial, source_dtype, shard_size, padding)
            tokenizer = padding.tokenizer
        else:
            _write_model(model, weights, partial, source_dtype, shard_size)
            _write_generation(model, partial, stop_ids)
        tokenizer.save_pretrained(str(partial))
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
    """The same of the sequence-classification model, with one row of zeros more where the pad token has none."""
    config = _plain_config(model)
    for inner in (config, config.get_text_config()):
        inner.pad_token_id = padding.id
    if padding.id >= (rows := _rows(model)):
        table = model.get_input_embeddings()
        name = next(path for path, module in model.named_modules() if module is table) + ".weight"
        weights[name] = torch.nn.functional.pad(weights[name], (0, 0, 0, padding.id + 1 - rows))
        config.get_text_config().vocab_size = padding.id + 1
    twin = heads.exported(model, config)
    odd = sorted(n for n, w in weights.items() if n not in twin.state_dict() or twin.state_dict()[n].shape != w.shape)
    if odd:
        raise ModelError(
            f"{type(twin).__name__} does not take {len(odd)} of the weights, such as {odd[0]}; its pad token "
            f"{padding.token} = {padding.id} may need a row that it has not. Give the tokenizer a pad token of its own"
        )
    _write(model, twin, weights, folder, dtype, shard_size)


def _rows(model: Any) -> int:
    rows: int = model.config.get_text_config().vocab_size
    return rows


def padding_of(model: Any, tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int]) -> Padding:
    """The pad token that an export of this reward model would have; its `note` says where that is another one. What
    may end a response are the run's stop tokens and those of the source."""
    said = [getattr(c, "eos_token_id", None) for c in (model.generation_config, model.config.get_text_config())]
    ends = {i for ids in said if ids is not None for i in (ids if isinstance(ids, list) else [ids])}
    return choose_padding(tokenizer, _rows(model), {*stop_ids, *ends})


def _plain_config(model: Any) -> Any:
    config = copy.deepcopy(model.config)
    _restore(config, getattr(model, "espalier_source", {}))
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config._attn_implementation = "eager"
    return config


def _write(
    model: Any, twin: Any, weights: dict[str, Tensor], folder: Path, dtype: torch.dtype, shard_size: str
) -> None:
    twin = twin.to(dtype)
    if (conversions := getattr(model, "_weight_conversions", None)) is not None:
        twin._weight_conversions = conversions  # how the source's files name the weights
    with quiet():
        twin.save_pretrained(str(folder), state_dict=weights, max_shard_size=shard_size)


def _write_generation(model: PreTrainedModel, folder: Path, stop_ids: Sequence[int]) -> None:
    source = model.generation_config or GenerationConfig()  # type: ignore[no-untyped-call]
    settings = copy.deepcopy(source)
    if stop_ids:
        settings.eos_token_id = list(dict.fromkeys(int(i) for i in stop_ids))
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
    for name, value in source.items():
        inner = getattr(config, name, None)
        if isinstance(value, dict) and isinstance(inner, PreTrainedConfig):
            _restore(inner, value)
        elif _RESTORED.search(name):
            setattr(config, name, value)


def _plain_class(model: Any) -> Any:
    """The model's class in transformers; fully_shard puts a subclass of its own in front."""
    return next(c for c in type(model).__mro__ if not c.__name__.startswith("FSDP"))


def _is_export(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))


def read_stop_ids(folder: Path) -> list[int]:
    """The ids that end a generation, from a directory's generation config, else its config; empty where none says."""
    for name in ("generation_config.json", "config.json"):
        file = folder / name
        found = json.loads(file.read_text()).get("eos_token_id") if file.is_file() else None
        if found is not None:
            return list(found) if isinstance(found, list) else [found]
    return []
