"""The embedded base model: the Hugging Face directory `model/`, built by `scripts/pretrain_embedded.py`."""

from __future__ import annotations

from pathlib import Path


def path() -> Path:
    """The directory of the embedded model, for every option that takes a model directory."""
    return Path(__file__).parent / "model"
