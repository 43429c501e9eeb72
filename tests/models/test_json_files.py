"""Broken files of a model's folder are refused by name."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from espalier.errors import ModelError
from espalier.models.load import check_causal, read_limit
from tiny import tiny_model, tiny_tokenizer


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "m"
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[1]", r"config\.json holds a list, expected an object"),
        (b"null", r"config\.json holds null"),
        (b'"x"', r"config\.json holds a string"),
        (b"{", r"config\.json is not JSON"),
        (b"", r"config\.json is not JSON"),
        (b"\xff\xfe{}", r"config\.json is not UTF-8"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, r"config\.json is nested too deeply"),
    ],
)
def test_a_config_that_is_no_object_is_refused(model: Path, text: bytes, message: str) -> None:
    (model / "config.json").write_bytes(text)
    for read in (check_causal, read_limit):
        with pytest.raises(ModelError, match=message):
            read(str(model))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", ["llama"]),
        ("model_type", {}),
        ("architectures", "LlamaForCausalLM"),
        ("architectures", [1]),
        ("auto_map", "evil.Z"),
        ("auto_map", ["a"]),
        ("quantization_config", "x"),
        ("quantization_config", [1]),
    ],
)
def test_a_field_of_another_kind_is_refused(model: Path, field: str, value: object) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, field: value}))
    with pytest.raises(ModelError, match=f"{field} is "):
        check_causal(str(model))


def test_a_config_that_cannot_be_opened_is_refused(model: Path) -> None:
    (model / "config.json").unlink()
    (model / "config.json").mkdir()
    with pytest.raises(ModelError):
        check_causal(str(model))
    (model / "config.json").rmdir()
    os.symlink(model / "config.json", model / "config.json")
    with pytest.raises(ModelError):
        check_causal(str(model))
