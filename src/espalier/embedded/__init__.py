"""The embedded base model: the Hugging Face directory `model/`, built by `scripts/pretrain_embedded.py`."""

from __future__ import annotations

from pathlib import Path


def path() -> Path:
    """The directory that holds the embedded model; pass it wherever a model directory is taken."""
    return Path(__file__).parent / "model"
