"""The check of an adapter that is continued: it starts from the numbers in its file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from espalier.checks.table import Outcome, failed, passed, skipped

if TYPE_CHECKING:
    from torch import Tensor

    from espalier.checks.evidence import Evidence

LIMIT = "the numbers of its file"


def check_adapter(evidence: Evidence) -> Outcome:
    """The live adapter against `adapter_model.safetensors`."""
    from safetensors.torch import load_file

    from espalier.models.adapters import adapter_state

    folder = Path(evidence.session.config.model.adapter).expanduser()
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        return skipped(f"{folder} has no {file.name}", LIMIT)
    return adapter(adapter_state(evidence.session.model.loaded.model), load_file(str(file)))


def adapter(live: dict[str, Tensor], stored: dict[str, Tensor]) -> Outcome:
    """Whether every tensor of the file is in the model as it stands there."""
    if not stored:
        return skipped("its file holds no tensor", LIMIT)
    other = [name for name in sorted(stored) if name not in live or not _equal(live[name], stored[name])]
    value = f"{len(stored) - len(other)} of {len(stored)} tensors as in the file"
    if other:
        return failed(value, LIMIT, f"The adapter does not continue where it stopped: {other[0]} is another one.")
    return passed(value, LIMIT)


def _equal(live: Tensor, stored: Tensor) -> bool:
    import torch

    return live.shape == stored.shape and torch.equal(live.detach().float().cpu(), stored.float())
