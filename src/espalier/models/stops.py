"""The tokens that a model stops on, as its files say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from espalier.errors import ModelError


def known_stops(folder: Path) -> tuple[int, ...]:
    """The ids that end a generation by `generation_config.json` and `config.json` of a model's folder, each once.

    Raises ModelError for a file that is not JSON.
    """
    ids: list[int] = []
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        if not path.is_file():
            continue
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ModelError(f"{path} is not JSON: {error}") from error
        if not isinstance(settings, dict):
            raise ModelError(f"{path} holds a {type(settings).__name__}; expected an object")
        for part in (settings, settings.get("text_config")):
            if isinstance(part, dict):
                ids += as_ids(part.get("eos_token_id"))
    return tuple(dict.fromkeys(ids))


def stops_of(folder: Path, adapter: Path | None) -> tuple[int, ...]:
    """`known_stops` of a model's folder and, if it was given an adapter, of the adapter's. Raises ModelError."""
    stops = known_stops(folder)
    if adapter is not None:
        stops += known_stops(adapter)
    return tuple(dict.fromkeys(stops))


def as_ids(value: Any) -> Iterator[int]:
    """The ids of an `eos_token_id`, which is one, a list of them, or None."""
    if isinstance(value, list | tuple):
        yield from (int(i) for i in value)
    elif value is not None:
        yield int(value)
