"""LoRA through peft: added, continued, read back as merged weights. The model stays the transformers model it was.

`add_adapter` injects the LoRA layers in place, so `model.get_decoder()`, the head, attention functions and sharding
plans work as before. Add it before FSDP shards anything.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from espalier.config.sections import ModelConfig
from espalier.errors import ConfigError
from espalier.models.adapter_files import token_rows

ADAPTER = "default"
# The scalar head's name in the model, see `models.heads`.
SCORE = "score"
# Mixers of these model types read the weights of some layers without calling them: LoRA on these
# layers would do nothing.
READ_WITHOUT_CALL = {
    "mamba": ("x_proj", "dt_proj", "out_proj"),
    "falcon_mamba": ("x_proj", "dt_proj", "out_proj"),
    "mamba2": ("out_proj",),
    "falcon_h1": ("out_proj",),
    "bamba": ("out_proj",),
    "granitemoehybrid": ("out_proj",),
    "nemotron_h": ("out_proj",),
    "jamba": ("dt_proj",),
}
# peft takes these names for those of experts in mixture-of-experts models, whose stacked weights it
# adapts in another way.
_EXPERT_NAMES = ("gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")
# What is in the names of an adapter's own tensors.
_PARTS = ("lora_A.", "lora_B.", "lora_embedding_A.", "lora_embedding_B.", "trainable_tokens_", "lora_magnitude_")


def has_adapter(model: nn.Module) -> bool:
    """Whether `add_adapter` put LoRA on the model."""
    return ADAPTER in getattr(model, "peft_config", {})


def quantization(config: ModelConfig, device: torch.device) -> Any:
    """The transformers quantization config of QLoRA (4-bit NF4, doubly quantised, bfloat16 arithmetic), None without.

    Raises ConfigError if QLoRA is asked for without CUDA or the extra.
    """
    if not config.qlora:
        return None
    if device.type != "cuda":
        raise ConfigError(
            f"qlora needs CUDA, got device {device}. Train with lora_rank alone; on a CPU the base stays in float32"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError("qlora needs bitsandbytes. Install it with: pip install 'espalier[qlora]'")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def add_adapter(
    model: PreTrainedModel, config: ModelConfig, new_tokens: Sequence[int] = (), *, seed: int = 0
) -> list[str]:
    """Put a new LoRA adapter on the model, or `config.adapter`'s, in place; everything else stops training.

    A linear layer computes x W' + s x A' B' with A [rank, in], B [out, rank] and s = alpha / rank, or
    alpha / sqrt(rank) with rslora; B starts at 0, so the model is unchanged at first; A is a function of
    `seed`, the same on every rank. Adapter weights are float32. The rows `new_tokens` of the input embedding and the
    head (one shared set if they are tied) are trained beside it. Returns lines for the user; does nothing if no LoRA is
    asked for.

    Raises ConfigError for a second adapter and for targets that cannot be adapted; ModelError for an adapter that
    does not fit the model.
    """
    if not config.lora_rank and not config.adapter:
        return []
    if has_adapter(model):
        raise ConfigError("the model has a LoRA adapter already")
    if config.adapter:
        # It puts LoRA on with what is below.
        from espalier.models.continued import continue_adapter

        return continue_adapter(model, config, new_tokens)
    from peft import LoraConfig

    targets, notes = _targets(model, config)
    settings = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,  # type: ignore[arg-type] # any number works
        target_modules=targets,
        lora_dropout=config.lora_dropout,
        use_rslora=config.rslora,
        bias="none",
        # GPT-2 stores its weights [in, out].
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        task_type="CAUSAL_LM",
        base_model_name_or_path=getattr(model.config, "_name_or_path", None) or None,
        trainable_token_indices=_token_indices(model, new_tokens),
    )
    inject(model, settings, seed)
    return [*notes, summary(model, settings)]


def merged_state(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Every weight of the model by its name without adapters: W + s B A in float32 (see `_merged`), new tokens' rows in
    place.

    The live model is not changed. A tied weight comes once, by its source's name. Sharded tensors are gathered, so
    under FSDP every rank iterates to the end. Tensors may alias the model's: copy what outlives the next update.
    """
    from peft.tuners.lora import LoraLayer

    # By transformers' own names, whatever wraps the tensors by now.
    tied: dict[str, str] = {}
    if model.config.get_text_config().tie_word_embeddings:
        tied = model.all_tied_weights_keys
    modules = dict(model.named_modules())
    for name, tensor in _stored(model):
        clean = _clean(name)
        if clean in tied:
            continue
        whole = _dequantized(_full(tensor.detach()), tensor)
        owner = modules.get(name.rpartition(".base_layer.")[0])
        if isinstance(owner, LoraLayer) and name.endswith(".base_layer.weight"):
            whole = _merged(owner, whole)
        elif name.endswith(".token_adapter.base_layer.weight") and owner is not None:
            # What peft calls a delta holds the rows themselves: they replace those of the base.
            rows = torch.tensor(owner.token_indices[ADAPTER], device=whole.device)
            trained = _full(owner.trainable_tokens_delta[ADAPTER].detach())
            whole = whole.index_copy(0, rows, trained.to(whole.dtype))
        yield clean, whole


def plain_names(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shape of every weight by its name without adapters, a tied one under each of its names."""
    # A quantised weight is packed into bytes; its state knows the shape of the numbers.
    return {_clean(name): tuple(getattr(tensor, "quant_state", tensor).shape) for name, tensor in _stored(model)}


def _stored(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and the buffers that are saved, without those of adapters."""
    tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    # Buffers that are computed when a model is built, such as RoPE frequencies, are not in it.
    saved = model.state_dict(keep_vars=True)
    buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)}
    tensors.update({name: tensor for name, tensor in saved.items() if name in buffers})
    for name, tensor in tensors.items():
        if not _is_adapters(name) and ".original_module." not in name:
            yield name, tensor


def _is_adapters(name: str) -> bool:
    """Whether a tensor of this name belongs to an adapter."""
    return any(part in name for part in _PARTS)


def adapter_state(model: PreTrainedModel) -> dict[str, Tensor]:
    """The adapter's tensors by the names of peft's own files, sharded ones gathered."""
    from peft import get_peft_model_state_dict

    live = {name: _full(tensor) for name, tensor in model.state_dict().items() if _is_adapters(name)}
    state = get_peft_model_state_dict(model, state_dict=live, adapter_name=ADAPTER, save_embedding_layers=False)
    return {f"base_model.model.{name}": tensor for name, tensor in state.items()}


def _targets(model: Any, config: ModelConfig) -> tuple[list[str], list[str]]:
    """Module names for peft, and lines on what is left out.

    Raises ConfigError for a target that is the head, that LoRA cannot adapt, or that does not exist.
    """
    head = model.get_output_embeddings()
    linear: list[str] = []
    heads: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            linear.append(name)
            if module is head or _is_score(model, name):
                heads.append(name)
    leaves = {_leaf(name) for name in linear if name not in heads}
    stacked = [name for name, parameter in model.named_parameters() if parameter.dim() == 3 and "expert" in name]
    unfit = _unfit(model.config.model_type, stacked=bool(stacked))
    for target in config.lora_targets:
        if any(_names(target, name) for name in heads):
            raise ConfigError(
                f"lora_targets got {target!r}, the head, whose weight is read without calling it. Leave it out"
            )
        if _leaf(target) in unfit:
            raise ConfigError(f"lora_targets got {target!r}, but {unfit[_leaf(target)]}. Leave it out")
        if not any(_names(target, name) for name in linear):
            near = get_close_matches(target, sorted(leaves), n=3, cutoff=0.3) or sorted(leaves)
            raise ConfigError(f"lora_targets got {target!r}, which names no linear layer; there are {', '.join(near)}")
    if config.lora_targets:
        return sorted(config.lora_targets), []
    notes = [f"LoRA leaves {leaf} out: {unfit[leaf]}" for leaf in sorted(leaves & set(unfit))]
    if stacked:
        notes.append(f"LoRA leaves {len(stacked)} stacked expert weights out (such as {stacked[0]}); they stay frozen")
    leaves -= set(unfit)
    # A short name that a head shares with other layers would adapt the head too: then peft gets
    # names in full.
    if any(_leaf(name) in leaves for name in heads):
        return sorted(name for name in linear if name not in heads and _leaf(name) in leaves), notes
    return sorted(leaves), notes


def _unfit(kind: str, *, stacked: bool) -> dict[str, str]:
    """Why LoRA does nothing on the layers of these names, in a model of type `kind`."""
    unused = f"{kind} reads its weight without calling the layer"
    reasons = dict.fromkeys(READ_WITHOUT_CALL.get(kind, ()), unused)
    if stacked:
        reasons.update(dict.fromkeys(_EXPERT_NAMES, f"the experts of {kind} are stacked weights"))
    return reasons


def _is_score(model: nn.Module, name: str) -> bool:
    """Whether a module or parameter is the scalar head, which is not adapted: it is trained whole beside an adapter."""
    return name.partition(".")[0] == SCORE and hasattr(model, "espalier_head")


def _leaf(name: str) -> str:
    """The last part of a dotted name."""
    return name.rpartition(".")[2]


def _names(target: str, module: str) -> bool:
    """Whether a LoRA target names a module: in full, or by the last parts of its name."""
    return module == target or module.endswith("." + target)


def _token_indices(model: Any, new_tokens: Sequence[int]) -> dict[str, list[int]] | None:
    """The rows to train, by the module that holds them; a head that is tied to the embedding shares its rows."""
    if not new_tokens:
        return None
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    paths = {id(module): name for name, module in model.named_modules()}
    indices = {paths[id(table)]: sorted(set(new_tokens))}
    if head is not None and head.weight is not table.weight:
        indices[paths[id(head)]] = sorted(set(new_tokens))
    if head is not None and getattr(head, "bias", None) is not None:
        # peft computes such a head without its bias.
        raise ConfigError(
            f"add_tokens under LoRA cannot train the head of {type(model).__name__}, which has a "
            "bias. Train the full weights (lora_rank 0), or do without add_tokens"
        )
    return indices


def inject(model: PreTrainedModel, settings: Any, seed: int) -> None:
    """Put an adapter on the model. Only its weights and the scalar head are trained from then on."""
    from peft import inject_adapter_in_model

    model.requires_grad_(False)
    try:
        # peft draws on the CPU, then moves: the same A on every device and rank.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            inject_adapter_in_model(settings, model, adapter_name=ADAPTER)
    except ValueError as error:
        raise ConfigError(f"LoRA cannot be put on {type(model).__name__}: {str(error).splitlines()[0]}") from error
    for name, parameter in model.named_parameters():
        adapters = _is_adapters(name)
        parameter.requires_grad_(adapters or _is_score(model, name))
        if adapters:
            parameter.data = parameter.data.float()


def summary(model: nn.Module, settings: Any) -> str:
    """A line for the user on what is trained."""
    from peft.tuners.lora import LoraLayer

    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    ranks = sorted({layer.r[ADAPTER] for layer in layers.values()})
    scales = sorted({layer.scaling[ADAPTER] for layer in layers.values()})
    targets = ", ".join(sorted({_leaf(name) for name in layers}))
    kind = "DoRA" if settings.use_dora else "LoRA"
    line = f"{kind} rank {_span(ranks)}, scale {_span(scales)}, {trained:,} parameters on {targets}"
    rows = len(token_rows(settings.trainable_token_indices))
    if rows:
        line += f"; {rows} token rows"
    return line


def _span(values: list[float]) -> str:
    """One number, or the smallest and the largest."""
    if len(values) == 1:
        return f"{values[0]:g}"
    return f"{values[0]:g} to {values[-1]:g}"


def _merged(layer: Any, weight: Tensor) -> Tensor:
    """W + s B A of a LoRA layer in float32; with DoRA (arXiv:2402.09353) its rows scaled to the trained magnitudes:
    m_o V_o / |V_o| with V = W + s B A and o an output."""
    whole = weight + _delta(layer).to(weight.device)
    magnitudes = getattr(layer, "lora_magnitude_vector", {})
    if ADAPTER not in magnitudes:
        return whole
    magnitude = _full(magnitudes[ADAPTER].weight.detach()).float().to(whole.device)
    # [out, in], whatever the layer's own orientation.
    rows = whole.T if layer.fan_in_fan_out else whole
    scaled: Tensor = rows * (magnitude / rows.norm(dim=1))[:, None]
    return scaled.T if layer.fan_in_fan_out else scaled


def _delta(layer: Any) -> Tensor:
    """s B A of a LoRA layer in float32, in the orientation of its weight."""
    down = _full(layer.lora_A[ADAPTER].weight.detach()).float()
    up = _full(layer.lora_B[ADAPTER].weight.detach()).float()
    product: Tensor = up @ down
    if layer.fan_in_fan_out:
        product = product.T
    scale: float = layer.scaling[ADAPTER]
    return product * scale


def _clean(name: str) -> str:
    """A parameter's name without the wrappers of torch.compile and peft."""
    return name.replace("_orig_mod.", "").replace(".token_adapter.base_layer.", ".").replace(".base_layer.", ".")


def _full(tensor: Tensor) -> Tensor:
    """A DTensor gathered from all ranks; other tensors as they are."""
    whole: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole


def _dequantized(tensor: Tensor, original: Tensor) -> Tensor:
    """The numbers of a weight that bitsandbytes packed into 4 bits, in float32; other tensors as they are."""
    state = getattr(original, "quant_state", None)
    if state is None:
        return tensor
    from bitsandbytes.functional import dequantize_4bit

    whole: Tensor = dequantize_4bit(original.data, state)
    return whole.float()
