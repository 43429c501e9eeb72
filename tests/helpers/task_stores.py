"""Token stores of tasks, and the data of a run on them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from espalier.config.sections import DataConfig
from espalier.data.dataset import Opened, open_data
from espalier.data.render.form import Form, TaskForm
from espalier.data.render.renderer import Renderer
from toys import letters


def renderer(tasks: TaskForm | None = None, max_length: int = 0) -> Renderer:
    """Every letter is a token, under ChatML."""
    return Renderer(letters(template="chatml"), max_length=max_length, form=Form("task", tasks=tasks or TaskForm()))


def write(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    """A file of rows; returns its path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def questions(letter: str, count: int) -> list[dict[str, Any]]:
    """Rows with the questions a0, a1 ... and the answers 0, 1 ..."""
    return [{"question": f"{letter}{i}", "answer": str(i)} for i in range(count)]


def opened(
    folder: Path, *data: str, tasks: TaskForm | None = None, max_length: int = 0, seed: int = 0, **config: Any
) -> Opened:
    """The stores of a config with these sources, cached in `folder`."""
    settings = DataConfig(data=data, cache=str(folder / "cache"), **config)
    return open_data(settings, renderer(tasks, max_length), cache=folder / "cache", seed=seed)
