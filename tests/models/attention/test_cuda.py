"""The CUDA paths' indices and masks, checked on the CPU against a dense ancestor mask; kernels only where CUDA is."""

import random

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from espalier.forest.pack import pack, totals
from espalier.models.attention.cuda import CudaForest, attend, by_flex
from espalier.models.attention.forest import Forest
from espalier.models.attention.interface import forest_attention
from espalier.types import Sample


def grove(seed: int = 0) -> Forest:
    """Two trees: one with nested shared prefixes of 20 and 38 tokens, one alone."""
    rng = random.Random(seed)

    def tokens(n: int) -> list[int]:
        return [rng.randrange(5, 500) for _ in range(n)]

    def sample(prompt: list[int], n: int) -> Sample:
        s = Sample()
        s.append(prompt, trained=False)
        s.append(tokens(n), trained=True)
        return s

    a = tokens(20)
    b = a + tokens(18)
    groups = [[sample(a, 9), sample(b, 5), sample(b, 30), sample(a, 3)], [sample(tokens(7), 11)]]
    return Forest(pack(groups, totals(groups)).segments)


def dense_mask(forest: Forest, window: int | None) -> torch.Tensor:
    """Which packed token sees which, by walking up from every token."""
    size = sum(forest.lengths)
    seen = torch.zeros(size, size, dtype=torch.bool)
    for s in forest.segments:
        for q in range(s.start, s.start + s.length):
            position, at, path = s.depth + q - s.start, s, []
            while True:
                last = q if at is s else at.start + at.length - 1
                path += [(k, at.depth + k - at.start) for k in range(at.start, last + 1)]
                if at.parent < 0:
                    break
                at = forest.segments[at.parent]
            for k, depth in path:
                seen[q, k] = window is None or position - depth < window
    return seen


@pytest.mark.parametrize("window", [None, 6])
def test_the_ancestor_mask_is_the_walk_to_the_root(window: int | None) -> None:
    forest = grove()
    indices = CudaForest(forest)
    q, k = torch.meshgrid(torch.arange(indices.size), torch.arange(indices.size), indexing="ij")
    zero = torch.zeros(())
    assert torch.equal(indices.sees(window)(zero, zero, q, k), dense_mask(forest, window))


def test_gathered_keys_are_the_path_and_the_segment_itself() -> None:
    forest = grove()
    indices = CudaForest(forest)
    seen = dense_mask(forest, None)
    assert indices.gather is not None
    for i, s in enumerate(forest.segments):
        low, high = indices.cu_keys[i : i + 2].tolist()
        last = s.start + s.length - 1
        mine = indices.gather[low:high]
        assert sorted(mine.tolist()) == seen[last].nonzero()[:, 0].tolist()
        assert indices.positions[mine].tolist() == list(range(high - low))  # in path order
        assert indices.cu_queries[i] == s.start


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (6, None), (None, 3.0), (6, 3.0)])
def test_flex_attention_equals_the_loop_over_segments(window: int | None, softcap: float | None) -> None:
    forest = grove(1)
    size = sum(forest.lengths)
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 4, size, 8), torch.randn(1, 2, size, 8), torch.randn(1, 2, size, 8)
    module = torch.nn.Module()
    expected, _ = forest_attention(
        module, q, k, v, None, scaling=0.3, sliding_window=window, softcap=softcap, forest=forest
    )
    got = by_flex(q, k, v, CudaForest(forest), 0.3, window, softcap, flex_attention)
    assert torch.allclose(got, expected, atol=2e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (6, None), (None, 3.0)])
def test_cuda_kernels_equal_float64(dtype: torch.dtype, window: int | None, softcap: float | None) -> None:
    forest = grove(2)
    size = sum(forest.lengths)
    torch.manual_seed(0)
    tensors = [torch.randn(1, heads, size, 32).to(dtype) for heads in (4, 2, 2)]
    exact = [t.double().requires_grad_() for t in tensors]
    module = torch.nn.Module()
    expected, _ = forest_attention(
        module, *exact, None, scaling=0.2, sliding_window=window, softcap=softcap, forest=forest
    )
    upstream = torch.randn_like(expected)
    expected.backward(upstream)
    on_gpu = [t.cuda().requires_grad_() for t in tensors]
    there = Forest(forest.segments, "cuda")
    got = attend(*on_gpu, there, 0.2, window, softcap)
    got.backward(upstream.to(dtype).cuda())
    bound = 2e-2 if dtype == torch.bfloat16 else 5e-3  # float32 matrix products may run in tf32
    pairs = [(got, expected), *((a.grad, b.grad) for a, b in zip(on_gpu, exact, strict=True))]
    for a, b in pairs:
        assert ((a.double().cpu() - b).norm() / b.norm()).item() < bound
