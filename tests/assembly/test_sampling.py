"""Which sampler a model gets, and what it may hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from drawing import at, response
from espalier.assembly import sampling
from espalier.assembly.answer import Chatter
from espalier.assembly.sampling import build_sampler, draw_groups, room
from espalier.config.sections import ModelConfig
from espalier.engines.sampler.generate import GenerateSampler
from espalier.engines.sampler.local import LocalSampler
from espalier.errors import ConfigError
from espalier.models.load import Loaded, load_model
from espalier.models.policy import Policy
from tiny import tiny_model, tiny_tokenizer


def loaded(folder: Path, family: str = "llama") -> Loaded:
    tiny_model(family).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return load_model(ModelConfig(model=str(folder)))


def test_families_that_pack_get_the_embedded_sampler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama: 256 bytes of keys and values a token."""
    monkeypatch.setattr(sampling, "free_memory", lambda: 4 * 256 * 10_000)
    model = loaded(tmp_path)
    built = build_sampler(model)
    assert isinstance(built.sampler, LocalSampler)
    assert (built.rows, built.tokens, built.bytes) == (256, 10_000, 256 * 10_000)
    assert built.note == "sampler local: up to 256 answers at the same time"
    sized = build_sampler(model, rows=10, longest=100).note
    assert sized == "sampler local: up to 10 answers and keys and values of 1,120 tokens at the same time"
    assert build_sampler(model, rows=10, longest=100).tokens == 10 * 112
    assert build_sampler(model, rows=10, tokens=77, longest=100).tokens == 77
    chosen = build_sampler(model, kind="generate")
    assert isinstance(chosen.sampler, GenerateSampler) and chosen.note.startswith("sampler generate (as configured)")
    padded = Policy(model.model, "padded")
    assert isinstance(build_sampler(model, padded).sampler, GenerateSampler)
    with pytest.raises(ConfigError, match="sampler is local, but the layout is padded; set sampler to auto"):
        build_sampler(model, padded, kind="local")


@pytest.mark.parametrize("family", ["lfm2", "mamba"])
def test_families_with_state_get_generate(tmp_path: Path, family: str) -> None:
    """mamba: no heads, and no keys and values."""
    model = loaded(tmp_path, family)
    built = build_sampler(model)
    assert isinstance(built.sampler, GenerateSampler) and "carry state along a row" in built.note
    assert (built.bytes == 0) == (family == "mamba")
    groups = draw_groups(built.sampler, [[5, 6], [7]], 2, [at(1.0), at(1.0, max_tokens=3)])
    assert [[len(response(s)) for s in group] for group in groups] == [[8, 8], [3, 3]]
    with pytest.raises(ConfigError, match=f"sampler is local, but {family.title()}"):
        build_sampler(model, kind="local")


def test_room_ends_at_the_limit_and_at_a_switch_of_the_rope() -> None:
    assert room(10, 50, None, None) == 50
    assert room(10, 50, 40, None) == 30
    assert room(10, 50, 100, 32) == 22
    assert room(33, 50, 100, 32) == 50
    assert room(40, 50, 40, None) == 0


def test_answers_keep_to_the_model_s_limit(tmp_path: Path) -> None:
    loaded(tmp_path)
    chatter = Chatter.load(ModelConfig(model=str(tmp_path)))
    (answer,) = chatter.answer(["a" * 250], chat=False, max_tokens=100, temperature=1.0, top_k=5)
    assert len(answer) <= 6
    with pytest.raises(ConfigError, match="a prompt has 300 tokens; the model takes 256"):
        chatter.answer(["a" * 300], chat=False)
    whole = chatter.answer(["what"], chat=False, max_tokens=40, temperature=1.0, seed=2)[0]
    (cut,) = chatter.answer(["what"], chat=False, max_tokens=40, temperature=1.0, seed=2, stop_strings=(whole[3],))
    assert cut == whole[: whole.index(whole[3]) + 1]
