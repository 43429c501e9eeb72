"""What everybody who takes part in a run needs, on each rank."""

from __future__ import annotations

from espalier.assembly.learner import estimate
from espalier.assembly.model import Model
from espalier.assembly.reference import reference_bytes
from espalier.assembly.session import Session


def memory(session: Session, tokens: int) -> dict[str, int]:
    """Bytes that a rank needs, roughly, by what needs them: the policy (see `learner.estimate`; `tokens` are those of
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


def learner_bytes(model: Model, *, ranks: int) -> int:
    """Bytes of another learner that trains a model of this size, such as a critic: weights, gradients, optimizer. Its
    forwards come after the policy's, and need no more than those."""
    need = estimate(model, 0, ranks=ranks, checkpointing=False)
    return need["weights"] + need["gradients"] + need["optimizer"]


def frozen_bytes(model: Model, *, ranks: int) -> int:
    """Bytes of a model that is not trained, such as a reward model: its weights in the compute dtype."""
    return model.frozen.total * model.compute.itemsize // ranks
