"""States and what a checkpoint is written of."""

from __future__ import annotations

import json
from pathlib import Path

from espalier.loop.state import TrainState


def state_of(step: int, **changes: object) -> TrainState:
    values: dict[str, object] = {
        "step": step,
        "epoch": 1,
        "position": 7,
        "counters": {"samples": 320},
        "state": {"delta": 0.1 + 0.2},
        "best_score": -1.25,
        "best_step": 60,
        "stale": 2,
        "lengths": {"metrics.jsonl": 4096},
    }
    return TrainState(**{**values, **changes})  # type: ignore[arg-type]


def write(folder: Path) -> None:
    (folder / "weights.safetensors").write_bytes(tensors_bytes(b"weights!"))
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text('{"a": 1}')


def tensors_bytes(content: bytes) -> bytes:
    """A safetensors file with one uint8 tensor, by the format's description: length, header, data."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [len(content)], "data_offsets": [0, len(content)]}}).encode()
    return len(header).to_bytes(8, "little") + header + content
