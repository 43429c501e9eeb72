"""Linear layers on CPU while a sampler draws: float32 weights laid out in blocks, as oneDNN reads them.

A decode step multiplies a few rows by every weight of the model, which come from memory each time. Laid out as matrices
they are read, and packed for the product, at half to three quarters of the speed of blocks (docs/log.md). Blocks are a
copy: it is made when drawing starts and dropped at its end, when training needs the room.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

Product = Callable[[Tensor], Tensor]
"""x @ weight.T + bias in the last dimension of x."""

# The rows that blocks are chosen for; products of more or fewer rows read them as well.
ROWS = 64
_PACKED = "packed_product"


@functools.cache
def _works() -> bool:
    """Whether this build of torch has oneDNN, and its product of blocks is that of the matrix."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    weight, x = torch.arange(6.0).view(2, 3), torch.arange(12.0).view(4, 1, 3)
    try:
        return torch.equal(product(weight, None)(x), nn.functional.linear(x, weight))
    except (AttributeError, RuntimeError, TypeError):
        # The two operations are not public; without them everything works, slower.
        return False


def packs(weight: Tensor) -> bool:
    """Whether this build of torch lays out this weight in blocks: a float32 matrix on CPU."""
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.dim() == 2 and _works()


def is_packed(module: nn.Module) -> bool:
    """Whether the module computes with blocks now."""
    return getattr(module.__dict__.get("forward"), "__name__", "") == _PACKED


def padded_rows(rows: int) -> int:
    """The number of rows to multiply for so many: oneDNN compiles each product for its number, in about a millisecond,
    and rows end one by one. There are four numbers between a power of two and the next.

    >>> [padded_rows(n) for n in (1, 7, 9, 30, 33, 64, 200)]
    [1, 7, 10, 32, 40, 64, 224]
    """
    step = 1 << max(0, rows.bit_length() - 3)
    return -(-rows // step) * step


def packed_bytes(modules: Sequence[nn.Module]) -> int:
    """Bytes of the copies that `packed` makes of these modules' weights."""
    return sum(module.weight.nbytes for module in modules if _takes(module))


def product(weight: Tensor, bias: Tensor | None) -> Product:
    """A linear layer without gradients, of a weight for which `packs` holds as it is now: later changes to the weight
    are not seen, those to the bias are."""
    # These two carry torch.compile's frozen graphs on CPU; nothing public packs a float32 weight.
    blocks = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)
    apply: Any = torch.ops.mkldnn._linear_pointwise.default

    def packed_product(x: Tensor) -> Tensor:
        if x.dtype != torch.float32 or not x.numel():
            return nn.functional.linear(x, weight, bias)
        flat = x.reshape(-1, x.shape[-1])
        rows = len(flat)
        more = padded_rows(rows) - rows
        if more:
            flat = nn.functional.pad(flat, (0, 0, 0, more))
        out: Tensor = apply(flat, blocks, bias, "none", [], "")
        return out[:rows].view(*x.shape[:-1], -1)

    return packed_product


@contextlib.contextmanager
def packed(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, the plain linear layers among the modules compute with blocks of their weights as these were on entering.
    Nothing may change the weights or ask for gradients inside."""
    changed: list[nn.Module] = []
    try:
        for module in modules:
            if _takes(module):
                module.__dict__["forward"] = product(module.weight, module.bias)
                changed.append(module)
        yield
    finally:
        for module in changed:
            del module.__dict__["forward"]


def _takes(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a module is a plain linear layer whose weight packs."""
    # A subclass, or a module whose forward somebody has replaced, computes something else.
    return type(module) is nn.Linear and "forward" not in module.__dict__ and packs(module.weight)
