"""An adapter of any kind put into the weights of its base by peft, compared with the two as peft runs them.

    loaded = load_merged(ModelConfig(model="BASE", adapter="A"))     a plain model, in float32

What peft cannot merge changes the prompt or the forward pass, not the weights, and is refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from espalier.config.sections import ModelConfig
from espalier.errors import ModelError
from espalier.models.adapter_files import PREFIX, Adapter, read_adapter
from espalier.models.adapter_tokens import adopt, grow, refuse_unnamed_rows, token_rows_of
from espalier.models.adapters import ADAPTER
from espalier.models.continued import peft_settings, refuse_lora_bias, refuse_unmergeable
from espalier.models.load import Loaded, load_model, tokenizer_beside
from espalier.models.stops import as_ids, known_stops, stops_of

TOLERANCE = 1e-3
"""Nats that a log-probability may change by when float32 weights are merged."""


def base_of(path: str, own: str = "") -> str:
    """The base of an adapter: the folder that its adapter_config.json names if it is here, else `own`, else the name.

    Raises ModelError if there is none of them.
    """
    named = read_adapter(path).named_base
    if named and Path(named).expanduser().is_dir():
        return named
    if own or named:
        return own or named
    raise ModelError(f"adapter {path} names no base model in adapter_config.json. Give the base as --model")


def load_merged(config: ModelConfig, *, device: str | torch.device = "cpu", head: bool = False) -> Loaded:
    """`config.model` with `config.adapter` merged into it, as `load_model` reads a model, with the tokenizer and the
    chat template that the adapter was trained with. With `head`, a model that scores: `merge_scored`.

    Raises ModelError for an adapter that does not fit or cannot be merged, and if the merged model computes something
    else than base and adapter do together.
    """
    adapter = read_adapter(config.adapter)
    refuse_unmergeable(adapter)
    if head:
        from espalier.models.merge_scored import load_scored

        return load_scored(config, adapter, device)
    loaded = load_model(replace(config, adapter="", export="merged", lora_dropout=0.0, qlora=False), device=device)
    _refuse_replication(loaded.model, adapter)
    refuse_lora_bias(loaded.model, adapter)
    theirs = tokenizer_beside(adapter.folder, trust_remote_code=config.trust_remote_code)
    loaded.notes += adopt(loaded.model, loaded.tokenizer, adapter, theirs)
    _resize(loaded, adapter)
    if theirs is not None:
        refuse_unnamed_rows(loaded.tokenizer, adapter)
    loaded.adapter = adapter.folder
    _add_stops(loaded, theirs)
    apart = _merge(loaded, adapter, config.model)
    loaded.notes.append(
        f"merged adapter {adapter.path} ({adapter.kind}) into {config.model}: log-probabilities within "
        f"{apart:.1e} nats of base and adapter"
    )
    return loaded


def _add_stops(loaded: Loaded, theirs: PreTrainedTokenizerBase | None) -> None:
    """Add what the adapter was trained to stop on to the model's generation config: the stop tokens in its folder, or
    its tokenizer's end of text if the folder has none."""
    model: Any = loaded.model
    before = tuple(as_ids(getattr(model.generation_config, "eos_token_id", None)))
    stops = stops_of(loaded.folder, loaded.adapter)
    if theirs is not None and loaded.adapter is not None and not known_stops(loaded.adapter):
        stops += tuple(as_ids(theirs.eos_token_id))
    known = set(loaded.tokenizer.get_vocab().values())
    ids = list(dict.fromkeys((*before, *(i for i in stops if i in known))))
    if ids and ids != list(before):
        if model.generation_config is None:
            model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
        model.generation_config.eos_token_id = ids
        loaded.notes.append(f"generation stops at {', '.join(map(str, ids))}, those of the adapter included")


def _refuse_replication(model: Any, adapter: Adapter) -> None:
    """Raise ModelError for a `layer_replication` that is not a list of ranges of the base's layers."""
    ranges = adapter.settings.get("layer_replication")
    if not ranges:
        return
    depth = model.config.get_text_config().num_hidden_layers
    good = isinstance(ranges, list) and len(ranges) <= depth
    for pair in ranges if good else ():
        whole = isinstance(pair, list) and len(pair) == 2 and all(type(end) is int for end in pair)
        good = good and whole and 0 <= pair[0] < pair[1] <= depth
    if not good:
        raise ModelError(
            f"{adapter.folder / 'adapter_config.json'}: layer_replication is {str(ranges)[:60]}, expected ranges of "
            f"the base's {depth} layers. Pass the model it was trained on"
        )


def _resize(loaded: Loaded, adapter: Adapter) -> None:
    """Give the model as many token rows as the adapter was trained with. In place."""
    model: Any = loaded.model
    present = token_rows_of(model)
    whole = _whole_rows(model, adapter)
    if len(set(whole.values())) > 1:
        raise ModelError(f"adapter {adapter.path} holds embedding and head of different sizes: {whole}. Copy it again")
    rows = max(present, max(adapter.trained_rows, default=0) + 1)
    if whole:
        rows = next(iter(whole.values()))
    used = max(loaded.tokenizer.get_vocab().values()) + 1
    if rows == present:
        return
    if rows < used:
        raise ModelError(
            f"adapter {adapter.path} has {rows} token rows, and the tokenizer {used} tokens. Pass the model it was "
            "trained on"
        )
    if rows > present:
        grow(model, rows)
    else:
        model.resize_token_embeddings(rows)
    loaded.notes.append(f"embedding and head resized from {present} to {rows} rows, as the adapter was trained")


def _whole_rows(model: Any, adapter: Adapter) -> dict[str, int]:
    """Token rows by the names of an adapter's tensors that have one for each token."""
    paths = {id(module): name for name, module in model.named_modules()}
    table = paths[id(model.get_input_embeddings())]
    head = paths.get(id(model.get_output_embeddings()), table)
    rows = {}
    for name, shape in adapter.shapes.items():
        plain = name.removeprefix(PREFIX)
        module = next((path for path in (table, head) if plain.startswith(path + ".")), None)
        if module is None or ".token_adapter." in plain or "trainable_tokens" in plain:
            continue
        rest = plain.removeprefix(module + ".")
        if rest in ("weight", "base_layer.weight") or (module == head != table and rest == "lora_B.weight"):
            rows[name] = shape[0]
        elif rest == "lora_embedding_A":
            rows[name] = shape[1]
    return rows


def _merge(loaded: Loaded, adapter: Adapter, base: str) -> float:
    """Put the adapter into `loaded.model`; returns the largest change of a log-probability, in nats."""
    model: Any = loaded.model
    model.eval()
    config = model.config.get_text_config()
    tied = bool(config.tie_word_embeddings)
    ids = _probe(token_rows_of(model), sorted(adapter.trained_rows)).to(model.device)
    with _of_peft(adapter, base):
        wrapped = on_base(model, adapter)
    with _of_peft(adapter, base):
        before = _logprobs(wrapped, ids)
        if tied:
            _untie_adapted(model)
        if adapter.settings.get("layer_replication"):
            _unshare_layers(model)
        merged = wrapped.merge_and_unload(safe_merge=True)
    table, head = merged.get_input_embeddings(), merged.get_output_embeddings()
    if tied and head is not None and head.weight is not table.weight:
        if torch.equal(head.weight, table.weight):
            head.weight = table.weight
            merged.config.tie_word_embeddings = config.tie_word_embeddings = True
        else:
            merged.config.tie_word_embeddings = config.tie_word_embeddings = False
            loaded.notes.append("the head is no longer tied to the embedding: the adapter changes only one of them")
    apart = float((_logprobs(merged, ids) - before).abs().max())
    # Not >, which is false for NaN, too.
    if not apart <= TOLERANCE:
        raise ModelError(
            f"adapter {adapter.path} cannot be merged: the merged weights give log-probabilities up to "
            f"{apart:.3g} nats away from base and adapter. Use it with peft as it is"
        )
    for parameter in merged.parameters():
        parameter.requires_grad_(True)
    loaded.model = merged.train()
    return apart


def difference(one: Any, other: Any) -> float:
    """Largest difference of two models' log-probabilities on tokens from all over the vocabulary, in nats."""
    ids = _probe(token_rows_of(one), []).to(one.device)
    was_training = one.training
    apart = (_logprobs(one.eval(), ids) - _logprobs(other.to(one.device).eval(), ids)).abs().max()
    one.train(was_training)
    return float(apart)


def on_base(model: Any, adapter: Adapter) -> Any:
    """peft's model of the base with the adapter on it. Raises ModelError if a tensor has no place or a place none."""
    from peft import get_peft_model

    settings = peft_settings(adapter)
    settings.inference_mode = True
    wrapped: Any = get_peft_model(model, settings, adapter_name=ADAPTER)
    loading = wrapped.load_adapter(str(adapter.folder), ADAPTER, torch_device=str(model.device))
    named = dict(wrapped.named_parameters(remove_duplicate=False))
    # Some kinds share one tensor among their layers, and save it once.
    present = {id(tensor) for name, tensor in named.items() if name not in loading.missing_keys}
    missing = [name for name in loading.missing_keys if name not in named or id(named[name]) not in present]
    odd = [*loading.unexpected_keys, *missing]
    if odd:
        raise ModelError(f"{len(odd)} tensors are in one of the two only, such as {odd[0]}")
    return wrapped.eval()


@contextmanager
def _of_peft(adapter: Adapter, base: str) -> Iterator[None]:
    """Without peft's warnings; whatever it raises becomes a ModelError."""
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    # peft's many kinds of adapters raise anything.
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = " ".join(lines[:2])[:240] or type(error).__name__
        named = f" (adapter_config.json names {adapter.named_base})" if adapter.named_base else ""
        raise ModelError(
            f"adapter {adapter.path} cannot be merged into {base}: {reason}. Pass the model it was trained on{named}"
        ) from error


def _untie_adapted(model: Any) -> None:
    """Give the head a weight of its own if one of embedding and head is adapted: merged, the other would change, too.

    Token rows that are trained for both, and modules saved whole, keep to peft's own rules.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    modules = [model.get_input_embeddings(), model.get_output_embeddings()]
    plain = [_innermost(module) for module in modules]
    adapted = [isinstance(module, BaseTunerLayer) and not hasattr(module, "token_indices") for module in modules]
    if any(adapted) and plain[0].weight is plain[1].weight:
        plain[1].weight = nn.Parameter(plain[1].weight.detach().clone())


def _unshare_layers(model: Any) -> None:
    """Give every layer weights of its own: copies of a layer share those of the base, and a merge would change all."""
    seen: set[int] = set()
    ends = {id(_innermost(module)) for module in (model.get_input_embeddings(), model.get_output_embeddings())}
    for module in model.modules():
        if id(module) in ends:
            continue
        for name, parameter in list(module._parameters.items()):
            if parameter is not None and id(parameter) in seen:
                module._parameters[name] = nn.Parameter(parameter.detach().clone())
            seen.add(id(parameter))


def _innermost(module: Any) -> Any:
    """The base's own layer under peft's wrappers."""
    while hasattr(module, "base_layer") or hasattr(module, "original_module"):
        module = getattr(module, "base_layer", None) or module.original_module
    return module


def _probe(vocabulary: int, rows: list[int]) -> Tensor:
    """Two sequences of tokens from all over the vocabulary, with those that the adapter trains among them."""
    ids = (torch.arange(64) * 7919 + 13) % vocabulary
    for place, row in enumerate(rows[:16]):
        ids[3 + 4 * place] = row
    return ids.reshape(2, 32)


def _logprobs(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(input_ids=ids).logits
    return logits.float().log_softmax(-1)
