"""JSON files of a model's folder, which others wrote: read as an object with fields of the right kind, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from espalier.errors import ModelError

KINDS: dict[str, tuple[type, str]] = {
    "model_type": (str, "a string"),
    "architectures": (list, "a list of class names"),
    "auto_map": (dict, "an object"),
    "quantization_config": (dict, "an object"),
}
"""Fields of config.json that are read here rather than by transformers."""


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ModelError that names the file if it cannot be read or holds anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ModelError(f"{path} is not UTF-8 (byte {error.start}); download the model again") from error
    except RecursionError as error:
        raise ModelError(f"{path} is nested too deeply to be read; download the model again") from error
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}; download the model again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds {_kind(value)}, expected an object; download the model again")
    return value


def read_model_config(path: Path) -> dict[str, Any]:
    """config.json. Raises ModelError also for a field of `KINDS` that is of another kind."""
    config = read_object(path)
    for name, (kind, expected) in KINDS.items():
        value = config.get(name)
        if value is not None and not isinstance(value, kind):
            raise ModelError(f"{path}: {name} is {_kind(value)}, expected {expected}")
    if not all(isinstance(name, str) for name in config.get("architectures") or ()):
        raise ModelError(f"{path}: architectures is not {KINDS['architectures'][1]}")
    return config


def _kind(value: Any) -> str:
    """What a value is called in JSON."""
    if value is None:
        return "null"
    names = {bool: "a Boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return names[type(value)]
