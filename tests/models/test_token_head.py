"""The chunked head against full logits."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from espalier.models import token_head
from espalier.models.token_head import TokenHead, score_tokens

U, V, D = 37, 50, 8


def inputs(dtype: torch.dtype = torch.float64, *, scale: float = 1.0) -> dict[str, Any]:
    g = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=g, dtype=torch.float64) * scale).to(dtype).requires_grad_()

    return {
        "hidden": leaf(U, D),
        "weight": leaf(V, D),
        "bias": leaf(V),
        "targets": torch.randint(0, V, (U,), generator=g),
        "temperatures": torch.rand(U, generator=g) + 0.5,
    }


def full(x: dict[str, Any], head: TokenHead, bias: bool, tempered: bool) -> dict[str, Tensor]:
    z = x["hidden"] @ x["weight"].T
    if bias:
        z = z + x["bias"]
    if head.softcap:
        z = head.softcap * torch.tanh(z / head.softcap)
    z = z * head.scale
    if tempered:
        z = z / x["temperatures"].to(z.dtype)[:, None]
    log_p = z.log_softmax(-1)
    return {
        "logprobs": log_p[torch.arange(len(z)), x["targets"]],
        "entropy": -(log_p.exp() * log_p).sum(-1),
        "correct": (z.argmax(-1) == x["targets"]).to(z.dtype),
    }


def ours(x: dict[str, Any], head: TokenHead, bias: bool, tempered: bool, **options: Any) -> dict[str, Tensor]:
    return score_tokens(
        x["hidden"],
        x["weight"],
        x["bias"] if bias else None,
        x["targets"],
        x["temperatures"] if tempered else None,
        head=head,
        **options,
    )


def leaves(x: dict[str, Any], bias: bool) -> list[Tensor]:
    return [x["hidden"], x["weight"], *([x["bias"]] if bias else [])]


@pytest.mark.parametrize("chunk", [1, 5, U, 64, 0])
@pytest.mark.parametrize("tempered", [False, True])
@pytest.mark.parametrize(
    "head", [TokenHead(), TokenHead(softcap=1.5), TokenHead(scale=0.4), TokenHead(softcap=2.0, scale=3.0)]
)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kept", [0, 12, 1000], ids="kept {}".format)
def test_equals_full_logits(
    monkeypatch: pytest.MonkeyPatch, kept: int, bias: bool, head: TokenHead, tempered: bool, chunk: int
) -> None:
    monkeypatch.setattr("espalier.models.token_head.CPU_KEPT_BYTES", kept * 4 * V)
    x = inputs()
    expected = full(x, head, bias, tempered)
    g = torch.Generator().manual_seed(1)
    a, b = (torch.randn(U, generator=g, dtype=torch.float64) for _ in range(2))
    plain = torch.autograd.grad((a * expected["logprobs"]).sum(), leaves(x, bias), retain_graph=True)
    mixed = torch.autograd.grad((a * expected["logprobs"] + b * expected["entropy"]).sum(), leaves(x, bias))

    got = ours(x, head, bias, tempered, entropy=True, correct=True, chunk=chunk)
    assert set(got) == {"logprobs", "entropy", "correct"}
    for name, value in got.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-12)
    got_mixed = torch.autograd.grad((a * got["logprobs"] + b * got["entropy"]).sum(), leaves(x, bias))
    torch.testing.assert_close(got_mixed, mixed, rtol=1e-10, atol=1e-12)

    got = ours(x, head, bias, tempered, chunk=chunk)
    assert set(got) == {"logprobs"}
    for retained in (True, False):  # what was kept is used once
        got_plain = torch.autograd.grad((a * got["logprobs"]).sum(), leaves(x, bias), retain_graph=retained)
        torch.testing.assert_close(got_plain, plain, rtol=1e-10, atol=1e-12)

    got = ours(x, head, bias, tempered, cotangent_U=a, correct=True, chunk=chunk)
    torch.testing.assert_close(got["logprobs"], expected["logprobs"], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got["correct"], expected["correct"])
    got_linear = torch.autograd.grad((a * got["logprobs"]).sum(), leaves(x, bias))
    torch.testing.assert_close(got_linear, plain, rtol=1e-10, atol=1e-12)


def test_gradcheck() -> None:
    x = inputs()
    head, targets, temperatures = TokenHead(softcap=1.5, scale=0.7), x["targets"][:5], x["temperatures"][:5]

    def f(hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        got = score_tokens(hidden, weight, bias, targets, temperatures, head=head, entropy=True, chunk=2)
        return got["logprobs"], got["entropy"]

    at = [t.detach()[:n].clone().requires_grad_() for t, n in ((x["hidden"], 5), (x["weight"], V), (x["bias"], V))]
    assert torch.autograd.gradcheck(f, at)


def test_frozen_inputs_get_no_gradient() -> None:
    for frozen in ("hidden", "weight", "bias"):
        x = inputs()
        x[frozen].requires_grad_(False)
        expected = full(x, TokenHead(), True, False)["logprobs"].sum()
        rest = [t for t in leaves(x, True) if t.requires_grad]
        want = torch.autograd.grad(expected, rest)
        for cotangent in (None, torch.ones(U, dtype=torch.float64)):
            got = ours(x, TokenHead(), True, False, cotangent_U=cotangent)["logprobs"].sum()
            torch.testing.assert_close(torch.autograd.grad(got, rest), want, rtol=1e-10, atol=1e-12)


def test_a_loss_that_is_not_as_announced_raises() -> None:
    x = inputs()
    announced = torch.ones(U, dtype=torch.float64)
    got = ours(x, TokenHead(), False, False, cotangent_U=announced)["logprobs"]
    with pytest.raises(RuntimeError, match="not the one announced"):
        (got**2).sum().backward()
    with pytest.raises(ValueError, match="entropy=True"):
        ours(x, TokenHead(), False, False, cotangent_U=announced, entropy=True)


def test_nothing_scored_gives_zero_gradients() -> None:
    x = inputs()
    for cotangent in (None, torch.zeros(0, dtype=torch.float64)):
        got = score_tokens(x["hidden"][:0], x["weight"], x["bias"], x["targets"][:0], cotangent_U=cotangent)["logprobs"]
        assert got.shape == (0,)
        grads = torch.autograd.grad(got.sum(), [x["weight"], x["bias"]])
        assert all(not grad.any() for grad in grads)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, Tensor):
                self.elements = max(self.elements, x.numel())
        return out


@pytest.mark.parametrize("mode", ["entropy", "plain", "linear"])
def test_logits_never_exist_beyond_a_chunk(mode: str) -> None:
    rows, vocabulary, chunk = 1000, 400, 64
    hidden, weight = torch.randn(rows, D, requires_grad=True), torch.randn(vocabulary, D, requires_grad=True)
    targets = torch.randint(0, vocabulary, (rows,))
    ones = torch.ones(rows)
    with Largest() as largest:
        got = score_tokens(
            hidden, weight, None, targets, entropy=mode == "entropy", correct=True, chunk=chunk,
            cotangent_U=ones if mode == "linear" else None,
        )  # fmt: skip
        (got["logprobs"].sum() + (got["entropy"].sum() if mode == "entropy" else 0)).backward()
    assert largest.elements == chunk * vocabulary
    with Largest() as largest:
        torch.log_softmax(hidden @ weight.T, -1)
    assert largest.elements == rows * vocabulary  # the instrument sees what it should


def test_what_is_kept_for_the_backward_pass_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("espalier.models.token_head.CPU_KEPT_BYTES", 12 * 4 * V)
    x = inputs(torch.float32)

    def kept(**options: Any) -> list[tuple[int, ...]]:
        node: Any = ours(x, options.pop("head", TokenHead()), False, False, chunk=5, **options)["logprobs"].grad_fn
        return [tuple(t.shape) for t in node.kept.values()]

    assert kept() == kept(entropy=True) == [(5, V), (5, V)]
    assert kept(head=TokenHead(softcap=1.5)) == kept(cotangent_U=torch.ones(U)) == []


@pytest.mark.parametrize("linear", [False, True])
def test_bf16_logprobs_are_computed_in_float32(linear: bool) -> None:
    low = inputs(torch.bfloat16, scale=2.0)
    exact = {k: v.detach().double().requires_grad_() if v.is_floating_point() else v for k, v in low.items()}
    head = TokenHead(softcap=30.0)
    expected = full(exact, head, True, True)
    ones = torch.ones(U)
    got = ours(low, head, True, True, cotangent_U=ones) if linear else ours(low, head, True, True, entropy=True)
    assert all(value.dtype == torch.float32 for value in got.values())
    for name, value in got.items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-5)
    naive = full({k: v.detach() for k, v in low.items()}, head, True, True)["logprobs"].double()
    assert (naive - expected["logprobs"]).abs().max() > 1000 * (got["logprobs"] - expected["logprobs"]).abs().max()
    grads = torch.autograd.grad(got["logprobs"].sum(), leaves(low, True))
    want = torch.autograd.grad(expected["logprobs"].sum(), leaves(exact, True))
    for a, b in zip(grads, want, strict=True):
        assert a.dtype == torch.bfloat16
        assert (a.double() - b).norm() < 5e-3 * b.norm()


@pytest.mark.parametrize("head", [TokenHead(), TokenHead(softcap=5.0, scale=0.5)])
def test_logits_over_parts_of_the_weight_are_those_of_one_product(
    head: TokenHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((3, 16), (700, 16), (700,)))
    whole = token_head.logits(hidden, weight, bias, head)
    monkeypatch.setattr(token_head, "CPU_HEAD_BYTES", 128 * 16 * 4)
    assert torch.allclose(token_head.logits(hidden, weight, bias, head), whole, atol=1e-5)
    z = hidden @ weight.t() + bias
    expected = z if head.softcap is None else 2.5 * torch.tanh(z / 5)
    assert torch.allclose(whole, expected, atol=1e-5)
