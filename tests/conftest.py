"""What all tests share: fixtures, and the order in which the files run."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from desk import Desk

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[1] / "shared"

LONGEST = (
    "engines/test_processes.py",
    "loop/test_train_resume.py",
    "commands/test_train_scoring.py",
    "loop/test_train_resume_preference.py",
    "commands/test_train_preference.py",
    "scratch/test_dpo.py",
    "scratch/test_alone.py",
    "models/test_export.py",
    "loop/test_train.py",
    "commands/test_train.py",
    "data/store/test_store_rankings.py",
    "data/store/test_entry.py",
    "data/test_read.py",
    "commands/test_train_prm.py",
)
"""Files that take long, the longest first. They run first, or a process may be left with one of them at the end."""

# Importing torch, transformers and the tests makes a million objects that stay. Searching them for garbage again and
# again takes a third of the time of collection.
gc.disable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of `LONGEST` first; the order inside a file stays."""
    places = {HERE / name: place for place, name in enumerate(LONGEST)}
    missing = [str(path) for path in places if not path.is_file()]
    if missing:
        raise pytest.UsageError(f"tests/conftest.py: LONGEST names no file: {', '.join(missing)}")
    items.sort(key=lambda item: places.get(item.path, len(places)))


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


@pytest.fixture(scope="session", autouse=True)
def no_flush() -> Iterator[None]:
    """Nothing waits for the disk: a flush changes nothing that a running machine can see. A closed file still fails."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model on disk, of the llama family."""
    from desk import saved

    return saved(tmp_path_factory.mktemp("model"))


@pytest.fixture
def desk(model: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> "Desk":
    """Runs commands on `model` in a terminal that is wide enough for every line."""
    from desk import Desk

    monkeypatch.setenv("COLUMNS", "300")
    return Desk(tmp_path, model, capsys)
