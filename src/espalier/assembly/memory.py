"""What everybody who takes part in a run needs, on each rank."""

from __future__ import annotations

import torch

from espalier.assembly.model import Model
from espalier.assembly.reference import reference_bytes
from espalier.assembly.session import Session
from espalier.assembly.sizes import estimate


def per_weight(session: Session) -> str:
    """Bytes that each role holds for a weight, and what LoRA saves of them."""
    config, model = session.config, session.model
    size = model.compute.itemsize
    trained = size + 12 + (4 if model.compute != torch.float32 else 0)
    roles = [f"policy {_mean(model, trained):.1f}"]
    if session.critic_model is not None:
        roles.append(f"critic {_mean(session.critic_model, trained):.1f}")
    reference = reference_bytes(config, model)
    if reference:
        roles.append(f"reference {reference / model.frozen.total:.1f}")
    if "reward model" in session.beside:
        roles.append(f"reward model {size:.1f}")
    line = f"bytes a weight: {', '.join(roles)}"
    learners = [m for m in (model, session.critic_model) if m is not None]
    saved = sum((m.frozen.total - m.frozen.trainable) * (trained - size) for m in learners)
    if config.model.lora_rank or config.model.adapter:
        line += f"; LoRA saves {saved / 2**30:.2f} GiB of gradients and optimizers"
        if reference and not config.reference.reference_model:
            line += f", and {(model.frozen.total - model.frozen.trainable) * size / 2**30:.2f} GiB of a reference"
    return line


def _mean(model: Model, trained: int) -> float:
    """Bytes a weight of a learner: `trained` for those that are, the compute dtype's for others."""
    share = model.frozen.trainable / model.frozen.total
    return share * trained + (1 - share) * model.compute.itemsize


def memory(session: Session, tokens: int) -> dict[str, int]:
    """Bytes that a rank needs, roughly, by what needs them: the policy (see `sizes.estimate`; `tokens` are those of
    its largest forward), the reference, whoever else the session lists in `beside`, and, if several processes sample,
    the parts of the weights that each gathers from the others meanwhile."""
    config, model, ranks = session.config, session.model, session.processes.size
    need = estimate(model, tokens, ranks=ranks, checkpointing=config.loop.grad_checkpointing)
    reference = reference_bytes(config, model)
    if reference:
        need["reference"] = reference // ranks
    need.update(session.beside)
    if session.traits.online is not None and ranks > 1:
        whole = model.frozen.total * model.compute.itemsize
        need["weights gathered to sample"] = whole - whole // ranks
    return need
