"""A pretrained model and its tokenizer, read from safetensors into float32 masters, or refused with the reason."""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.utils import logging as hf_logging

from espalier.config.sections import ModelConfig
from espalier.errors import ConfigError, ModelError
from espalier.models import heads
from espalier.models.adapters import add_adapter, quantization
from espalier.models.freeze import FreezeSummary, freeze
from espalier.models.stored import stored_dtype, stored_tensor, weight_files
from espalier.models.tokens import add_control_tokens

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
_CLASSIFIER = "ForSequenceClassification"
_OTHER_HEADS = (_CLASSIFIER, "ForTokenClassification", "ForQuestionAnswering", "ForMaskedLM")
# What adds noise in train mode: dropouts under their usual names, skipped layers, and the jitter of some routers.
_NOISE = re.compile(r"dropout|pdrop|layerdrop|jitter")
_OTHER_TASKS = ("classifier_", "summary_")  # config fields of heads that a causal LM does not have
_PROBE = "A b\n\n  c\td, 12+345=357! é中 <x>"


@dataclass(slots=True)
class Loaded:
    """A model with what belongs to it.

    `source_dtype` is the dtype that most of the source's weights are stored in and that exports return to. `limit` is
    the longest sequence in tokens the model takes, None where nothing bounds it; `original_limit` is the length it was
    trained at before its positions were stretched, where its config says so. `notes` are lines for the user.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source_dtype: torch.dtype
    limit: int | None
    original_limit: int | None
    folder: Path
    notes: list[str] = field(default_factory=list)


def load_tokenizer(path: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hugging Face directory or hub name, unmodified; one without a pad token keeps none.

    Raises ModelError where it is missing or cannot be read.
    """
    folder = locate(path, weights=False)
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES) and not list(folder.glob("*.tiktoken")):
        raise ModelError(
            f"{path} has no tokenizer: none of {', '.join(_TOKENIZER_FILES)} found. "
            "Copy the tokenizer files of the model it was trained from into it"
        )
    try:
        with quiet():
            tokenizer: PreTrainedTokenizerBase
            if _declares_own(folder):
                tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder))
            else:
                tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers raises anything from KeyError to a bare Exception of the Rust core
        raise ModelError(f"{path}: the tokenizer cannot be read: {_line(error)}") from error
    return tokenizer


def load_model(config: ModelConfig, *, device: str | torch.device = "cpu", head: bool = False) -> Loaded:
    """Read `config.model` with every weight in float32, in train mode, dropouts at 0 unless `config.dropout`.

    Nothing else of `config` is applied; see `prepare`. Only safetensors are read, so that no code runs on loading.
    With `head`, a sequence-classification model is taken too, as the causal LM without a token head that has its
    `score` and, where Espalier wrote it, its calibration; any other model is as it would be without, for
    `heads.attach`, and refused already here where it could not become a reward model.
    Raises ModelError where the directory, its weights or its tokenizer are missing, incomplete, of another kind than a
    causal language model or do not fit each other: a weight that transformers would replace by random numbers is named.
    """
    path = config.model
    folder = locate(path)
    hf_config = _read_config(path, folder, config.trust_remote_code, head=head)
    classifier = head and any(name.endswith(_CLASSIFIER) for name in hf_config.architectures or ())
    files = weight_files(path, folder)
    tokenizer = load_tokenizer(str(folder), trust_remote_code=config.trust_remote_code)
    quantized = quantization(config, torch.device(device))
    extra = {} if quantized is None else {"quantization_config": quantized, "device_map": {"": device}}
    model: Any
    info: dict[str, Any]
    try:
        with quiet():
            model, info = AutoModelForCausalLM.from_pretrained(  # type: ignore[misc] # a pair, as asked for
                str(folder),
                config=hf_config,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=config.trust_remote_code,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below by name, with all others
                **extra,
            )
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, AttributeError, SafetensorError) as error:
        raise ModelError(f"{path}: the model cannot be read: {_line(error)}") from error
    if head:
        heads.check(model)
    if classifier:
        info["missing_keys"] = set(info["missing_keys"]) - heads.token_head_names(model)
        info["unexpected_keys"] = set(info["unexpected_keys"]) - {heads.WEIGHT}
    _refuse_incomplete(path, info)
    if classifier:
        heads.restore(model, stored_tensor(path, files, heads.WEIGHT), hf_config)
    _refuse_large_vocabulary(path, model, tokenizer)
    if quantized is None:
        model = model.to(device)
    notes = []
    if unexpected := sorted(info["unexpected_keys"]):
        notes.append(
            f"{len(unexpected)} stored weights are not part of {type(model).__name__} and are left out: "
            + _some(unexpected)
        )
    # What an export puts back; kept on the model, so that no caller can forget to hand it on.
    model.espalier_source = hf_config.to_dict()
    if not config.dropout and (zeroed := zero_dropouts(model)):
        notes.append("set to 0: " + ", ".join(zeroed) + " (dropout true keeps them)")
    if note := _read_differently(folder, tokenizer):
        notes.append(note)
    limit, original = _limits(hf_config, tokenizer)
    return Loaded(model.train(), tokenizer, stored_dtype(files), limit, original, folder, notes)


def prepare(loaded: Loaded, config: ModelConfig, *, seed: int = 0) -> FreezeSummary:
    """Apply what `config` asks of the trained model, in place and in the order that keeps it right.

    Control tokens, the LoRA adapter (a function of `seed`), frozen parameters, dropouts. Lines for the user are added
    to `loaded.notes`.

    Raises ConfigError where a combination cannot be trained.
    """
    if heads.scalar_head(loaded.model) is not None and config.export == "adapter":
        raise ConfigError(
            "export adapter leaves out the scalar head and its calibration; use export merged", key="export"
        )
    ids = add_control_tokens(loaded.model, loaded.tokenizer, config.add_tokens)
    if ids:
        loaded.notes.append(
            "control tokens: " + ", ".join(f"{n} = {i}" for n, i in zip(config.add_tokens, ids, strict=True))
        )
    loaded.notes.extend(add_adapter(loaded.model, config, ids, seed=seed))
    if not config.dropout:
        zero_dropouts(loaded.model)  # an adapter that is continued may bring its own
    summary = freeze(loaded.model, config)
    loaded.notes.extend(summary.notes)
    return summary


def zero_dropouts(model: torch.nn.Module) -> list[str]:
    """Set everything that adds noise in train mode to 0, on modules and on configs; returns what was above 0.

    Covers nn.Dropout modules and float attributes or config fields named *dropout*, *pdrop*, *layerdrop* or *jitter*,
    so that `train()` can stay on (gradient checkpointing needs it) and two forwards agree.

    >>> zero_dropouts(gpt2)   # with attn_pdrop 0.1 in its config
    ['attn_pdrop 0.1 (config)', 'attn_dropout 0.1 (2 modules)']
    """
    found: Counter[tuple[str, float, str]] = Counter()
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    for config in list(configs.values()):
        nested = [getattr(config, name, None) for name in getattr(config, "sub_configs", {})]
        configs.update({id(c): c for c in nested if c is not None})
    seen: set[tuple[str, float]] = set()
    for config in configs.values():
        for name, value in list(vars(config).items()):
            if _NOISE.search(name) and _above_zero(value) and not name.startswith(_OTHER_TASKS):
                setattr(config, name, 0.0)
                seen.add((name, float(value)))
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd) and module.p > 0:
            parts = [part for part in path.split(".") if _NOISE.search(part)]
            found[(parts[0] if parts else path.rsplit(".", 1)[-1], module.p, "modules")] += 1
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if _NOISE.search(name) and _above_zero(value):
                setattr(module, name, 0.0)
                found[(name, float(value), "modules")] += 1
    lines = [f"{name} {value:g} (config)" for name, value in sorted(seen)]
    return lines + [f"{name} {value:g} ({count} {what})" for (name, value, what), count in sorted(found.items())]


def locate(path: str, *, weights: bool = True) -> Path:
    """The local folder of a model: `path` itself, or the cached download of a hub name.

    A path that looks local (absolute, with more than one slash, or below a folder that exists) is never asked from the
    hub. Raises ModelError with the nearest sibling where it does not exist.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise ModelError(f"{path} is a file; expected the directory that holds config.json and the weights")
    parent = folder.parent
    siblings = [p.name for p in parent.iterdir() if p.is_dir()] if parent.is_dir() else []
    near = get_close_matches(folder.name, siblings, n=1)
    if not path or path[0] in "./~\\" or path.count("/") > 1 or (parent != Path(".") and parent.is_dir()) or near:
        hint = f". Did you mean {parent / near[0]}?" if near else ". Give a Hugging Face directory or a hub name"
        raise ModelError(f"model directory {path or repr(path)} does not exist{hint}")
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.model", "*.txt", "*.jinja", "*.py", "*.tiktoken"] + ["*.safetensors"] * weights
    try:
        return Path(snapshot_download(path, allow_patterns=patterns, ignore_patterns=["*/*"]))
    except Exception as error:  # the client raises its own, the HTTP library's and OSError
        raise ModelError(f"{path} is no local directory, and the hub does not give it: {_line(error)[:160]}") from error


def check_causal(path: str, *, trust_remote_code: bool = False) -> None:
    """Raise ModelError where a model is missing, or is by its config no causal language model; no weight is read."""
    _read_config(path, locate(path), trust_remote_code)


def _declares_own(folder: Path) -> bool:
    """Whether tokenizer.json is to be read as it stands. AutoTokenizer prefers the class of some model types (Qwen2) to
    the declared one, and that class rebuilds the pre-tokenizer and adds a pad token."""
    file = folder / "tokenizer_config.json"
    declared = json.loads(file.read_text()) if file.is_file() and (folder / "tokenizer.json").is_file() else {}
    return "auto_map" not in declared and declared.get("tokenizer_class") in (
        "TokenizersBackend",
        "PreTrainedTokenizerFast",
    )


def _read_differently(folder: Path, tokenizer: PreTrainedTokenizerBase) -> str:
    """A line where AutoTokenizer splits text in another way than tokenizer.json says."""
    if not _declares_own(folder):
        return ""
    with quiet():
        other = AutoTokenizer.from_pretrained(str(folder))
    if type(other) is type(tokenizer) or other.encode(_PROBE) == tokenizer.encode(_PROBE):
        return ""
    return (
        f"AutoTokenizer reads this tokenizer as {type(other).__name__}, which splits text in another way than its "
        "tokenizer.json; here tokenizer.json is used. Elsewhere load it with PreTrainedTokenizerFast"
    )


def _read_config(path: str, folder: Path, trust_remote_code: bool, *, head: bool = False) -> Any:
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            base = json.loads((folder / "adapter_config.json").read_text()).get("base_model_name_or_path") or "BASE"
            raise ModelError(f"{path} is a LoRA adapter, not a model. Pass --model {base} --adapter {path}")
        raise ModelError(f"{path} has no config.json; expected a directory written by save_pretrained")
    try:
        raw = json.loads((folder / "config.json").read_text())
    except ValueError as error:
        raise ModelError(f"{folder / 'config.json'} is not JSON: {error}") from error
    if raw.get("auto_map") and not trust_remote_code and raw.get("model_type") not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ModelError(f"{path} runs code of its own ({raw['auto_map']}). Read it, then pass trust_remote_code true")
    kind, declared = raw.get("model_type"), raw.get("architectures") or []
    try:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    except Exception as error:  # a config class may raise anything on fields it does not know
        raise ModelError(f"{path}: unknown architecture (model_type {kind!r}): {_line(error)}") from error
    if raw.get("quantization_config"):
        method = raw["quantization_config"].get("quant_method", "an unnamed method")
        raise ModelError(
            f"{path} holds weights quantised with {method}, which cannot be trained. Give the unquantised model"
        )
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind) or raw.get("auto_map", {}).get("AutoModelForCausalLM")
    encoder = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)
    other = [name for name in declared if name.endswith(_OTHER_HEADS) and not (head and name.endswith(_CLASSIFIER))]
    if causal is None or config.is_encoder_decoder or encoder or other:
        what = ", ".join(declared) or f"model_type {kind}"
        way_out = ""
        if any(name.endswith(_CLASSIFIER) for name in other):
            way_out = ". A reward model is scored with, and measured by, `espalier reward --eval-only`"
        raise ModelError(
            f"{path} is no causal language model: got {what}; expected a decoder such as LlamaForCausalLM{way_out}"
        )
    return config


def _refuse_incomplete(path: str, info: dict[str, Any]) -> None:
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"{path} lacks {len(missing)} weights, which would start as random numbers: {_some(missing)}. "
            "Download the model again, or give a directory whose architecture matches its weights"
        )
    if wrong := sorted(info["mismatched_keys"]):
        shapes = [f"{name} is stored as {tuple(got)}, the config expects {tuple(want)}" for name, got, want in wrong]
        raise ModelError(f"{path}: {len(wrong)} weights do not fit config.json: {_some(shapes)}")
    if errors := info.get("error_msgs"):
        raise ModelError(f"{path}: the weights cannot be read: {_some([_line(e) for e in errors])}")


def _refuse_large_vocabulary(path: str, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = model.get_input_embeddings().weight.shape[0]
    beyond = sorted((i, token) for token, i in tokenizer.get_vocab().items() if i >= rows)
    if beyond:
        names = _some([f"{token} = {i}" for i, token in beyond])
        raise ModelError(
            f"{path}: the tokenizer has {len(beyond)} tokens beyond the embedding's {rows} rows: {names}. "
            "Give the tokenizer the model was trained with, or leave them out of it and pass them as add_tokens"
        )


def read_limit(path: str, *, trust_remote_code: bool = False) -> int | None:
    """The longest sequence that a model takes, from its configuration and tokenizer alone."""
    folder = locate(path, weights=False)
    if not (folder / "config.json").is_file():
        return None
    config = _read_config(path, folder, trust_remote_code, head=True)
    return _limits(config, load_tokenizer(path, trust_remote_code=trust_remote_code))[0]


def _limits(config: Any, tokenizer: PreTrainedTokenizerBase) -> tuple[int | None, int | None]:
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit <= 0:
        bound = tokenizer.model_max_length
        limit = int(bound) if bound < 1_000_000_000 else None  # transformers writes 1e30 for none
    rope = getattr(text, "rope_parameters", None) or {}
    original = getattr(text, "original_max_position_embeddings", None) or rope.get("original_max_position_embeddings")
    return limit, int(original) if original else None


def _above_zero(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def _some(names: list[str], shown: int = 4) -> str:
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")


def _line(error: object) -> str:
    """The first line that says something."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the loader's warnings and bars; what they would say is checked and raised here."""
    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    hf_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
