"""From a session to its critic: a learner of its own, or the policy's."""

from __future__ import annotations

from dataclasses import replace

from espalier.assembly.learner import learner_options
from espalier.assembly.online_runs import critic_optim
from espalier.assembly.session import Session
from espalier.engines.learner import TorchLearner
from espalier.loop.critic import CriticTraining


def build_critic(session: Session) -> TorchLearner | None:
    """Build the session's critic after its learner; the learner itself if they share a backbone, None without one."""
    if "values" not in session.traits.needs:
        return None
    session.critic = session.learner
    if session.critic_model is not None:
        options = replace(learner_options(session, session.critic_model), linear=False, entropy=False, router_coef=0.0)
        session.critic = TorchLearner(
            session.critic_model.policy, critic_optim(session.config), options, world=session.processes
        )
    return session.critic


def critic_training(session: Session) -> CriticTraining | None:
    """How a critic of its own is trained; None without one."""
    if session.critic_model is None:
        return None
    section = session.config.critic
    return CriticTraining(critic_optim(session.config), section.critic_warmup, section.critic_pretrain)
