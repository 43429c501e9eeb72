"""One decode step against attention written out, row by row, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from espalier.models.attention.decode import Decode

KEY_HEADS, GROUP = 2, 3
SCALING = 0.3


def blocks(rows: int, tokens: int, block: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    lengths = [min(block, tokens - start) for start in range(0, tokens, block)]
    return [torch.randn(rows, KEY_HEADS, n, width).to(dtype) for n in lengths]


def by_hand(q: Tensor, keys: Tensor, values: Tensor, window: int | None, softcap: float | None) -> Tensor:
    """Attention of the last token of one row: q [H, d], keys and values [K, T, d]; [H, d]."""
    out = []
    for head, query in enumerate(q):
        scores = keys[head // GROUP] @ query * SCALING
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        if window:
            scores = scores[-window:]
        out.append(scores.softmax(0) @ values[head // GROUP][-len(scores) :])
    return torch.stack(out)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("lengths", "window"), [([6, 0, 3, 4], None), ([5, 5, 5, 5], None), ([6, 0, 3, 4], 3)])
@pytest.mark.parametrize("block", [2, 3, 50])
@pytest.mark.parametrize("widths", [(8, 8), (8, 12), (12, 8)])
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_own_keys_in_blocks(
    dtype: torch.dtype,
    lengths: list[int],
    window: int | None,
    block: int,
    widths: tuple[int, int],
    softcap: float | None,
) -> None:
    """Rows of different length, keys and values of different width, in two layers of other widths."""
    torch.manual_seed(0)
    rows, room = len(lengths), 7
    both = (widths, (16, 4))
    keys = {i: blocks(rows + 2, room, block, k, dtype) for i, (k, _) in enumerate(both)}
    values = {i: blocks(rows + 2, room, block, v, dtype) for i, (_, v) in enumerate(both)}
    step = Decode(keys, values, lengths, [0] * rows, [], torch.device("cpu"))
    for layer, (k, v) in enumerate(both):
        query = torch.randn(rows, KEY_HEADS * GROUP, 1, k).to(dtype)
        key, value = torch.randn(rows, KEY_HEADS, 1, k).to(dtype), torch.randn(rows, KEY_HEADS, 1, v).to(dtype)
        out = step.attend(layer, query, key, value, SCALING, window, softcap)[:, 0]
        for row, n in enumerate(lengths):
            own = [torch.cat([b[row, :, :] for b in kind[layer]], dim=1)[:, : n + 1] for kind in (keys, values)]
            assert torch.equal(own[0][:, n], key[row, :, 0]) and torch.equal(own[1][:, n], value[row, :, 0])
            wanted = by_hand(query[row, :, 0].double(), own[0].double(), own[1].double(), window, softcap)
            close = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.03}[dtype]
            torch.testing.assert_close(out[row].double(), wanted, atol=close, rtol=0)
