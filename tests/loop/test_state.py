"""State, random generators and tensors come back bit for bit, and nothing missing or extra is accepted."""

import json
import math
import random
import sys
from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.errors import CheckpointError
from espalier.files import file_to_tensors, safetensors_size, tensors_to_file
from espalier.loop.state import TrainState, load_rng, rng_state, save_rng, set_rng_state

PLAIN = {
    "step": 3,
    "epoch": 0,
    "position": 12,
    "counters": {"samples": 2**60},
    "state": {"delta": 0.1 + 0.2, "kl_coef": 5e-324, "mean": -0.0},
    "best_score": None,
    "best_step": None,
    "stale": 0,
    "lengths": {},
}


def test_floats_keep_all_their_bits() -> None:
    state = TrainState(**PLAIN)
    back = TrainState.from_json(state.to_json())
    assert back == state
    assert back.state["delta"] == 0.30000000000000004 and back.state["kl_coef"] == 5e-324
    assert math.copysign(1, back.state["mean"]) == -1
    assert back.counters["samples"] == 1152921504606846976
    assert "0.30000000000000004" in state.to_json()


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False)), st.floats(-1e300, 1e300))
def test_any_finite_state_comes_back(table: dict[str, float], best: float) -> None:
    state = TrainState(**{**PLAIN, "state": table, "best_score": best, "best_step": 2})
    assert TrainState.from_json(state.to_json()) == state


@pytest.mark.parametrize("name", list(PLAIN))
def test_a_missing_entry_is_refused_by_name(name: str) -> None:
    rest = {key: value for key, value in PLAIN.items() if key != name}
    with pytest.raises(CheckpointError, match=rf"^state\.json lacks {name};"):
        TrainState.from_json(json.dumps(rest))


def test_unknown_and_wrong_entries_are_refused_by_name() -> None:
    with pytest.raises(CheckpointError, match=r"unknown schedule;"):
        TrainState.from_json(json.dumps({**PLAIN, "schedule": 1}))
    for name, value, expected in (
        ("step", -1, "a count"),
        ("step", 3.0, "a count"),
        ("stale", True, "a count"),
        ("best_score", 1, "a finite float or null"),
        ("state", {"delta": "0.3"}, "finite floats by name"),
        ("lengths", {"metrics.jsonl": None}, "counts by name"),
        ("counters", [1], "counts by name"),
    ):
        with pytest.raises(CheckpointError, match=rf"{name} is .*, expected {expected}"):
            TrainState.from_json(json.dumps({**PLAIN, name: value}))
    for text in ("", "{", "[]", "3"):
        with pytest.raises(CheckpointError, match=r"^state\.json"):
            TrainState.from_json(text)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_is_not_saved(value: float) -> None:
    with pytest.raises(CheckpointError, match=r"best_score is (inf|-inf|nan), expected a finite float"):
        TrainState(**{**PLAIN, "best_score": value}).to_json()
    with pytest.raises(CheckpointError, match=r"state is .*(inf|nan)"):
        TrainState(**{**PLAIN, "state": {"delta": value}}).to_json()


# ------------------------------------------------------------------------------------------------ random generators


def draws() -> list[object]:
    return [
        random.random(),
        random.gauss(0, 1),
        numpy.random.rand(3).tolist(),
        numpy.random.randn(),
        torch.rand(3).tolist(),
        torch.randn(17).tolist(),
    ]


def test_every_generator_continues_its_stream(tmp_path: Path) -> None:
    random.seed(1), numpy.random.seed(2), torch.manual_seed(3)
    draws()  # an odd number of normal draws leaves half a pair waiting in each generator
    save_rng(tmp_path, 3)
    expected = [draws(), draws()]
    random.seed(9), numpy.random.seed(9), torch.manual_seed(9)
    assert draws() != expected[0]
    load_rng(tmp_path, 3)
    assert [draws(), draws()] == expected
    assert [path.name for path in tmp_path.iterdir()] == ["rng-00003.json"]
    with pytest.raises(CheckpointError, match=r"rng-00000\.json is missing"):
        load_rng(tmp_path, 0)


@pytest.mark.parametrize("name", ["python", "numpy", "torch", "cuda"])
def test_a_generator_that_is_missing_or_wrong_is_refused(name: str) -> None:
    state = rng_state()
    with pytest.raises(CheckpointError, match=f"lacks {name}"):
        set_rng_state({key: value for key, value in state.items() if key != name})
    with pytest.raises(CheckpointError, match="unknown other"):
        set_rng_state({**state, "other": None})
    with pytest.raises(CheckpointError):
        set_rng_state({**state, name: "00"})


def test_a_library_that_is_not_loaded_has_no_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    state = rng_state()
    assert state["torch"] is None and state["cuda"] is None and state["python"] is not None
    monkeypatch.undo()
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    set_rng_state(state)
    assert torch.equal(torch.rand(2), expected)


# ---------------------------------------------------------------------------------------------------------- tensors


def test_tensors_keep_dtype_shape_and_bits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tensors = {
        "scalar": torch.tensor(0.1 + 0.2, dtype=torch.float64),
        "count": torch.tensor(2**62 + 1),
        "half": torch.randn(3, 5).bfloat16(),
        "special": torch.tensor([math.nan, math.inf, -0.0, 1e-45]),
        "turned": torch.arange(6, dtype=torch.int32).reshape(2, 3).T,
        "empty": torch.zeros(0, 4),
        "flags": torch.tensor([True, False]),
        "bytes": torch.get_rng_state(),
        "trained": torch.nn.Parameter(torch.randn(2)),
    }
    path = tmp_path / "t.safetensors"
    tensors_to_file(tensors, path)
    back = file_to_tensors(path)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        got = back[name]
        assert got.dtype == tensor.dtype and got.shape == tensor.shape, name
        bits = [one.detach().contiguous().reshape(-1).view(torch.uint8) for one in (got, tensor)]
        assert torch.equal(*bits), name
    assert back["scalar"].item() == 0.30000000000000004 and back["count"].item() == 4611686018427387905
    assert safetensors_size(path) == path.stat().st_size
    tensors_to_file({}, tmp_path / "none.safetensors")
    assert safetensors_size(tmp_path / "none.safetensors") == (tmp_path / "none.safetensors").stat().st_size


def test_a_cut_tensor_file_is_refused_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    tensors_to_file({"w": torch.arange(10)}, path)
    intact = path.read_bytes()
    for cut in (b"", intact[:5], intact[:30], intact[:-1]):
        path.write_bytes(cut)
        with pytest.raises(CheckpointError, match=r"t\.safetensors cannot be read"):
            file_to_tensors(path)
    path.write_bytes(intact[:-1])
    assert safetensors_size(path) == len(intact)
    path.write_bytes(intact[:5])
    with pytest.raises(CheckpointError, match="no readable safetensors header"):
        safetensors_size(path)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"t\.safetensors cannot be read"):
        file_to_tensors(path)
