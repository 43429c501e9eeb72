"""The folder of an adapter as peft writes it: read without running code, and refused if it is broken.

adapter_config.json         the kind of adapter (`peft_type`) and its settings
adapter_model.safetensors   its tensors, and sometimes whole embeddings or heads
tokenizer.json, ...         often: the tokenizer that it was trained with
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from espalier.errors import ModelError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What peft puts before the names of a model's modules."""
_TABLES = ("embed_tokens", "lm_head", "wte", "embed_in", "embed_out", "word_embeddings", "embeddings")
# Settings that say how large the adapter's tensors are.
_SIZES = ("r", "init_r", "rank", "num_virtual_tokens", "n_frequency", "boft_block_num", "boft_block_size")


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter's `settings` (adapter_config.json) and the shapes of its tensors; `path` is as it was given."""

    path: str
    folder: Path
    settings: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]

    @property
    def kind(self) -> str:
        """The type by peft's name, such as LORA or IA3."""
        return str(self.settings["peft_type"])

    @property
    def named_base(self) -> str:
        """The model that it was trained on, by adapter_config.json; empty if that names none."""
        return str(self.settings.get("base_model_name_or_path") or "")

    @property
    def trained_rows(self) -> set[int]:
        """The token ids whose rows it trains beside its matrices."""
        return token_rows(self.settings.get("trainable_token_indices"))

    @property
    def whole_rows(self) -> bool:
        """Whether it holds an embedding or a head whole, by the usual names of their modules."""
        ends = (f"{table}.{part}" for table in _TABLES for part in ("weight", "base_layer.weight"))
        return any(name.endswith(end) for end in tuple(ends) for name in self.shapes)

    def merging(self, base: str = "") -> str:
        """The command that merges it into its base."""
        return merge_command(self.path, base or self.named_base)

    def modules(self) -> set[str]:
        """Names of the model's modules that its tensors belong to, without those whose token rows alone it trains."""
        modules = set()
        for name in self.shapes:
            plain = name.removeprefix(PREFIX)
            if ".token_adapter." not in plain and not plain.endswith("trainable_tokens_delta"):
                modules.add(_module_of(plain))
        return modules


def merge_command(path: str, base: str = "") -> str:
    """How to make a plain model of an adapter and its base."""
    return f"espalier export --model {base or 'BASE'} --adapter {path} --out DIR"


def token_rows(indices: Any) -> set[int]:
    """The token ids in peft's `trainable_token_indices`, of all modules."""
    if isinstance(indices, dict):
        return set().union(*indices.values())
    return set(indices or ())


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no model; a config.json without weights beside it does not make it one."""
    return (folder / CONFIG).is_file() and not _holds_model(folder)


def refuse_mixture(path: str, folder: Path) -> None:
    """Raise ModelError for a folder with a model and an adapter: transformers would put one on the other unasked."""
    if (folder / CONFIG).is_file() and _holds_model(folder):
        raise ModelError(
            f"{path} holds a model and an adapter ({CONFIG}), and which of the two is meant is not clear. "
            "Move the adapter's files to a folder of their own"
        )


def _holds_model(folder: Path) -> bool:
    weights = [file for file in folder.glob("*.safetensors") if not file.name.startswith("adapter_")]
    return (folder / "config.json").is_file() and bool(weights or list(folder.glob("pytorch_model*.bin")))


def read_settings(path: str) -> dict[str, Any]:
    """adapter_config.json of an adapter folder. Raises ModelError if it is missing, or is not what peft writes."""
    folder = Path(path).expanduser()
    file = folder / CONFIG
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        way_out = "expected a directory that peft or Espalier wrote"
        if (folder / "config.json").is_file():
            way_out = f"it holds a whole model. Pass --model {path} without --adapter"
        elif not folder.is_dir():
            way_out = "there is no such directory"
        raise ModelError(f"adapter {path} has no {CONFIG}; {way_out}") from None
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror}. Give this process access to it") from error
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0][:120]
        raise ModelError(f"{file} is not JSON: {reason}. Copy the adapter again") from error
    if not isinstance(settings, dict):
        raise ModelError(f"{file} holds a {type(settings).__name__}, expected an object. Copy the adapter again")
    if not isinstance(settings.get("peft_type"), str):
        raise ModelError(f"{file} has no peft_type (got {str(settings.get('peft_type'))[:40]}). Copy the adapter again")
    return settings


def read_adapter(path: str) -> Adapter:
    """An adapter's settings and the headers of its weights; no tensor is read.

    Raises ModelError if a file is missing, broken or pickled, and for sizes that its tensors do not have.
    """
    folder = Path(path).expanduser()
    settings = read_settings(path)
    file = folder / WEIGHTS
    if not file.is_file():
        if (folder / "adapter_model.bin").is_file():
            raise ModelError(
                f"adapter {path} has no {WEIGHTS}, only pickled weights (adapter_model.bin), which can run code when "
                "read. Load it with peft where you trust it, and save it with save_pretrained"
            )
        raise ModelError(f"adapter {path} has no {WEIGHTS}; expected a directory that peft or Espalier wrote")
    try:
        with safe_open(str(file), "pt") as tensors:
            shapes = {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} cannot be read: {str(error).splitlines()[0]}. Copy the adapter again") from error
    adapter = Adapter(path, folder, settings, shapes)
    _refuse_odd(adapter, file)
    return adapter


def _refuse_odd(adapter: Adapter, file: Path) -> None:
    """Raise ModelError for settings of a wrong type, and for sizes beyond every tensor of the file: peft would allocate
    them."""
    settings, where = adapter.settings, adapter.folder / CONFIG
    if not adapter.shapes:
        raise ModelError(f"{file} holds no tensors. Copy the adapter again")
    largest = max((size for shape in adapter.shapes.values() for size in shape), default=0)
    patterns = settings.get("rank_pattern") or {}
    if not isinstance(patterns, dict):
        raise ModelError(f"{where}: rank_pattern is a {type(patterns).__name__}, expected an object")
    sizes = {name: settings[name] for name in _SIZES if settings.get(name) is not None}
    sizes |= {f"rank_pattern {name}": value for name, value in patterns.items()}
    for name, value in sizes.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ModelError(
                f"{where}: {name} is {str(value)[:40]!r}, expected a positive number. Copy the adapter again"
            )
        if value > largest:
            raise ModelError(
                f"{where}: {name} is {str(value)[:20]}, but no tensor of {file.name} is that large (the largest "
                f"dimension is {largest}). The files do not belong together; copy the adapter again"
            )
    _refuse_rows(settings.get("trainable_token_indices"), where)


def _refuse_rows(indices: Any, where: Path) -> None:
    """Raise ModelError unless `trainable_token_indices` are token ids, or lists of them by module."""
    lists = list(indices.values()) if isinstance(indices, dict) else [indices or []]
    for rows in lists:
        good = isinstance(rows, list) and all(type(row) is int and 0 <= row < 1 << 24 for row in rows)
        if not good:
            raise ModelError(
                f"{where}: trainable_token_indices got {str(rows)[:40]}, expected token ids. Copy the adapter again"
            )


def _module_of(name: str) -> str:
    """The module of the model that an adapter's tensor belongs to.

    >>> _module_of("model.layers.0.self_attn.q_proj.lora_A.weight")
    'model.layers.0.self_attn.q_proj'
    """
    for part in (".lora_", ".base_layer.", ".modules_to_save."):
        before, found, _ = name.partition(part)
        if found:
            return before
    return name.rpartition(".")[0]
