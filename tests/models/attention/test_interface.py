"""Forest attention against dense attention under an ancestor mask."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from espalier.forest.pack import pack
from espalier.models.attention import cpu as attention_cpu
from espalier.models.attention.forest import Forest, path_mask
from espalier.models.attention.interface import NAME, forest_attention, own_attention, use_forest
from espalier.types import Batch, Sample
from samples import sample
from tiny import tiny_model

HEADS, KV_HEADS, D = 4, 2, 8
MODULE: Any = SimpleNamespace(layer_idx=0)


def deep_batch() -> Batch:
    """Five levels of runs between 16 and 23 tokens, a second tree, and a sample on its own."""
    group: list[Sample] = []
    stem: list[int] = []
    for level in range(5):
        stem = stem + [level] * (16 + level)
        group += [sample(stem, [50 + level, 7, 8]), sample(stem, [60 + level, 7])]
    other = [[sample([9] * 17, [1, 2]), sample([9] * 17, [3, 4])], [sample([5] * 3, [6] * 4)]]
    return pack([group, *other], {})


def ancestors(batch: Batch) -> tuple[Tensor, Tensor]:
    """Which key each query sees [N, N] and how far back it lies on the path, from parents alone."""
    n = batch.inputs_N.numel()
    seen = torch.zeros(n, n, dtype=torch.bool)
    for s in batch.segments:
        path = list(range(s.start, s.start + s.length))
        for i, query in enumerate(path):
            seen[query, path[: i + 1]] = True
            parent = s.parent
            while parent >= 0:
                p = batch.segments[parent]
                seen[query, p.start : p.start + p.length] = True
                parent = p.parent
    back = batch.positions_N[:, None] - batch.positions_N[None]
    return seen, back


def dense(
    q: Tensor, k: Tensor, v: Tensor, batch: Batch, scaling: float, window: int | None, softcap: float | None
) -> Tensor:
    seen, back = ancestors(batch)
    if window:
        seen = seen & (back < window)
    k, v = (x.repeat_interleave(HEADS // x.shape[1], 1) for x in (k, v))
    scores = q @ k.mT * scaling
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    return (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v).transpose(1, 2)


def random_qkv(n: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, HEADS, n, D), (1, KV_HEADS, n, D), (1, KV_HEADS, n, D)]
    return [torch.randn(*s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 1, 7, 15, 16, 20, 1000])
@pytest.mark.parametrize("scaling", [None, 0.7])
def test_equals_dense_attention(window: int | None, softcap: float | None, scaling: float | None) -> None:
    batch = deep_batch()
    assert max(s.depth for s in batch.segments) == 16 + 17 + 18 + 19 + 20
    forest = Forest(batch.segments)
    q, k, v = random_qkv(batch.inputs_N.numel())
    got, none = forest_attention(
        MODULE, q, k, v, None, scaling=scaling, sliding_window=window, softcap=softcap, forest=forest
    )
    assert none is None
    expected = dense(q, k, v, batch, scaling or D**-0.5, window, softcap)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-13)
    cotangent = torch.randn(got.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for a, b in zip(
        torch.autograd.grad(got, (q, k, v), cotangent), torch.autograd.grad(expected, (q, k, v), cotangent), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("piece", [1, 5, 16, 1000])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_by_keys_equals_dense_attention_in_any_pieces(
    monkeypatch: pytest.MonkeyPatch, piece: int, kv_heads: int
) -> None:
    monkeypatch.setattr(attention_cpu, "PIECE", piece)
    batch = deep_batch()
    q, k, v = (x.detach()[:, : kv_heads if i else HEADS] for i, x in enumerate(random_qkv(batch.inputs_N.numel())))
    if kv_heads > KV_HEADS:
        k, v = (torch.cat([x, x.flip(-1)], 1) for x in (k, v))
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    got = attention_cpu.attend(q, k, v, Forest(batch.segments), 0.3)
    expected = dense(q, k, v, batch, 0.3, None, None)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-13)
    cotangent = torch.randn(got.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for a, b in zip(
        torch.autograd.grad(got, (q, k, v), cotangent), torch.autograd.grad(expected, (q, k, v), cotangent), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("options", "taken"), [
    ({}, True), ({"sliding_window": 92}, True), ({"sliding_window": 91}, False), ({"softcap": 2.0}, False),
])  # fmt: skip
def test_attention_by_keys_is_taken_where_a_path_is_seen_whole(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], taken: bool
) -> None:
    calls: list[int] = []
    real = attention_cpu.attend

    def spy(*args: Any) -> Tensor:
        calls.append(1)
        return real(*args)

    monkeypatch.setattr(attention_cpu, "attend", spy)
    batch = deep_batch()
    assert max(s.depth + s.length for s in batch.segments) == 92
    q, k, v = random_qkv(batch.inputs_N.numel())
    forest_attention(MODULE, q, k, v, None, forest=Forest(batch.segments), **options)
    assert bool(calls) == taken


def test_path_mask_counts_the_token_itself() -> None:
    assert path_mask(3, 4, 2, torch.device("cpu")).int().tolist() == [[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]


def test_a_sibling_never_leaks_not_even_nan() -> None:
    batch = pack([[sample([1] * 20, [2] * 5), sample([1] * 20, [3] * 5)]], {})
    q, k, v = (x.detach() for x in random_qkv(batch.inputs_N.numel()))
    clean, _ = forest_attention(MODULE, q, k, v, None, forest=Forest(batch.segments))
    for x in (q, k, v):
        x[:, :, 24:] = torch.nan  # the second answer
    got, _ = forest_attention(MODULE, q, k, v, None, forest=Forest(batch.segments))
    assert torch.equal(got[:, :24], clean[:, :24])
    assert got[:, 24:].isnan().all()


def test_unknown_arguments_are_refused_by_name() -> None:
    batch = deep_batch()
    q, k, v = random_qkv(batch.inputs_N.numel())
    forest = Forest(batch.segments)
    for extra in ({"s_aux": torch.zeros(HEADS)}, {"position_bias": 1.0}):
        with pytest.raises(TypeError, match=rf"SimpleNamespace passes {next(iter(extra))}.*layout: padded"):
            forest_attention(MODULE, q, k, v, None, forest=forest, **extra)
    forest_attention(MODULE, q, k, v, None, forest=forest, s_aux=None, use_cache=False)
    with pytest.raises(TypeError, match="later tokens"):
        forest_attention(MODULE, q, k, v, None, forest=forest, is_causal=False)
    with pytest.raises(TypeError, match=r"got no forest.*layout: padded"):
        forest_attention(MODULE, q, k, v, None)


def test_gradients_of_a_bf16_prefix_are_added_up_in_float32() -> None:
    """64 children send the same small gradient; in bf16 the sum stalls where a summand is below half a unit."""
    children = 64
    group = [sample([1] * 20, [10 + i, 3]) for i in range(children)]
    batch = pack([group], {})
    n = batch.inputs_N.numel()
    assert n == 20 + children
    forest = Forest(batch.segments)

    def gradients(dtype: torch.dtype, naive: bool = False) -> list[Tensor]:
        q, k, v = random_qkv(n, torch.bfloat16)
        q, k, v = (x.detach().to(dtype).requires_grad_() for x in (q, k, v))
        if naive:
            outs = [
                torch.nn.functional.scaled_dot_product_attention(
                    q[:, :, i : i + 1],
                    torch.cat([k[:, :, :20], k[:, :, i : i + 1]], 2),
                    torch.cat([v[:, :, :20], v[:, :, i : i + 1]], 2),
                    enable_gqa=True,
                )
                for i in range(20, n)
            ]
            out = torch.cat(outs, 2).transpose(1, 2)
        else:
            out = forest_attention(MODULE, q, k, v, None, forest=forest)[0][:, 20:]
        out.backward(torch.ones_like(out))
        assert v.grad is not None
        assert k.grad is not None
        return [x.grad[:, :, :20].double() for x in (k, v) if x.grad is not None]

    truth = gradients(torch.float64)
    ours, naive = gradients(torch.bfloat16), gradients(torch.bfloat16, naive=True)
    for exact, a, b in zip(truth, ours, naive, strict=True):
        error, naive_error = ((x - exact).norm() / exact.norm() for x in (a, b))
        assert error < 4e-3  # one rounding to bf16
        assert naive_error > 2 * error


def test_own_attention_is_the_architectures_and_gives_back_what_was_there() -> None:
    model: Any = tiny_model("llama")
    for before in ("sdpa", "eager"):
        model.set_attn_implementation(before)
        with own_attention(model):
            assert model.config._attn_implementation == before
        assert model.config._attn_implementation == before
    use_forest(model)
    assert model.config._attn_implementation == NAME
    x = torch.arange(5, 15)[None]
    with own_attention(model):
        assert model.config._attn_implementation == "sdpa"
        plain = model(x).logits
    assert model.config._attn_implementation == NAME
    model.set_attn_implementation("sdpa")
    assert torch.equal(model(x).logits, plain)


def test_own_attention_is_eager_for_an_architecture_without_sdpa(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = tiny_model("llama")
    use_forest(model)
    monkeypatch.setattr(type(model), "_supports_sdpa", False)
    with own_attention(model):
        assert model.config._attn_implementation == "eager"
    assert model.config._attn_implementation == NAME


def test_an_error_under_own_attention_gives_back_what_was_there() -> None:
    model: Any = tiny_model("llama")
    use_forest(model)
    with pytest.raises(RuntimeError, match="out of memory"), own_attention(model):
        raise RuntimeError("out of memory")
    assert model.config._attn_implementation == NAME
