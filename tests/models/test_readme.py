"""The README of an export runs as it stands, and a user's own is kept."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from adapters import save_base
from espalier.config.sections import ModelConfig
from espalier.data.render.turns import fixed_date
from espalier.models.export import export
from espalier.models.load import load_model
from espalier.models.prepare import prepare
from espalier.models.readme import README, Facts, edited, readme
from reward_models import source, trained, write
from tiny import TEMPLATE, tiny_tokenizer


def code(folder: Path) -> str:
    (block,) = re.findall(r"```python\n(.*?)```", (folder / README).read_text(), re.S)
    return str(block)


def run(folder: Path, base: Path | None = None) -> str:
    """What the code prints; of an adapter, with the place of its base put in."""
    script = code(folder)
    if base is not None:
        assert f'base = "{base.name}"  # where that folder stands' in script
        script = script.replace(f'base = "{base.name}"', f"base = {str(base)!r}")
    ended = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def causal(folder: Path, out: Path, **over: Any) -> Path:
    config = ModelConfig(model=str(folder), **over)
    loaded = load_model(config)
    prepare(loaded, config)
    alone = config.export == "adapter"
    export(loaded.model, loaded.tokenizer, out, source_dtype=loaded.source_dtype, stop_ids=[4, 2], adapter_only=alone)
    return out


def test_every_kind_of_readme_runs(tmp_path: Path) -> None:
    base = source(tmp_path / "base")
    rewarded = write(trained(base, 1), tmp_path / "reward")
    text = (rewarded / README).read_text()
    assert "espalier_reward_bias" in text and "do not cut it off" in text
    assert "tensor([[" in run(rewarded)
    run(write(trained(base, 1, kind="steps"), tmp_path / "process"))
    plain = causal(base, tmp_path / "plain")
    assert "`<|im_end|>` = 4 or `</s>` = 2" in (plain / README).read_text()
    run(plain)
    alone = causal(base, tmp_path / "adapter", lora_rank=2, add_tokens=("<|new|>",), export="adapter")
    assert ", mean_resizing=False)" in code(alone) or "grow" not in (alone / README).read_text()
    assert str(tmp_path) not in (alone / README).read_text()
    run(alone, base)


def test_a_date_that_was_fixed_in_training_is_said() -> None:
    dated = tiny_tokenizer(template="{{ strftime_now('%d %b %Y') }}" + TEMPLATE)
    assert f"the date was fixed to {fixed_date('%Y-%m-%d')}" in readme(Facts("A", "reward model"), dated)
    assert "date" not in readme(Facts("A", "reward model"), tiny_tokenizer())


@pytest.mark.parametrize("own", ["mine", "edited"])
def test_a_users_readme_is_kept(tmp_path: Path, own: str) -> None:
    base = source(tmp_path / "base")
    out = causal(base, tmp_path / "out")
    first = (out / README).read_text()
    assert edited(out) is None
    causal(base, out)
    assert (out / README).read_text() == first
    (out / README).write_text("mine" if own == "mine" else first + "mine")
    causal(base, out)
    assert (out / README).read_text().endswith("mine")


def test_new_rows_of_an_adapters_base_are_drawn_from_no_old_ones(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", vocab_size=102)
    alone = causal(Path(base), tmp_path / "adapter", lora_rank=2, add_tokens=("<|new|>",), export="adapter")
    assert "model.resize_token_embeddings(103, mean_resizing=False)" in code(alone)
