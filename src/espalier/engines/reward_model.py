"""A trained reward model over the answers of a step: whole groups in, a score of each answer out."""

from __future__ import annotations

from collections.abc import Sequence

from espalier.engines.learner import LearnerOptions
from espalier.engines.processes import Distributed, OneProcess
from espalier.engines.protocols import Group
from espalier.engines.reference import frozen
from espalier.models.policy import Policy


class RewardModel:
    """A model with a scalar head, which is not trained. Its weights are cast to `options.compute` and frozen, and
    sharded under a distributed world. All ranks call it with all groups, and get all scores."""

    def __init__(self, policy: Policy, options: LearnerOptions, world: OneProcess | Distributed):
        self.forwards = frozen(policy, options, world)

    @property
    def rows(self) -> int:
        """How many tokens it knows."""
        return int(self.forwards.policy.model.get_input_embeddings().num_embeddings)

    def scores(self, groups: Sequence[Group]) -> list[tuple[float, ...]]:
        """The calibrated scores of every sample at its only read, one number for each dimension, in order. Prompts that
        the samples of a group share are computed once."""
        groups = [group for group in groups if group]
        if not groups:
            return []
        return [outputs.scores[0] for outputs in self.forwards.say(groups, ["scores"], calibrated=True)]
