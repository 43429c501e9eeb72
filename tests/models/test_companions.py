"""The source's other files are copied, and older transformers read the tokenizer."""

import json
from pathlib import Path

from espalier.config.sections import ModelConfig
from espalier.models.export import export
from espalier.models.load import load_model
from reward_models import source


def test_configs_are_copied_and_weights_are_not(tmp_path: Path) -> None:
    base = source(tmp_path / "base")
    for name in (
        "preprocessor_config.json",
        "LICENSE",
        "optimizer.pt",
        "old.safetensors.index.json",
        "code.py",
        "README.md",
    ):
        (base / name).write_text("{}")
    config = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": "PreTrainedTokenizerFast"}))
    loaded = load_model(ModelConfig(model=str(base)))
    export(loaded.model, loaded.tokenizer, tmp_path / "out", source_dtype=loaded.source_dtype, source=base)
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"preprocessor_config.json", "LICENSE"} <= names
    assert not names & {"optimizer.pt", "old.safetensors.index.json", "code.py"}
    assert (tmp_path / "out" / "README.md").read_text() != "{}"
    written = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast" and "extra_special_tokens" not in written
