"""The token head, at scored positions only, in chunks: log-probabilities and entropies without ever holding [U, V].

    z_U,V = cap(h_U,D W_V,D^T + b) * scale / temperature          log p = z[target] - logsumexp(z)
    H = -sum_v p_v log p_v

The backward pass computes each chunk's logits again, except for the first chunks on CPU, which are kept up to a number
of bytes. If the loss is linear in the log-probabilities and its coefficients are known beforehand (`cotangent`),
gradients are formed in the forward pass and no logits are computed twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Bytes of one chunk's float32 logits: larger ones leave the cache (docs/log.md).
CPU_CHUNK_BYTES = 8 << 20
# Positions: below, adding to the weight's gradient once a chunk costs more than the product.
CPU_CHUNK_LEAST = 256
# Bytes of the weight that a product of a few hidden states takes at a time.
CPU_HEAD_BYTES = 2 << 20
# Bytes and positions: large enough that the time to launch kernels does not count.
CUDA_CHUNK_BYTES = 256 << 20
CUDA_CHUNK_LEAST = 64
# Bytes of log-probabilities kept for the backward pass: a micro-batch of a small vocabulary.
CPU_KEPT_BYTES = 64 << 20

# Config fields that multiply the logits, and config fields that cap them.
_SCALES = ("logit_scale", "lm_head_multiplier")
_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


@dataclass(frozen=True, slots=True)
class TokenHead:
    """How hidden states become logits: `softcap * tanh(./softcap)` if there is a cap, times `scale`."""

    softcap: float | None = None
    scale: float = 1.0


def token_head_of(config: Any) -> TokenHead:
    """Soft cap and scale of an architecture's logits, from its configuration.

    The start-up check compares the result with the model's own logits, so a head that does more is found there.
    """
    scale = 1.0
    divisor = getattr(config, "logits_scaling", None)
    if divisor:
        scale /= float(divisor)
    for name in _SCALES:
        scale *= float(getattr(config, name, None) or 1.0)
    for name in _CAPS:
        cap = getattr(config, name, None)
        if cap:
            return TokenHead(cap, scale)
    return TokenHead(None, scale)


def head_weights(module: Any) -> tuple[Tensor, Tensor | None]:
    """Weight [V, D] and bias of an output embedding; gradients flow through them even if peft wraps the module.

    Raises TypeError for a wrapper whose weights this head does not read.
    """
    # peft's trainable token rows: the base weight with some rows replaced.
    if hasattr(module, "token_adapter"):
        adapter = module.token_adapter
        return adapter.get_merged_weights(adapter.active_adapters), None
    if hasattr(module, "base_layer"):
        raise TypeError(
            f"the output embedding is wrapped by {type(module).__name__}, which this head does not "
            "read; leave lm_head out of lora_targets"
        )
    return module.weight, module.bias


def score_tokens(
    hidden_UD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    targets_U: Tensor,
    temperatures_U: Tensor | None = None,
    *,
    head: TokenHead = TokenHead(),
    entropy: bool = False,
    entropy_grad: bool = True,
    correct: bool = False,
    cotangent_U: Tensor | None = None,
    chunk: int = 0,
) -> dict[str, Tensor]:
    """`logprobs` [U] of the targets and, if asked for, `entropy` [U] of the distributions, in nats, and `correct` [U],
    1 if the target is the most probable token, else 0; float32 (float64 for float64 inputs). Without `entropy_grad` no
    gradient flows through the entropy, and the backward pass costs as much as without it.

    cotangent_U: the gradient of the loss in every log-probability, if it is known before the forward pass; the
    backward pass raises RuntimeError if the real one differs (checked on CPU, where it costs no synchronisation).
    temperatures_U: None is 1 everywhere. chunk: scored positions at a time; 0 fits the device's chunk bytes.

    Raises ValueError for a cotangent together with the entropy, whose gradient is not linear.
    """
    if entropy and cotangent_U is not None:
        raise ValueError(
            "score_tokens got a cotangent and entropy=True; expected one of them: the entropy's gradient is not linear"
        )
    vocabulary = weight_VD.shape[0]
    if not chunk:
        chunk = _chunk_size(vocabulary, cuda=hidden_UD.is_cuda)
    if temperatures_U is not None and hidden_UD.dtype == torch.float64:
        temperatures_U = temperatures_U.double()
    kept = 0
    # Nothing is kept under a cap, whose derivative needs a second tensor, nor on CUDA, where memory
    # is what is scarce.
    if torch.is_grad_enabled() and cotangent_U is None and head.softcap is None and not hidden_UD.is_cuda:
        kept = CPU_KEPT_BYTES // (4 * vocabulary)
    plan = _Plan(head, entropy, entropy and entropy_grad, correct, chunk, kept)
    apply: Any = _Score.apply
    logprobs_U, entropy_U, correct_U = apply(hidden_UD, weight_VD, bias_V, targets_U, temperatures_U, cotangent_U, plan)
    outputs = {"logprobs": logprobs_U}
    if entropy:
        outputs["entropy"] = entropy_U
    if correct:
        outputs["correct"] = correct_U
    return outputs


@dataclass(frozen=True, slots=True)
class _Plan:
    """`chunk` scored positions at a time; the distributions of the first `kept` are left for the backward pass."""

    head: TokenHead
    entropy: bool
    entropy_grad: bool
    correct: bool
    chunk: int
    kept: int


def _chunk_size(vocabulary: int, *, cuda: bool) -> int:
    """Scored positions of a chunk whose logits fit the device's chunk bytes."""
    if cuda:
        return max(CUDA_CHUNK_LEAST, CUDA_CHUNK_BYTES // (4 * vocabulary))
    return max(CPU_CHUNK_LEAST, CPU_CHUNK_BYTES // (4 * vocabulary))


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of results and sums: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right with a float32 result (float64 stays), also for bfloat16 factors."""
    if left.dtype in (torch.float32, torch.float64):
        return left @ right
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()


def _factor(temperatures: Tensor | None, part: slice, head: TokenHead) -> Tensor | float:
    """What multiplies capped logits: a number, or [chunk, 1]."""
    if temperatures is None:
        return head.scale
    return (head.scale / temperatures[part])[:, None]


def _logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, factor: Tensor | float, head: TokenHead
) -> tuple[Tensor, Tensor | None]:
    """Scaled logits of a chunk, and tanh of the capped ones if there is a cap, for its derivative."""
    return _finish(_product(hidden, weight.t()), bias, factor, head)


def _finish(z: Tensor, bias: Tensor | None, factor: Tensor | float, head: TokenHead) -> tuple[Tensor, Tensor | None]:
    """The products z with bias, cap and factor, and tanh of the capped ones if there is a cap. z is overwritten."""
    if bias is not None:
        z += bias
    bent = None
    if head.softcap is not None:
        bent = z.div_(head.softcap).tanh_()
        z = bent * head.softcap
    if isinstance(factor, float) and factor == 1:
        return z, bent
    return z.mul_(factor), bent


def logits(
    hidden_BD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    head: TokenHead,
    product: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Logits [B, V] of hidden states as `score_tokens` has them: float32 (float64 stays), capped and scaled. `product`:
    what computes hidden @ weight.T + bias, if something does that faster."""
    if product is not None:
        return _finish(product(hidden_BD), None, head.scale, head)[0]
    rows = max(128, CPU_HEAD_BYTES // (weight_VD.shape[1] * weight_VD.itemsize))
    if hidden_BD.is_cuda or weight_VD.dtype not in (torch.float32, torch.float64) or len(weight_VD) < 2 * rows:
        return _logits(hidden_BD, weight_VD, bias_V, head.scale, head)[0]
    # A few rows of the weight at a time: as a whole it leaves the cache while a few tokens wait for it (docs/log.md).
    z_BV = hidden_BD.new_empty(len(hidden_BD), len(weight_VD))
    for low in range(0, len(weight_VD), rows):
        part = slice(low, low + rows)
        torch.mm(hidden_BD, weight_VD[part].t(), out=z_BV[:, part])
    return _finish(z_BV, bias_V, head.scale, head)[0]


class _Score(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperatures: Tensor | None,
        cotangent: Tensor | None,
        plan: _Plan,
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = _wide(hidden.dtype)
        logprobs = torch.empty(len(targets), dtype=wide, device=hidden.device)
        norms = torch.empty_like(logprobs)
        entropies = _room(logprobs, plan.entropy)
        correct = _room(logprobs, plan.correct)
        grads = None
        if cotangent is not None:
            grads = _Gradients(ctx.needs_input_grad, hidden, weight, bias)
        # Log-probabilities of whole chunks, by their first position.
        ctx.kept = {}
        # Each step changes the one [chunk, V] tensor in place: z, then log p, then p.
        for low in range(0, len(targets), plan.chunk):
            part = slice(low, low + plan.chunk)
            factor = _factor(temperatures, part, plan.head)
            z, bent = _logits(hidden[part], weight, bias, factor, plan.head)
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
                # Not logsumexp(z) - sum(p z), which cancels if H is small.
                entropies[part] = -(log_p.exp() * log_p).sum(-1)
            elif grads is not None and cotangent is not None:
                p = z.sub_(norm[:, None]).exp_()
                _into_logits(p, targets[part], cotangent[part].to(wide))
                grads.add(part, p, bent, hidden, weight, factor)
        ctx.plan = plan
        ctx.saved_grads = grads
        if grads is None:
            ctx.save_for_backward(hidden, weight, bias, targets, temperatures, norms, entropies)
        else:
            ctx.save_for_backward(cotangent)
        if plan.entropy_grad:
            ctx.mark_non_differentiable(correct)
        else:
            ctx.mark_non_differentiable(entropies, correct)
        return logprobs, entropies, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs: Tensor, grad_entropies: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.saved_grads is not None:
            (cotangent,) = ctx.saved_tensors
            # Not on CUDA: the comparison would wait for the device at every micro-batch.
            if not grad_logprobs.is_cuda and not torch.equal(cotangent.to(grad_logprobs.dtype), grad_logprobs):
                raise RuntimeError(
                    "the gradient of the log-probabilities is not the one announced before the "
                    "forward pass; a loss that declares `linear` must be linear in them, with "
                    "coefficients that do not depend on the outputs"
                )
            return (*ctx.saved_grads.results(), None, None, None, None)
        hidden, weight, bias, targets, temperatures, norms, entropies = ctx.saved_tensors
        plan: _Plan = ctx.plan
        grads = _Gradients(ctx.needs_input_grad, hidden, weight, bias)
        for low in range(0, len(targets), plan.chunk):
            part = slice(low, low + plan.chunk)
            factor = _factor(temperatures, part, plan.head)
            # A kept chunk is overwritten below: a second backward pass computes it again.
            log_p, bent = ctx.kept.pop(low, None), None
            if log_p is None:
                z, bent = _logits(hidden[part], weight, bias, factor, plan.head)
                log_p = z.sub_(norms[part, None])
            if plan.entropy_grad:
                p = log_p.exp()
                # dH/dz_v = -p_v (log p_v + H)
                slope = p * (log_p + entropies[part, None]) * -grad_entropies[part, None]
                _into_logits(p, targets[part], grad_logprobs[part])
                p += slope
            else:
                p = log_p.exp_()
                _into_logits(p, targets[part], grad_logprobs[part])
            grads.add(part, p, bent, hidden, weight, factor)
        return (*grads.results(), None, None, None, None)


def _room(logprobs: Tensor, needed: bool) -> Tensor:
    """A number for each score, or none: an autograd function returns tensors, also for what nobody asked for."""
    if needed:
        return torch.empty_like(logprobs)
    return logprobs.new_empty(0)


def _into_logits(p: Tensor, targets: Tensor, grad: Tensor) -> None:
    """Turn probabilities into the gradient of the scaled logits, in place: d log p[target] / dz = onehot - p."""
    p.mul_(-grad[:, None])
    p.scatter_add_(1, targets[:, None], grad[:, None])


class _Gradients:
    """Gradients of hidden states, weight and bias, summed over chunks in float32; None for what needs none."""

    def __init__(self, needed: tuple[bool, ...], hidden: Tensor, weight: Tensor, bias: Tensor | None):
        wide = _wide(hidden.dtype)
        self.hidden: Tensor | None = None
        self.weight: Tensor | None = None
        self.bias: Tensor | None = None
        self.weight_dtype = weight.dtype
        self.bias_dtype = wide
        if needed[0]:
            self.hidden = torch.empty_like(hidden)
        if needed[1]:
            self.weight = torch.zeros(weight.shape, dtype=wide, device=weight.device)
        if bias is not None:
            self.bias_dtype = bias.dtype
            if needed[2]:
                self.bias = torch.zeros(weight.shape[0], dtype=wide, device=weight.device)

    def add(
        self, part: slice, grad: Tensor, bent: Tensor | None, hidden: Tensor, weight: Tensor, factor: Tensor | float
    ) -> None:
        """Add a chunk's share; `grad` is the gradient of its scaled logits and is overwritten."""
        if bent is not None:
            grad = grad.mul_(1 - bent * bent)
        if not isinstance(factor, float) or factor != 1:
            grad = grad.mul_(factor)
        if self.hidden is not None or self.weight is not None:
            # Products take the compute dtype; the sum over chunks is wide, or it would lose bits.
            low = grad.to(hidden.dtype)
            if self.hidden is not None:
                self.hidden[part] = low @ weight
            if self.weight is not None:
                # One pass over the weight's gradient instead of two, if no cast stands between.
                if self.weight.dtype == hidden.dtype:
                    self.weight.addmm_(low.t(), hidden[part])
                else:
                    self.weight += _product(low.t(), hidden[part])
        if self.bias is not None:
            self.bias += grad.sum(0)

    def results(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        weight, bias = self.weight, self.bias
        if weight is not None:
            weight = weight.to(self.weight_dtype)
        if bias is not None:
            bias = bias.to(self.bias_dtype)
        return self.hidden, weight, bias
