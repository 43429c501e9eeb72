"""Noise belongs to a sample: by its statistics, by its keys, and by a mask drawn by hand."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from espalier.errors import ModelError
from espalier.forest.pack import pack, totals
from espalier.forest.trie import laid_length
from espalier.models.attention.forest import Forest
from espalier.models.attention.interface import forest_attention
from espalier.models.noise import KeyedDropout, Noise, neftune, replace_dropouts
from espalier.models.policy import Policy
from espalier.types import Batch
from samples import Groups, sample
from tiny import tiny_model


def noise(keys: list[int], segments: list[int], *, seed: int = 0, step: int = 0) -> Noise:
    return Noise(seed, step, keys, [n + 1 for n in segments], segments)


def test_draws_are_functions_of_their_keys() -> None:
    first = noise([7, 9], [4, 3])
    assert torch.equal(first.uniform("a", 0, (4, 5)), noise([1, 7], [2, 4]).uniform("a", 1, (4, 5)))
    assert torch.equal(first.uniform("a", 0, (4, 5))[:2], first.uniform("a", 0, (2, 5)))  # row r is position r's
    others = [
        first.uniform("b", 0, (4, 5)),
        first.uniform("a", 1, (4, 5)),
        noise([7], [4], seed=1).uniform("a", 0, (4, 5)),
        noise([7], [4], step=1).uniform("a", 0, (4, 5)),
    ]
    assert all((first.uniform("a", 0, (4, 5)) - other).abs().min() > 0 for other in others)
    rows = first.rows("a", 5)
    assert torch.equal(rows, torch.cat([first.uniform("a", 0, (4, 5)), first.uniform("a", 1, (3, 5))]))


def test_neftune_is_uniform_with_the_variance_of_the_paper() -> None:
    alpha, width, lengths = 5.0, 400, [101, 401]
    made = Noise(0, 0, [3, 4], lengths, [100, 400])
    added = neftune(torch.zeros(500, width, dtype=torch.float64), made, alpha).split([100, 400])
    for part, length in zip(added, lengths, strict=True):
        assert part.var().item() == pytest.approx(alpha**2 / (3 * length * width), rel=0.02)
        assert abs(part.mean().item()) < 4 * (part.var().item() / part.numel()) ** 0.5
        assert part.abs().max().item() == pytest.approx(alpha / (length * width) ** 0.5, rel=1e-3)
        assert part.abs().max().item() <= alpha / (length * width) ** 0.5


def test_dropout_keeps_one_minus_p_and_divides_by_it() -> None:
    module = KeyedDropout(0.25, "here")
    x = torch.ones(1, 300, 100)
    assert torch.equal(module(x), x)  # no keys: evaluation
    module.current = noise([1, 2], [100, 200])
    out = module(x)
    assert out.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert (out == 0).double().mean().item() == pytest.approx(0.25, abs=0.01)
    assert torch.equal(out, module(x))
    alone = KeyedDropout(0.25, "here")
    alone.current = noise([2], [200])
    assert torch.equal(alone(x[:, :200]), out[:, 100:])
    module.current = noise([1, 2], [100, 200], step=1)
    assert not torch.equal(module(x), out)
    assert torch.equal(module.eval()(x), x)


def test_dropout_of_padded_rows_is_that_of_packed_ones() -> None:
    module = KeyedDropout(0.5, "here")
    module.current = noise([1, 2], [3, 5])
    flat, padded = module(torch.ones(1, 8, 6))[0], module(torch.ones(2, 5, 6))
    assert torch.equal(padded[0, :3], flat[:3])
    assert torch.equal(padded[1], flat[3:])
    with pytest.raises(ModelError, match=r"dropout here got \(1, 7, 6\).*8 tokens.*dropout: false"):
        module(torch.ones(1, 7, 6))


def test_every_dropout_that_is_on_is_replaced_and_named_by_its_place() -> None:
    model = nn.Sequential(nn.Dropout(0.1), nn.ModuleDict({"default": nn.Dropout(0.2)}), nn.Dropout(0.0))
    found = replace_dropouts(model)
    assert [(d.p, d.place) for d in found] == [(0.1, ".0"), (0.2, "1.default")]
    assert isinstance(model[2], nn.Dropout)


def test_attention_dropout_drops_weights_by_masks_of_the_keys() -> None:
    heads, d, p = 4, 8, 0.3
    groups = [[sample([1] * 9, [2, 3])], [sample([4] * 5, [6, 7, 8])]]
    batch = pack(groups, {}, share=False)
    made = noise([11, 12], [10, 7], step=3)
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, n, 17, d, generator=g, dtype=torch.float64) for n in (heads, 2, 2))
    for window, softcap in ((None, None), (4, None), (None, 2.0)):
        module: Any = SimpleNamespace(layer_idx=5)
        got, _ = forest_attention(
            module, q, k, v, None, dropout=p, sliding_window=window, softcap=softcap,
            forest=Forest(batch.segments, noise=made),
        )  # fmt: skip
        outs = []
        for i, part in enumerate((slice(0, 10), slice(10, 17))):
            scores = q[:, :, part] @ k[:, :, part].repeat_interleave(2, 1).mT * d**-0.5
            if softcap:
                scores = softcap * torch.tanh(scores / softcap)
            n = scores.shape[-1]
            back = torch.arange(n)[:, None] - torch.arange(n)
            seen = (back >= 0) & (back < (window or n))
            weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
            keep = made.uniform("attention.5", i, (1, heads, n, n)) >= p
            outs.append(weights * keep / (1 - p) @ v[:, :, part].repeat_interleave(2, 1))
        torch.testing.assert_close(got, torch.cat(outs, 2).transpose(1, 2), rtol=0, atol=1e-13)
    off, _ = forest_attention(module, q, k, v, None, dropout=p, softcap=softcap, forest=Forest(batch.segments))
    none, _ = forest_attention(module, q, k, v, None, softcap=softcap, forest=Forest(batch.segments))
    assert torch.equal(off, none)  # no keys: evaluation
    other: Any = SimpleNamespace(layer_idx=6)
    again, _ = forest_attention(
        other, q, k, v, None, dropout=p, softcap=softcap, forest=Forest(batch.segments, noise=made)
    )
    assert not torch.equal(again, got)


DROPOUTS: dict[str, dict[str, float]] = {
    "gpt2": {"attn_pdrop": 0.3, "resid_pdrop": 0.2, "embd_pdrop": 0.1},
    "llama": {"attention_dropout": 0.3},
    "gpt_neox": {"attention_dropout": 0.3, "hidden_dropout": 0.2},
}


def step_groups() -> Groups:
    stem = list(range(10, 30))
    return [[sample(stem, [5, 6, 7], key=1), sample(stem, [8, 9], key=2)], [sample([3, 4, 5], [6, 7], key=3)]]


def noise_of(batch: Batch, step: int) -> Noise:
    laid = [s for s in batch.samples if laid_length(s)]
    lengths = [s.length for s in batch.segments]
    return Noise(0, step, [s.key for s in laid], [len(s.tokens) for s in laid], lengths)


def run(policy: Policy, groups: Groups, step: int | None = 0) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Log-probabilities of each sample, and gradients of their sum."""
    batch = pack(groups, totals(groups), share=policy.shares)
    policy.zero_grad()
    logprobs = policy(batch, noise=None if step is None else noise_of(batch, step))["logprobs"][batch.score]
    logprobs.sum().backward()
    grads = {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}
    return [logprobs[batch.rows == i].detach() for i in range(len(batch.samples))], grads


@pytest.mark.parametrize("family", DROPOUTS)
def test_dropout_of_a_sample_does_not_depend_on_its_neighbours(family: str) -> None:
    policy = Policy(tiny_model(family, **DROPOUTS[family]).double(), "forest", dropout=True)
    assert not policy.shares
    groups = step_groups()
    together, grads = run(policy, groups)
    turned, turned_grads = run(policy, [groups[1], groups[0][::-1]])
    for a, b in zip(together, [turned[2], turned[1], turned[0]], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(turned_grads, grads, rtol=1e-6, atol=1e-6)
    for other in (run(policy, groups, step=1)[0], run(policy, groups, step=None)[0]):
        assert all((a - b).abs().max() > 1e-3 for a, b in zip(together, other, strict=True))


@pytest.mark.parametrize("family", DROPOUTS)
def test_dropout_is_the_same_when_a_checkpointed_layer_runs_again(family: str) -> None:
    model: Any = tiny_model(family, **DROPOUTS[family]).double()
    other = copy.deepcopy(model)
    other.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    logprobs, grads = run(Policy(model, "forest", dropout=True), step_groups())
    again, again_grads = run(Policy(other, "forest", dropout=True), step_groups())
    assert all(torch.equal(a, b) for a, b in zip(logprobs, again, strict=True))
    torch.testing.assert_close(again_grads, grads, rtol=1e-6, atol=1e-6)


def test_padded_rows_take_the_same_dropout_as_packed_ones() -> None:
    options = {"resid_pdrop": 0.2, "embd_pdrop": 0.1}
    packed, grads = run(Policy(tiny_model("gpt2", **options).double(), "chain", dropout=True), step_groups())
    padded, padded_grads = run(Policy(tiny_model("gpt2", **options).double(), "padded", dropout=True), step_groups())
    for a, b in zip(packed, padded, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(padded_grads, grads, rtol=1e-9, atol=1e-9)


def test_noise_that_cannot_be_keyed_is_refused() -> None:
    with pytest.raises(ModelError, match=r"attention_dropout 0\.3.*padded.*dropout: false"):
        Policy(tiny_model("llama", attention_dropout=0.3), "padded", dropout=True)
    with pytest.raises(ModelError, match=r"attn_pdrop 0\.3.*padded"):
        Policy(tiny_model("gpt2", attn_pdrop=0.3), "padded", dropout=True)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "vocab_size": 64, "head_dim": 8}
    config = AutoConfig.for_model(
        "seed_oss", **sizes, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, residual_dropout=0.2
    )
    with pytest.raises(ModelError, match=r"residual_dropout 0\.2.*forest"):
        Policy(AutoModelForCausalLM.from_config(config), "forest", dropout=True)
    Policy(AutoModelForCausalLM.from_config(config), "forest")


@pytest.mark.parametrize("layout", ["forest", "padded"])
def test_neftune_moves_embeddings_by_the_sample_s_own_noise(layout: Any) -> None:
    model: Any = tiny_model("llama").double()
    alpha = 5.0
    policy = Policy(model, layout, neftune_alpha=alpha)
    got, _ = run(policy, step_groups(), step=4)
    for s, logprobs in zip((s for g in step_groups() for s in g), got, strict=True):
        tokens = torch.tensor(s.tokens)
        n, width = len(tokens) - 1, 32
        draws = Noise(0, 4, [s.key], [n + 1], [n]).uniform("neftune", 0, (n, width)).double() * 2 - 1
        embedded = model.get_input_embeddings()(tokens[:-1]) + draws * alpha / (len(tokens) * width) ** 0.5
        batch = pack([[s]], {})
        own = Policy(copy.deepcopy(model), "chain").model
        hidden = own.model(
            inputs_embeds=embedded[None], position_ids=torch.arange(n)[None], forest=Forest(batch.segments)
        ).last_hidden_state[0]
        want = own.lm_head(hidden).log_softmax(-1)[torch.arange(n), tokens[1:]][torch.tensor(s.mask[1:])]
        torch.testing.assert_close(logprobs, want.detach(), rtol=1e-6, atol=1e-6)
    assert set(run(policy, step_groups(), step=None)[1]) == set(run(policy, step_groups(), step=4)[1])
