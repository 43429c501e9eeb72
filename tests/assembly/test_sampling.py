"""Which sampler a model gets, and what it may hold."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from drawing import at, response
from espalier.assembly import sampling
from espalier.assembly.answer import Chatter
from espalier.assembly.rollouts import params_of
from espalier.assembly.sampling import build_sampler, draw_groups, room
from espalier.config.fields import infos
from espalier.config.rollout_sections import RolloutConfig
from espalier.config.sampling import SamplingConfig
from espalier.config.sections import ModelConfig, SampleConfig
from espalier.engines.protocols import SamplingParams
from espalier.engines.sampler.generate import GenerateSampler
from espalier.engines.sampler.local import LocalSampler
from espalier.engines.sampler.packed import is_packed
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
    assert build_sampler(model, most=12).rows == 12 and build_sampler(model, most=500).rows == 256
    assert [build_sampler(model, kind="generate", most=most).rows for most in (0, 12, 500)] == [64, 12, 64]
    chosen = build_sampler(model, kind="generate")
    assert isinstance(chosen.sampler, GenerateSampler) and chosen.note.startswith("sampler generate (as configured)")
    padded = Policy(model.model, "padded")
    assert isinstance(build_sampler(model, padded).sampler, GenerateSampler)
    with pytest.raises(ConfigError, match="sampler is local, but the layout is padded; set sampler to auto"):
        build_sampler(model, padded, kind="local")


def test_weights_are_copied_only_where_memory_is_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded(tmp_path)
    size = sum(m.weight.nbytes for m in model.model.modules() if type(m) is torch.nn.Linear)
    for memory, copied in ((8 * size, size), (8 * size - 8, 0)):
        monkeypatch.setattr(sampling, "total_memory", lambda memory=memory: memory)
        built = build_sampler(model)
        assert built.copies == copied
        with built.sampler.drawing():
            assert is_packed(model.model.get_output_embeddings()) == bool(copied)


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
    (answer,) = chatter.answer(["a" * 250], SamplingConfig(max_tokens=100, top_k=5), chat=False)
    assert len(answer) <= 6
    with pytest.raises(ConfigError, match="a prompt has 300 tokens; the model takes 256"):
        chatter.answer(["a" * 300], chat=False)
    whole = chatter.answer(["what"], SamplingConfig(max_tokens=40), chat=False, seed=2)[0]
    stopped = SamplingConfig(max_tokens=40, stop_strings=(whole[3],))
    (cut,) = chatter.answer(["what"], stopped, chat=False, seed=2)
    assert cut == whole[: whole.index(whole[3]) + 1]


def test_one_section_says_how_tokens_are_drawn_each_command_with_its_own_temperature() -> None:
    shared = list(infos(SamplingConfig))
    for section, first, temperature in ((RolloutConfig, "prompts_per_step", 1.0), (SampleConfig, "model", 0.0)):
        names = list(infos(section))
        place = names.index("max_tokens")
        assert (names[0], names[place : place + len(shared)]) == (first, shared)
        assert infos(section)["temperature"].default == temperature
        assert infos(section)["temperature"].description == infos(SamplingConfig)["temperature"].description


def test_every_key_of_sampling_reaches_the_sampler() -> None:
    config = SamplingConfig(
        max_tokens=7, temperature=0.5, top_k=3, top_p=0.9, min_p=0.1, repetition_penalty=1.2, stop_strings=("x",)
    )
    assert params_of(config, [9, 4], seed=5) == SamplingParams(7, 0.5, 3, 0.9, 0.1, 1.2, (4, 9), ("x",), 5)
