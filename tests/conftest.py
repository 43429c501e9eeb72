"""Fixtures that all tests share."""

import gc
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"

# Importing torch, transformers and the tests makes a million objects that stay. Searching them for garbage again and
# again takes a third of the time of collection.
gc.disable()


def pytest_collection_finish() -> None:
    """From here on garbage is collected as always, but what was imported is not searched for it."""
    gc.freeze()
    gc.enable()


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
