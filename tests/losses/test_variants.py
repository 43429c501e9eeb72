"""The table of DPO's variants: each is computed and documented, and none stands beside it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from espalier.losses import pairs
from espalier.losses.variants import VARIANTS


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_of_the_table_is_computed_and_documented(name: str) -> None:
    variant = VARIANTS[name]
    if variant.over == "pairs":
        smoothing = 0.1 if variant.smoothed else 0.0
        lost = pairs.loss(name, torch.stack([t(0, 0), t(2, -4)]), torch.ones(2, 2), 0.5, smoothing)
        assert lost.shape == (2,) and torch.isfinite(lost).all()
    document = (Path(__file__).resolve().parents[2] / "docs" / "preference-losses.md").read_text(encoding="utf-8")
    rows = [line for line in document.splitlines() if line.startswith(f"| `{name}`")]
    paper = variant.paper.split(",")[0]
    assert rows and (paper in " ".join(rows) or name == "plackett_luce"), (name, rows)


def test_no_loss_stands_beside_the_table() -> None:
    used = {variant.loss for variant in VARIANTS.values() if variant.over == "pairs"}
    assert used == pairs.LOSSES.keys()
