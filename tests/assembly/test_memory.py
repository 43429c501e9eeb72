"""Bytes of everybody who takes part, by hand."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from espalier.algorithms.dpo import DPO
from espalier.algorithms.grpo import GRPO
from espalier.algorithms.sft import SFT
from espalier.assembly.memory import memory
from espalier.assembly.sizes import frozen_bytes, learner_bytes
from espalier.config.sections import LoopConfig, ReferenceConfig


def session(algorithm: Any, *, ranks: int = 1, trained: int = 1000, **beside: int) -> Any:
    """A model of 1,000 weights in bfloat16, one layer of hidden width 2 and inner width 3."""
    config = SimpleNamespace(hidden_size=2, intermediate_size=3, num_hidden_layers=1)
    loaded = SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: config)))
    frozen = SimpleNamespace(trainable=trained, total=1000)
    return SimpleNamespace(
        config=SimpleNamespace(algorithm=algorithm, reference=ReferenceConfig(), loop=LoopConfig(out="o")),
        model=SimpleNamespace(loaded=loaded, compute=torch.bfloat16, frozen=frozen),
        processes=SimpleNamespace(size=ranks), traits=algorithm.traits, beside=beside,
    )  # fmt: skip


def test_the_policy_alone() -> None:
    """2 bytes a weight and 4 of its master, 4 of its gradient, 8 of its moments; 18 x 2 + 6 x 3 numbers a token."""
    need = {"weights": 6000, "gradients": 4000, "optimizer": 8000, "activations": 10 * 2 * (36 + 18)}
    assert memory(session(SFT()), 10) == need


def test_everybody_is_counted() -> None:
    need = memory(session(DPO(), critic=70, sampler=30), 0)
    assert {"reference": 2000, "critic": 70, "sampler": 30}.items() <= need.items()
    assert "reference" not in memory(session(GRPO()), 0)
    assert memory(session(GRPO(beta=0.1)), 0)["reference"] == 2000


@pytest.mark.parametrize("ranks", [2, 4])
def test_weights_are_gathered_to_sample(ranks: int) -> None:
    need = memory(session(GRPO(), ranks=ranks), 0)
    assert need["weights gathered to sample"] == 2000 - 2000 // ranks and need["weights"] == 6000 // ranks
    assert "weights gathered to sample" not in memory(session(SFT(), ranks=ranks), 0)


def test_another_learner_and_a_frozen_model() -> None:
    model = session(SFT()).model
    assert learner_bytes(model, ranks=2) == 3000 + 2000 + 4000 and frozen_bytes(model, ranks=2) == 1000
