"""What stands beside the weights of an exported model: the source's other files, and a tokenizer that older versions of
transformers read, too."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Weights in any format, and what a trainer left.
_NOT_COPIED = (
    *(".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".gguf", ".ot", ".ckpt", ".npz"),
    *(".index.json", ".log", ".tmp", ".partial"),
)
# What an export writes anew, or leaves out because the tokenizer it writes replaces it.
_WRITTEN = frozenset(
    {
        *("config.json", "generation_config.json", "adapter_config.json", "README.md", "chat_template.jinja"),
        *("chat_template.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json"),
        *("added_tokens.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "tekken.json"),
        *("trainer_state.json", "training_args.json", "all_results.json", "train_results.json", "eval_results.json"),
    }
)
_LARGEST = 32 * 2**20
"""Bytes of the largest file that is copied: configs, licences and code are small."""


def copy_companions(source: Path, folder: Path, *, code: bool) -> None:
    """Copy the files of a source model that are neither weights nor written anew, such as configs of image processors
    and licences, and that are not in `folder` yet. code: also the Python files, which the model's config names."""
    for file in _companions(source, code):
        target = folder / file.name
        if not target.exists():
            shutil.copyfile(file, target)


def _companions(source: Path, code: bool) -> Iterator[Path]:
    for file in sorted(source.iterdir()):
        name = file.name
        if not file.is_file() or name.startswith(".") or name in _WRITTEN or name.lower().endswith(_NOT_COPIED):
            continue
        if name.endswith(".py") and not code:
            continue
        if file.stat().st_size <= _LARGEST:
            yield file


def readable_before_5(folder: Path, source: Path | None) -> None:
    """Write a tokenizer's class, and its extra special tokens, as transformers 4 knows them.

    transformers 5 calls every tokenizer that is a tokenizer.json alone TokenizersBackend and keeps a list of extra
    special tokens; it reads the older names as well.
    """
    file = folder / "tokenizer_config.json"
    if not file.is_file():
        return
    written: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if "auto_map" in written:
        return
    declared = _declared_class(source)
    if declared not in (None, "TokenizersBackend"):
        written["tokenizer_class"] = declared
    elif written.get("tokenizer_class") == "TokenizersBackend":
        written["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(written.get("extra_special_tokens"), list):
        written["additional_special_tokens"] = written.pop("extra_special_tokens")
    file.write_text(json.dumps(written, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


def _declared_class(source: Path | None) -> str | None:
    """The tokenizer class that a source names; None if it names none."""
    if source is None or not (source / "tokenizer_config.json").is_file():
        return None
    declared = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8")).get("tokenizer_class")
    return declared if isinstance(declared, str) else None
