"""An adapter that is continued starts from the numbers of its file."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters import lora, make_adapter, save_base
from espalier.checks.adapter import adapter
from espalier.commands import main as cli
from espalier.errors import CheckError
from espalier.models import prepare
from scoring import CHECKS, Place, pairs


def test_tensors_are_compared_to_the_bit() -> None:
    stored = {"a": torch.ones(2, 3), "b": torch.arange(4.0)}
    assert adapter(dict(stored), stored).verdict == "pass"
    for other in (torch.zeros(4), torch.arange(5.0), torch.arange(4.0) * (1 + 1e-6)):
        outcome = adapter({**stored, "b": other}, stored)
        assert outcome.verdict == "fail" and outcome.value == "1 of 2 tensors as in the file"
        assert "b is another one" in outcome.way_out
    assert adapter({"x": torch.ones(1)}, stored).verdict == "fail"
    assert adapter({}, {}).verdict == "skipped"


def test_a_tensor_that_no_live_one_has_is_told() -> None:
    stored = {"a": torch.ones(2), "gone": torch.ones(2)}
    outcome = adapter({"a": torch.ones(2)}, stored)
    assert outcome.verdict == "fail" and "gone" in outcome.way_out


@pytest.fixture
def argv(tmp_path: Path) -> list[str]:
    """A run that goes on with an adapter of peft's."""
    base = save_base(tmp_path / "base")
    trained = make_adapter(base, lora(), tmp_path / "adapter")
    place = Place(tmp_path)
    data = place.data("pairs", pairs(16, seed=1))
    flags = ("--data", data, "--steps", "1", "--adapter", trained, "--skip-checks", *CHECKS)
    return ["--debug", *place.argv("dpo", "run", *flags, model=base)]


def test_a_run_goes_on_from_the_file(argv: list[str], tmp_path: Path) -> None:
    assert cli.main(argv) == 0
    checks = json.loads((tmp_path / "run" / "preflight.json").read_text())["checks"]
    (found,) = [c for c in checks if c["name"] == "adapter"]
    assert found["verdict"] == "pass" and found["value"].endswith("tensors as in the file")


@pytest.mark.parametrize("part", ["lora_A", "lora_B"])
def test_an_adapter_that_starts_again_is_seen(argv: list[str], monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """B = 0 is an adapter that does nothing, as a new one is; A is drawn at random."""
    put = prepare.add_adapter

    def forgotten(model: Any, *more: Any, **names: Any) -> list[str]:
        notes = put(model, *more, **names)
        for name, parameter in model.named_parameters():
            if part in name:
                parameter.data.zero_()
        return notes

    monkeypatch.setattr(prepare, "add_adapter", forgotten)
    with pytest.raises(CheckError, match=rf"adapter: \d+ of \d+ tensors as in the file.*{part}"):
        cli.main(argv)
