"""The check of a critic's first values: 0 of a new head, a reward model's scores of one that starts from it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from espalier.checks.rehearsal import first_step
from espalier.checks.table import Outcome, failed, passed
from espalier.config.critic_section import OWN, SHARED
from espalier.types import Sample

if TYPE_CHECKING:
    import torch

    from espalier.assembly.session import Session
    from espalier.checks.evidence import Evidence

ANSWERS = 4
"""Answers that a reward model is asked about."""
CLOSE = {"float32": 1e-5, "bfloat16": 0.05}
"""By how much a value may differ from the score, for each 1 + its size."""
_REPORT = "The critic is not what its config says: advantages would be about something else. Report this."


def check_critic(evidence: Evidence) -> Outcome:
    """Values of a rehearsal: all 0 of a new head; behind an answer the score that transformers reads there of a reward
    model."""
    session = evidence.session
    assert session.critic is not None
    groups = [[_longer(s) for s in g if s.part == "main"] for g in first_step(session)]
    groups = [g for g in groups if g]
    values = [outputs.values for outputs in session.critic.say(groups, ["values"])]
    if session.config.critic.critic in (OWN, SHARED):
        largest = max((abs(v) for of_answer in values for v in of_answer), default=0.0)
        value = f"largest value {largest:g} on {len(values)} answers"
        return passed(value, "0: a new head") if largest == 0 else failed(value, "0: a new head", _REPORT)
    samples = [s for g in groups for s in g][:ANSWERS]
    scores = _scores(session, samples)
    gap = max(abs(v[-1] - score) / (1 + abs(score)) for v, score in zip(values, scores, strict=False))
    value = f"{gap:.1e} between values behind {len(samples)} answers and the reward model's scores of them"
    bound = CLOSE[str(session.model.compute).removeprefix("torch.")]
    limit = f"<= {bound:g} (read by transformers alone)"
    return passed(value, limit) if gap <= bound else failed(value, limit, _REPORT)


def _longer(s: Sample) -> Sample:
    """The answer with one more token, whichever, before which a value is read: behind the last one."""
    longer = replace(s, tokens=list(s.tokens), mask=list(s.mask), weights=list(s.weights), streams={})
    longer.append(s.tokens[-1:], trained=True)
    return longer


def _scores(session: Session, samples: list[Sample]) -> list[float]:
    """What the reward model says behind the last token but the added one, by transformers alone."""
    import torch
    from transformers import AutoModelForSequenceClassification

    assert session.critic_model is not None
    folder = session.critic_model.loaded.folder
    scores = []
    with torch.no_grad():
        model: Any = AutoModelForSequenceClassification.from_pretrained(folder, dtype=session.model.compute)
        model = model.to(session.device).eval()
        (bias,) = getattr(model.config, "espalier_reward_bias", None) or [0.0]
        for s in samples:
            ids = torch.tensor([s.tokens[:-1]], device=session.device)
            hidden = model.base_model(input_ids=ids).last_hidden_state[0, -1]
            weight: torch.Tensor = model.score.weight
            scores.append(float(weight[0].float() @ hidden.float()) + bias)
    return scores
