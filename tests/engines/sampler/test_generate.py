"""The sampler on `generate`: greedy and drawn tokens, their log-probabilities, what stays as it was."""

from __future__ import annotations

import pytest
import torch

from drawing import PROMPTS, at, drained, draw_all, greedy, requests, response, scored, teacher_forced
from espalier.engines.protocols import Request, samples_of
from espalier.engines.sampler.generate import GenerateSampler
from espalier.engines.sampler.local import LocalSampler
from espalier.errors import ConfigError, ModelError
from tiny import tiny_model, tiny_tokenizer


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mamba", "qwen3_next", "lfm2"])
def test_greedy_is_argmax_one_prompt_at_a_time(family: str) -> None:
    model = tiny_model(family)
    tolerance = 5e-5 if family == "qwen3_next" else 1e-5  # its chunked and recurrent forms round apart
    groups = draw_all(GenerateSampler(model), PROMPTS, 2, at(0.0, max_tokens=6))
    model.eval()
    for prompt, (sample, other) in zip(PROMPTS, groups, strict=True):
        assert response(sample) == greedy(model, prompt, 6) == response(other)
        assert sample.tokens[: len(prompt)] == prompt and not any(sample.mask[: len(prompt)])
        assert sample.stop == "length" and sample.temperature == 1
        assert scored(sample) == pytest.approx(teacher_forced(model, sample), abs=tolerance)


def test_it_draws_what_the_embedded_sampler_draws() -> None:
    """Same uniform numbers, same distributions: every parameter means the same in both."""
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    for fields in (
        {"temperature": 0.7, "stop": (7, 9, 11)},
        {"top_k": 5, "stop": (7, 9, 11)},
        {"top_p": 0.7, "min_p": 0.02},
        {"repetition_penalty": 1.8},
        {"stop_strings": ("a", "Q", "9", "/")},
    ):
        params = at(**{"temperature": 1.0, "max_tokens": 12, **fields})
        one = draw_all(LocalSampler(model, tokenizer=tokenizer), PROMPTS, 3, params)
        other = draw_all(GenerateSampler(model, tokenizer=tokenizer), PROMPTS, 3, params)
        for mine, theirs in zip(samples_of(one), samples_of(other), strict=True):
            assert response(mine) == response(theirs) and mine.stop == theirs.stop, fields
            assert mine.streams.keys() == theirs.streams.keys()
            for name in mine.streams:
                assert scored(mine, name) == pytest.approx(scored(theirs, name), abs=1e-5)


def test_the_same_seed_gives_the_same_tokens_whatever_else_is_in_the_batch() -> None:
    model = tiny_model("gpt2")
    together = draw_all(GenerateSampler(model), PROMPTS, 4, at(1.0))
    apart = draw_all(GenerateSampler(model, rows=1), PROMPTS, 4, at(1.0))
    tokens = [[response(s) for s in group] for group in together]
    assert tokens == [[response(s) for s in group] for group in apart]
    assert len({tuple(r) for r in tokens[0]}) == 4  # four k, four responses
    other = draw_all(GenerateSampler(model), PROMPTS[:1], 1, at(1.0, seed=12))
    assert response(other[0][0]) != tokens[0][0]


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_model("gemma2")
    model.set_attn_implementation("flex_attention")  # any that is neither sdpa nor eager
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.min_new_tokens = 4
    frozen = model.get_input_embeddings()
    frozen.training = False
    defaults = model.generation_config
    got = draw_all(GenerateSampler(model), PROMPTS[:2], 1, at(0.0, max_tokens=5))
    assert model.config._attn_implementation == "flex_attention" and model.generation_config is defaults
    assert model.training and model.model.layers[0].mlp.training and not frozen.training
    assert all(p.grad is None for p in model.parameters())
    plain = tiny_model("gemma2").eval()  # eager, which alone knows soft-capping
    assert [response(group[0]) for group in got] == [greedy(plain, p, 5) for p in PROMPTS[:2]]


def test_what_the_model_cannot_serve_is_refused() -> None:
    sampler = GenerateSampler(tiny_model("gpt2", n_positions=16), limit=16)
    with pytest.raises(ConfigError, match="task 1 has 12 tokens, and max_tokens is 8; the model takes 16 in all"):
        sampler.submit(requests([[5], [6] * 12], 1, at(1.0)))
    assert not sampler.busy


def test_batches_keep_their_budget_and_their_order() -> None:
    """Lengths 7 2 4 1 10 and 8 to come: 2 x 15 fits 40, 3 x 15 does not; after it 3 x 12 fits; 18 stands alone."""
    sampler = GenerateSampler(tiny_model("llama"), tokens=40)
    sampler.submit(requests(PROMPTS, 1, at(0.0)))
    batches = []
    while sampler.busy:
        batches.append([one.request.row for one in sampler.finished()])
    assert batches == [[0, 1], [2, 3], [4]]
    stateful = GenerateSampler(tiny_model("lfm2"))
    stateful.submit(requests([*PROMPTS, [8, 9]], 1, at(0.0, max_tokens=1)))
    lengths = []
    while stateful.busy:
        lengths.append([len(one.request.prompt) for one in stateful.finished()])
    assert lengths == [[7], [2, 2], [4], [1], [10]]


def test_cancelled_and_interrupted_work_is_not_returned() -> None:
    interruptions = iter([False, True, True])
    sampler = GenerateSampler(tiny_model("llama"), interrupted=lambda: next(interruptions, False))
    sampler.submit(requests(PROMPTS[:3], 2, at(1.0)))
    sampler.cancel([101])
    assert sampler.finished() == [] and sampler.busy
    whole = draw_all(GenerateSampler(tiny_model("llama")), PROMPTS[:3], 2, at(1.0))
    assert [one.sample for one in drained(sampler)] == [*whole[0], *whole[2]]


def test_load_takes_weights_by_name() -> None:
    model, other = tiny_model("llama"), tiny_model("llama", seed=1)
    sampler = GenerateSampler(model)
    sampler.load(other.state_dict().items(), version=7)
    sampler.submit([Request(PROMPTS[0], 0, 0, at(0.0))])
    (one,) = sampler.finished()
    assert one.sample.version == 7 and response(one.sample) == greedy(other.eval(), PROMPTS[0], 8)
    with pytest.raises(ModelError, match=r"weights odd of shape \(1,\)"):
        sampler.load([("odd", torch.zeros(1))], version=8)
