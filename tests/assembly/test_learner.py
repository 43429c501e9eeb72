"""What a learner is built from fits together."""

from types import SimpleNamespace
from typing import Any

import pytest

from espalier.algorithms.reward import Reward
from espalier.algorithms.sft import SFT
from espalier.assembly.learner import build_learner


@pytest.mark.parametrize(("algorithm", "says", "other"), [(SFT(), "tokens", "reads"), (Reward(), "reads", "tokens")])
def test_a_loss_and_a_head_that_do_not_fit_are_refused(algorithm: Any, says: str, other: str) -> None:
    model = SimpleNamespace(policy=SimpleNamespace(says=other), loaded=None)
    session: Any = SimpleNamespace(config=None, traits=algorithm.traits, model=model)
    with pytest.raises(ValueError, match=f"the loss is about {says}, the policy says {other}"):
        build_learner(session)
