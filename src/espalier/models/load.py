"""A pretrained model and its tokenizer, read from safetensors into float32 masters, or refused with the reason."""

from __future__ import annotations

import contextlib
import json
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
from espalier.errors import ModelError
from espalier.models import heads
from espalier.models.adapter_files import is_adapter, merge_command, read_settings, refuse_mixture
from espalier.models.adapters import quantization
from espalier.models.dropouts import zero_dropouts
from espalier.models.json_files import read_model_config
from espalier.models.stored import stored_dtype, stored_tensor, weight_files

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
_CLASSIFIER = "ForSequenceClassification"
_OTHER_HEADS = (_CLASSIFIER, "ForTokenClassification", "ForQuestionAnswering", "ForMaskedLM")
# Text on which tokenizers that split differently give different tokens.
_PROBE = "A b\n\n  c\td, 12+345=357! é中 <x>"


@dataclass(slots=True)
class Loaded:
    """A model with what belongs to it.

    `source_dtype` is the dtype that most of the source's weights are stored in and that exports return to. `limit` is
    the longest sequence in tokens the model takes, None if nothing bounds it; `original_limit` is the length it was
    trained at before its positions were stretched, None if its config has none. `adapter` is the folder of an adapter
    that was continued or merged. `notes` are lines for the user.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source_dtype: torch.dtype
    limit: int | None
    original_limit: int | None
    folder: Path
    adapter: Path | None = None
    notes: list[str] = field(default_factory=list)


def load_tokenizer(path: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hugging Face directory or hub name, unmodified; one without a pad token keeps none.

    Raises ModelError if it is missing or cannot be read.
    """
    folder = locate(path, weights=False)
    if not _has_tokenizer(folder):
        raise ModelError(
            f"{path} has no tokenizer: none of {', '.join(_TOKENIZER_FILES)} found. "
            "Copy the tokenizer files of the model it was trained from into it"
        )
    try:
        with quiet():
            tokenizer: PreTrainedTokenizerBase
            if _stands_alone(folder):
                tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder))
            else:
                tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    # transformers raises anything from KeyError to a bare Exception of the Rust core.
    except Exception as error:
        raise ModelError(f"{path}: the tokenizer cannot be read: {_line(error)}") from error
    return tokenizer


def tokenizer_beside(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase | None:
    """The tokenizer in an adapter's folder; None if it has none. Raises ModelError if it cannot be read."""
    if not _has_tokenizer(folder):
        return None
    return load_tokenizer(str(folder), trust_remote_code=trust_remote_code)


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _TOKENIZER_FILES) or bool(list(folder.glob("*.tiktoken")))


def load_model(config: ModelConfig, *, device: str | torch.device = "cpu", head: bool = False) -> Loaded:
    """Read `config.model` with every weight in float32, in train mode, dropouts at 0 unless `config.dropout`.

    Nothing else of `config` is applied; see `models.prepare`. Only safetensors are read, so no code runs on loading.
    With `head`, a sequence-classification model is taken too, as the causal LM without a token head that has its
    `score` and, if Espalier wrote it, its calibration; any other model is as it would be without, for `heads.attach`,
    and refused already here if it could not become a reward model.
    Raises ModelError if the directory, its weights or its tokenizer are missing, incomplete, of another kind than a
    causal language model or do not fit each other: a weight that transformers would replace by random numbers is named.
    """
    path = config.model
    folder = locate(path)
    hf_config = read_config(path, folder, config.trust_remote_code, head=head)
    classifier = head and any(name.endswith(_CLASSIFIER) for name in hf_config.architectures or ())
    files = weight_files(path, folder)
    tokenizer = load_tokenizer(str(folder), trust_remote_code=config.trust_remote_code)
    quantized = quantization(config, torch.device(device))
    model, info = _read_weights(config, folder, hf_config, quantized, device)
    if head:
        heads.check(model)
    # A classifier has no token head, and a scalar head that the causal class does not know.
    if classifier:
        info["missing_keys"] = set(info["missing_keys"]) - heads.token_head_names(model)
        info["unexpected_keys"] = set(info["unexpected_keys"]) - {heads.WEIGHT}
    _refuse_incomplete(path, info)
    if classifier:
        heads.restore(model, stored_tensor(path, files, heads.WEIGHT), hf_config)
    _refuse_large_vocabulary(path, model, tokenizer)
    # bitsandbytes puts its weights on the device while it reads them.
    if quantized is None:
        model = model.to(device)
    # What an export puts back; kept on the model, so that no caller can forget to hand it on.
    model.espalier_source = hf_config.to_dict()
    limit, original = _limits(hf_config, tokenizer)
    loaded = Loaded(model.train(), tokenizer, stored_dtype(files), limit, original, folder)
    unexpected = sorted(info["unexpected_keys"])
    if unexpected:
        loaded.notes.append(
            f"{len(unexpected)} stored weights are not part of {type(model).__name__} and are left out: "
            + _some(unexpected)
        )
    if not config.dropout:
        zeroed = zero_dropouts(model)
        if zeroed:
            loaded.notes.append("set to 0: " + ", ".join(zeroed) + " (dropout true keeps them)")
    loaded.notes += read_differently(folder, tokenizer)
    return loaded


def _read_weights(
    config: ModelConfig, folder: Path, hf_config: Any, quantized: Any, device: str | torch.device
) -> tuple[Any, dict[str, Any]]:
    """The causal language model and transformers' account of the weights that are missing, left over or do not fit."""
    extra: dict[str, Any] = {}
    if quantized is not None:
        extra = {"quantization_config": quantized, "device_map": {"": device}}
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
                # transformers would stop at the first; `_refuse_incomplete` names them all.
                ignore_mismatched_sizes=True,
                **extra,
            )
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, AttributeError, SafetensorError) as error:
        raise ModelError(f"{config.model}: the model cannot be read: {_line(error)}") from error
    return model, info


def locate(path: str, *, weights: bool = True) -> Path:
    """The local folder of a model: `path` itself, or the cached download of a hub name.

    The hub is never asked for a path that looks local: absolute, with more than one slash, below a folder that exists,
    or close to the name of a folder here. Raises ModelError with the nearest sibling if it does not exist.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise ModelError(f"{path} is a file; expected the directory that holds config.json and the weights")
    parent = folder.parent
    siblings: list[str] = []
    if parent.is_dir():
        siblings = [sibling.name for sibling in parent.iterdir() if sibling.is_dir()]
    near = get_close_matches(folder.name, siblings, n=1)
    if near:
        raise ModelError(f"model directory {path or repr(path)} does not exist. Did you mean {parent / near[0]}?")
    if not path or path[0] in "./~\\" or path.count("/") > 1 or (parent != Path(".") and parent.is_dir()):
        raise ModelError(
            f"model directory {path or repr(path)} does not exist. Give a Hugging Face directory or a hub name"
        )
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.model", "*.txt", "*.jinja", "*.py", "*.tiktoken"]
    if weights:
        patterns.append("*.safetensors")
    try:
        return Path(snapshot_download(path, allow_patterns=patterns, ignore_patterns=["*/*"]))
    # The client raises its own errors, the HTTP library's and OSError.
    except Exception as error:
        raise ModelError(
            f"{path} is not a local directory, and the hub does not provide it: {_line(error)[:160]}"
        ) from error


def check_causal(path: str, *, trust_remote_code: bool = False) -> None:
    """Raise ModelError if a model is missing, or is not a causal language model by its config; no weight is read."""
    read_config(path, locate(path), trust_remote_code)


def _stands_alone(folder: Path) -> bool:
    """Whether tokenizer.json is to be read as it stands. AutoTokenizer prefers the class of some model types (Qwen2) to
    the declared one, and that class rebuilds the pre-tokenizer and adds a pad token."""
    file = folder / "tokenizer_config.json"
    if not file.is_file() or not (folder / "tokenizer.json").is_file():
        return False
    declared = json.loads(file.read_text())
    own_class = declared.get("tokenizer_class") in ("TokenizersBackend", "PreTrainedTokenizerFast")
    return own_class and "auto_map" not in declared


def read_differently(folder: Path, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """A line if AutoTokenizer splits text in another way than tokenizer.json says."""
    if not _stands_alone(folder):
        return []
    with quiet():
        other = AutoTokenizer.from_pretrained(str(folder))
    if type(other) is type(tokenizer) or other.encode(_PROBE) == tokenizer.encode(_PROBE):
        return []
    return [
        f"AutoTokenizer reads this tokenizer as {type(other).__name__}, which splits text in "
        "another way than its tokenizer.json; here tokenizer.json is used. Elsewhere load it with "
        "PreTrainedTokenizerFast"
    ]


def read_config(path: str, folder: Path, trust_remote_code: bool, *, head: bool = False) -> Any:
    """The config of a causal language model, or with `head` of a sequence-classification model too.

    Raises ModelError for anything else, and for a model that needs code which nobody allowed to run.
    """
    raw = _raw_config(path, folder)
    kind: Any = raw.get("model_type")
    if raw.get("auto_map") and not trust_remote_code and kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ModelError(f"{path} runs code of its own ({raw['auto_map']}). Read it, then pass trust_remote_code true")
    try:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    # A config class may raise anything on fields it does not know.
    except Exception as error:
        raise ModelError(f"{path}: unknown architecture (model_type {kind!r}): {_line(error)}") from error
    if raw.get("quantization_config"):
        method = raw["quantization_config"].get("quant_method", "an unnamed method")
        raise ModelError(
            f"{path} holds weights quantised with {method}, which cannot be trained. Give the unquantised model"
        )
    declared = raw.get("architectures") or []
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind) or (raw.get("auto_map") or {}).get("AutoModelForCausalLM")
    # BERT and its kin have a causal class too, which is right only if the config says that the
    # model is a decoder.
    encoder = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)
    other = [name for name in declared if name.endswith(_OTHER_HEADS) and not (head and name.endswith(_CLASSIFIER))]
    if causal is None or config.is_encoder_decoder or encoder or other:
        architecture = ", ".join(declared) or f"model_type {kind}"
        way_out = ""
        if any(name.endswith(_CLASSIFIER) for name in other):
            way_out = ". A reward model is scored with, and measured by, `espalier reward --eval-only`"
        raise ModelError(
            f"{path} is not a causal language model: got {architecture}; expected a decoder such as "
            f"LlamaForCausalLM{way_out}"
        )
    return config


def _raw_config(path: str, folder: Path) -> dict[str, Any]:
    """config.json as it stands. Raises ModelError if it is missing or not JSON, and for the folder of an adapter."""
    file = folder / "config.json"
    refuse_mixture(path, folder)
    if is_adapter(folder):
        base = str(read_settings(str(folder)).get("base_model_name_or_path") or "BASE")
        raise ModelError(
            f"{path} is an adapter, not a model. Pass --model {base} --adapter {path}, or merge the two first: "
            f"{merge_command(path, base)}"
        )
    if not file.is_file():
        raise ModelError(f"{path} has no config.json; expected a directory written by save_pretrained")
    return read_model_config(file)


def _refuse_incomplete(path: str, info: dict[str, Any]) -> None:
    """Raise ModelError for weights that are missing, of another shape, or unreadable."""
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(
            f"{path} lacks {len(missing)} weights, which would start as random numbers: "
            f"{_some(missing)}. Download the model again, or give a directory whose architecture "
            "matches its weights"
        )
    mismatched = sorted(info["mismatched_keys"])
    if mismatched:
        shapes = []
        for name, stored, expected in mismatched:
            shapes.append(f"{name} is stored as {tuple(stored)}, the config expects {tuple(expected)}")
        raise ModelError(f"{path}: {len(mismatched)} weights do not fit config.json: {_some(shapes)}")
    errors = info.get("error_msgs")
    if errors:
        raise ModelError(f"{path}: the weights cannot be read: {_some([_line(error) for error in errors])}")


def _refuse_large_vocabulary(path: str, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ModelError for tokens without a row in the embedding."""
    rows = model.get_input_embeddings().weight.shape[0]
    beyond = sorted((i, token) for token, i in tokenizer.get_vocab().items() if i >= rows)
    if beyond:
        names = _some([f"{token} = {i}" for i, token in beyond])
        raise ModelError(
            f"{path}: the tokenizer has {len(beyond)} tokens beyond the embedding's {rows} rows: "
            f"{names}. Give the tokenizer the model was trained with, or leave them out of it and "
            "pass them as add_tokens"
        )


def read_limit(path: str, *, trust_remote_code: bool = False) -> int | None:
    """The longest sequence in tokens that a model takes, from its configuration and tokenizer alone; None if nothing
    bounds it."""
    folder = locate(path, weights=False)
    if not (folder / "config.json").is_file():
        return None
    config = read_config(path, folder, trust_remote_code, head=True)
    return _limits(config, load_tokenizer(path, trust_remote_code=trust_remote_code))[0]


def _limits(config: Any, tokenizer: PreTrainedTokenizerBase) -> tuple[int | None, int | None]:
    """`limit` and `original_limit` of a model, see `Loaded`."""
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit <= 0:
        # transformers writes 1e30 for a tokenizer without a bound.
        bound = tokenizer.model_max_length
        if not isinstance(bound, int | float):
            raise ModelError(f"tokenizer_config.json: model_max_length is {bound!r}, expected a number of tokens")
        limit = int(bound) if bound < 1_000_000_000 else None
    rope = getattr(text, "rope_parameters", None) or {}
    original = getattr(text, "original_max_position_embeddings", None) or rope.get("original_max_position_embeddings")
    return limit, int(original) if original else None


def _some(names: list[str], shown: int = 4) -> str:
    """The first names of a list, and how many more there are."""
    text = ", ".join(names[:shown])
    if len(names) > shown:
        text += f" and {len(names) - shown} more"
    return text


def _line(error: object) -> str:
    """The first line of an error's text that is not blank, else the error's type."""
    for line in str(error).splitlines():
        if line.strip():
            return line.strip()
    return type(error).__name__


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the loader's warnings and progress bars: what they tell of is checked and raised here."""
    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    hf_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
