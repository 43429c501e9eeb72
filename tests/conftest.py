"""Fixtures that all tests share."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real data and models beside the checkout; tests that use it skip where it is missing."""
    if not SHARED.is_dir():
        pytest.skip(f"real data not found at {SHARED.name}/ beside the checkout")
    return SHARED


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny tensors gain nothing from threads, and the machine is shared."""
    import torch

    torch.set_num_threads(1)
