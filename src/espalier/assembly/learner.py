"""From a session to its learner, and what that will need."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from espalier.assembly.model import Model
from espalier.assembly.runs import RunConfig
from espalier.engines.learner import ExportOptions, LearnerOptions, TorchLearner
from espalier.forest.microbatches import Packing

if TYPE_CHECKING:
    from espalier.assembly.session import Session

CPU_BUDGET = 2048
CUDA_BUDGET = 8192


def budget(config: RunConfig, device: torch.device) -> int:
    """Packed tokens in a forward."""
    return budget_for(config.loop.tokens_per_microbatch, device)


def budget_for(asked: int, device: torch.device) -> int:
    """Packed tokens in a forward: those that are asked for, or (0) the device's default."""
    default = CUDA_BUDGET if device.type == "cuda" else CPU_BUDGET
    return asked or default


def token_layout(model: Model, *, whole: bool = False) -> Packing:
    """How tokens are counted against the budget; `whole` keeps groups in one piece."""
    loaded, policy = model.loaded, model.policy
    stretched = loaded.original_limit if loaded.original_limit != loaded.limit else None
    return Packing(policy.shares, policy.layout == "padded", whole=whole, long_from=stretched or 0)


def build_learner(session: Session) -> TorchLearner:
    """Build the session's learner; shards the policy if several processes train together.

    Raises ValueError if the algorithm and the policy disagree on what the model says.
    """
    config, model, traits = session.config, session.model, session.traits
    if traits.says != model.policy.says:
        raise ValueError(
            f"the loss is about {traits.says}, the policy says {model.policy.says}; expected the same of both"
        )
    options = learner_options(session, model)
    loaded, renderer = model.loaded, session.renderer
    export = ExportOptions(
        loaded.tokenizer,
        loaded.source_dtype,
        renderer.ends if traits.says == "reads" else renderer.stop_ids,
        adapter_only=config.model.export == "adapter",
        source=loaded.folder,
    )
    session.learner = TorchLearner(model.policy, config.optim, options, world=session.processes, export_options=export)
    return session.learner


def learner_options(session: Session, model: Model) -> LearnerOptions:
    """How a learner of the session computes."""
    config, traits = session.config, session.traits
    return LearnerOptions(
        budget=budget(config, session.device),
        compute=model.compute,
        linear=traits.linear,
        entropy=traits.online is not None and traits.online.entropy,
        whole=traits.whole,
        router_coef=config.model.router_loss,
        grad_checkpointing=config.loop.grad_checkpointing,
        compile=config.loop.compile,
        long_from=token_layout(model).long_from,
        seed=config.loop.seed,
    )
