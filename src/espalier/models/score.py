"""The head, at scored positions only, in chunks: log-probabilities and entropies without ever holding [U, V].

    z_U,V = cap(h_U,D W_V,D^T + b) * scale / temperature          log p = z[target] - logsumexp(z)
    H = -sum_v p_v log p_v

The backward pass computes each chunk's logits again, except for the first chunks on CPU, which are kept up to a number
of bytes. Where the loss is linear in the log-probabilities and its coefficients are known beforehand (`cotangent`),
gradients are formed in the forward pass and no logits are computed twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CPU_CHUNK_BYTES = 8 << 20  # of one chunk's float32 logits: larger ones leave the cache (docs/log.md)
CPU_CHUNK_LEAST = 256  # positions: below, adding to the weight's gradient once a chunk costs more than the product
CUDA_CHUNK_BYTES = 256 << 20  # large enough that launches do not count
CPU_KEPT_BYTES = 64 << 20  # of log-probabilities kept for the backward pass: a micro-batch of a small vocabulary


@dataclass(frozen=True, slots=True)
class Head:
    """How hidden states become logits: `softcap * tanh(./softcap)` where given, times `scale`."""

    softcap: float | None = None
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class _Plan:
    head: Head
    entropy: bool
    correct: bool
    chunk: int
    kept: int  # scored positions whose distributions the forward pass leaves for the backward pass


def score(
    hidden_UD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    targets_U: Tensor,
    temperatures_U: Tensor | None = None,
    *,
    head: Head = Head(),
    entropy: bool = False,
    correct: bool = False,
    cotangent_U: Tensor | None = None,
    chunk: int = 0,
) -> dict[str, Tensor]:
    """`logprobs` [U] of the targets and, where asked for, `entropy` [U] of the distributions, in nats, and `correct`
    [U], 1 where the target is the most probable token; float32 (float64 for float64 inputs).

    cotangent_U: the gradient of the loss in every log-probability, where it is known before the forward pass; the
    backward pass raises RuntimeError when the real one differs (checked on CPU, where it costs no synchronisation).
    temperatures_U: None is 1 everywhere. chunk: scored positions at a time; 0 fits the device's chunk bytes.
    """
    if entropy and cotangent_U is not None:
        raise ValueError(
            "score got a cotangent and entropy=True; expected one of them: the entropy's gradient is not linear"
        )
    if not chunk:
        least, size = (64, CUDA_CHUNK_BYTES) if hidden_UD.is_cuda else (CPU_CHUNK_LEAST, CPU_CHUNK_BYTES)
        chunk = max(least, size // (4 * weight_VD.shape[0]))
    if temperatures_U is not None and hidden_UD.dtype == torch.float64:
        temperatures_U = temperatures_U.double()
    # Nothing is kept under a cap, whose derivative needs a second tensor, nor on CUDA, where memory is what is scarce.
    keeps = torch.is_grad_enabled() and cotangent_U is None and head.softcap is None and not hidden_UD.is_cuda
    kept = CPU_KEPT_BYTES // (4 * weight_VD.shape[0]) if keeps else 0
    plan = _Plan(head, entropy, correct, chunk, kept)
    apply: Any = _Score.apply
    scores = apply(hidden_UD, weight_VD, bias_V, targets_U, temperatures_U, cotangent_U, plan)
    wanted = (True, entropy, correct)
    return {name: x for name, x, w in zip(("logprobs", "entropy", "correct"), scores, wanted, strict=True) if w}


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b with a float32 result (float64 stays), also for bfloat16 factors."""
    if a.dtype in (torch.float32, torch.float64):
        return a @ b
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


def _factor(temperatures: Tensor | None, part: slice, head: Head) -> Tensor | float:
    """What multiplies capped logits: a number, or [chunk, 1]."""
    return head.scale if temperatures is None else (head.scale / temperatures[part])[:, None]


def _logits(
    h: Tensor, weight: Tensor, bias: Tensor | None, factor: Tensor | float, head: Head
) -> tuple[Tensor, Tensor | None]:
    """Scaled logits of a chunk, and tanh of the capped ones where the cap's derivative needs it."""
    z = _product(h, weight.t())
    if bias is not None:
        z += bias
    bent = None
    if head.softcap is not None:
        bent = z.div_(head.softcap).tanh_()
        z = bent * head.softcap
    return z if isinstance(factor, float) and factor == 1 else z.mul_(factor), bent


class _Score(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor,
        temperatures: Tensor | None, cotangent: Tensor | None, plan: _Plan,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        logprobs = torch.empty(len(targets), dtype=wide, device=hidden.device)
        norms = torch.empty_like(logprobs)
        entropies = torch.empty_like(logprobs) if plan.entropy else logprobs.new_empty(0)
        correct = torch.empty_like(logprobs) if plan.correct else logprobs.new_empty(0)
        grads = _Gradients(ctx.needs_input_grad, hidden, weight, bias) if cotangent is not None else None
        ctx.kept = {}  # log-probabilities of whole chunks, by their first position
        for low in range(0, len(targets), plan.chunk):
            part = slice(low, low + plan.chunk)
            z, bent = _logits(hidden[part], weight, bias, _factor(temperatures, part, plan.head), plan.head)
            norm = z.logsumexp(-1)
            logprobs[part] = z.gather(1, targets[part, None])[:, 0] - norm
            norms[part] = norm
            if plan.correct:
                correct[part] = (z.argmax(-1) == targets[part]).to(wide)
            keep = low + plan.chunk <= plan.kept
            if plan.entropy or keep:
                log_p = z.sub_(norm[:, None])
                if keep:
                    ctx.kept[low] = log_p
            if plan.entropy:
                entropies[part] = -(log_p.exp() * log_p).sum(-1)  # logsumexp(z) - sum(p z) cancels where H is small
            elif grads is not None and cotangent is not None:
                p = z.sub_(norm[:, None]).exp_()
                _into_logits(p, targets[part], cotangent[part].to(wide))
                grads.add(part, p, bent, hidden, weight, _factor(temperatures, part, plan.head))
        ctx.plan = plan
        ctx.saved_grads = grads
        if grads is None:
            ctx.save_for_backward(hidden, weight, bias, targets, temperatures, norms, entropies)
        else:
            ctx.save_for_backward(cotangent)
        ctx.mark_non_differentiable(*([correct] if plan.entropy else [entropies, correct]))
        return logprobs, entropies, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs: Tensor, grad_entropies: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.saved_grads is not None:
            (cotangent,) = ctx.saved_tensors
            if not grad_logprobs.is_cuda and not torch.equal(cotangent.to(grad_logprobs.dtype), grad_logprobs):
                raise RuntimeError(
                    "the gradient of the log-probabilities is not the one announced before the forward pass; a loss "
                    "that declares `linear` must be linear in them, with coefficients that do not depend on the outputs"
                )
            return (*ctx.saved_grads.results(), None, None, None, None)
        hidden, weight, bias, targets, temperatures, norms, entropies = ctx.saved_tensors
        plan: _Plan = ctx.plan
        grads = _Gradients(ctx.needs_input_grad, hidden, weight, bias)
        for low in range(0, len(targets), plan.chunk):
            part = slice(low, low + plan.chunk)
            log_p, bent = ctx.kept.pop(low, None), None
            if log_p is None:
                z, bent = _logits(hidden[part], weight, bias, _factor(temperatures, part, plan.head), plan.head)
                log_p = z.sub_(norms[part, None])
            p = log_p.exp() if plan.entropy else log_p.exp_()
            if plan.entropy:
                # dH/dz_v = -p_v (log p_v + H)
                slope = p * (log_p + entropies[part, None]) * -grad_entropies[part, None]
            _into_logits(p, targets[part], grad_logprobs[part])
            if plan.entropy:
                p += slope
            grads.add(part, p, bent, hidden, weight, _factor(temperatures, part, plan.head))
        return (*grads.results(), None, None, None, None)


def _into_logits(p: Tensor, targets: Tensor, grad: Tensor) -> None:
    """Turn probabilities into the gradient of the scaled logits, in place: d log p[target] / dz = onehot - p."""
    p.mul_(-grad[:, None])
    p.scatter_add_(1, targets[:, None], grad[:, None])


class _Gradients:
    """Gradients of hidden states, weight and bias, summed over chunks in float32."""

    def __init__(self, needed: tuple[bool, ...], hidden: Tensor, weight: Tensor, bias: Tensor | None):
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        self.hidden = torch.empty_like(hidden) if needed[0] else None
        self.weight = torch.zeros(weight.shape, dtype=wide, device=weight.device) if needed[1] else None
        self.bias = (
            torch.zeros(weight.shape[0], dtype=wide, device=weight.device) if bias is not None and needed[2] else None
        )
        self.weight_dtype = weight.dtype
        self.bias_dtype = bias.dtype if bias is not None else wide

    def add(
        self, part: slice, g: Tensor, bent: Tensor | None, hidden: Tensor, weight: Tensor, factor: Tensor | float
    ) -> None:
        """Add a chunk's share; `g` is the gradient of its scaled logits and is overwritten."""
        if bent is not None:
            g = g.mul_(1 - bent * bent)
        if not isinstance(factor, float) or factor != 1:
            g = g.mul_(factor)
        if self.hidden is not None or self.weight is not None:
            low = g.to(hidden.dtype)
            if self.hidden is not None:
                self.hidden[part] = low @ weight
            if self.weight is not None:
                if self.weight.dtype == hidden.dtype:
                    self.weight.addmm_(low.t(), hidden[part])
                else:
                    self.weight += _product(low.t(), hidden[part])
        if self.bias is not None:
            self.bias += g.sum(0)

    def results(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        weight = self.weight.to(self.weight_dtype) if self.weight is not None else None
        bias = self.bias.to(self.bias_dtype) if self.bias is not None else None
        return self.hidden, weight, bias
