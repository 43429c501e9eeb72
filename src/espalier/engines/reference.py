"""References with weights in memory: the policy as it started, or another model.

`engines.precomputed` is the third kind, which needs no weights after the first step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from espalier.engines import fsdp
from espalier.engines.forwards import Forwards
from espalier.engines.learner import LearnerOptions, TorchLearner
from espalier.engines.processes import Distributed, OneProcess
from espalier.engines.protocols import Group
from espalier.errors import CheckpointError, ConfigError
from espalier.files import file_to_tensors, tensors_to_file
from espalier.models.policy import Policy

FILE = "reference.safetensors"


class StartReference:
    """The policy as it stands when this is built: before the first step, and before a checkpoint is loaded.

    It copies the parameters that are trained, in the dtype in which they compute (under FSDP2 this rank's float32
    shards), and puts them in place of the live ones for its forwards. Everything else is shared with the policy. So
    under LoRA it costs one adapter: a new one, whose B is 0, is the base model, and a continued one is the adapter that
    the run started from.

    moves: also keep float32 weights, which `move` changes (if parameters are float32, the copies are these).
    """

    def __init__(self, learner: TorchLearner, *, moves: bool = False):
        self.learner, self.moves = learner, moves
        self._live = learner.optimizer.named
        fsdp.reshard(learner.policy)
        self._copies = {name: parameter.detach().clone() for name, parameter in self._live.items()}
        self._exact: dict[str, Tensor] = {}
        if moves:
            for name, master in learner.optimizer.parameters().items():
                copy = self._copies[name]
                self._exact[name] = copy if copy.dtype == master.dtype else master.detach().clone()

    def logprobs(self, groups: Sequence[Group]) -> list[list[float]]:
        """See `protocols.Reference`; in the dtype and micro-batches of the policy."""
        with self._in_place():
            return [outputs.logprobs for outputs in self.learner.forwards.say(groups, ["logprobs"])]

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        """The policy computes with the copies inside; whatever happens there, it leaves with its own weights' bits.

        Under FSDP2 the bits are those of the shards, from which checkpoints are written. After an error in a forward
        torch keeps what was gathered, so such a policy must not compute again.
        """
        # Parameters that are gathered would be used again, in place of the copies.
        fsdp.reshard(self.learner.policy)
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, parameter in self._live.items():
            copy = self._copies[name]
            if not isinstance(parameter, DTensor):
                parameter.data, copy.data = copy.data, parameter.data
                continue
            # FSDP2 gathers from memory of its own, of which shards are views: contents change
            # places, not tensors.
            live, kept = fsdp.local(parameter.detach()), fsdp.local(copy)
            before = live.clone()
            live.copy_(kept)
            kept.copy_(before)

    @torch.no_grad()
    def move(self, alpha: float) -> None:
        """reference <- alpha * policy + (1 - alpha) * reference, in float32, over the trained parameters.

        Gorbatovski et al., arXiv:2404.09656 (TR-DPO: soft updates for alpha < 1, hard ones at 1). Under LoRA the
        factors A and B move, so for alpha < 1 their product is not the same mixture of the two products.

        Raises ConfigError if the reference was not built to move.
        """
        if not self.moves:
            raise _fixed("the policy as it started")
        for name, master in self.learner.optimizer.parameters().items():
            exact = self._exact[name]
            exact.mul_(1 - alpha).add_(master, alpha=alpha)
            if exact is not self._copies[name]:
                self._copies[name].copy_(exact)

    def save(self, folder: Path) -> None:
        """Write the float32 weights of a reference that moves; all ranks gather, rank 0 keeps and writes."""
        whole: dict[str, Tensor] = {}
        for name, exact in self._exact.items():
            tensor = fsdp.full(exact)
            if self.learner.world.rank == 0:
                whole[name] = tensor.cpu()
        if whole:
            tensors_to_file(whole, folder / FILE)

    def moved(self) -> Iterator[tuple[str, Tensor]]:
        """The float32 weights of a reference that moves, this rank's part of them; nothing of one that does not."""
        for name, exact in self._exact.items():
            yield name, fsdp.local(exact.detach())

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Take what `save` wrote. Raises CheckpointError if it is missing or its parameters differ."""
        if not self.moves:
            return
        weights = file_to_tensors(folder / FILE)
        if weights.keys() != self._exact.keys():
            odd = sorted(weights.keys() ^ self._exact.keys())
            raise CheckpointError(
                f"{folder / FILE}: {len(odd)} parameters are in the checkpoint or in this run only, such as {odd[0]}; "
                "resume with the model section it was saved with"
            )
        for name, exact in self._exact.items():
            exact.copy_(fsdp.like(weights[name], exact))
            if exact is not self._copies[name]:
                self._copies[name].copy_(exact)


class ModelReference:
    """Another model, which never changes. `policy` holds it; its weights are cast to `options.compute` and frozen, and
    sharded under a distributed world. It must have the trained model's tokenizer."""

    def __init__(self, policy: Policy, options: LearnerOptions, *, world: OneProcess | Distributed | None = None):
        self.forwards = frozen(policy, options, world or OneProcess())

    def logprobs(self, groups: Sequence[Group]) -> list[list[float]]:
        """See `protocols.Reference`."""
        return [outputs.logprobs for outputs in self.forwards.say(groups, ["logprobs"])]

    def move(self, alpha: float) -> None:
        """Raises ConfigError."""
        raise _fixed("another model")

    def moved(self) -> Iterator[tuple[str, Tensor]]:
        """Nothing: it does not move."""
        return iter(())

    def save(self, folder: Path) -> None:
        """Nothing: its weights are those of its directory."""

    def load(self, folder: Path) -> None:
        """Nothing."""


def frozen(policy: Policy, options: LearnerOptions, world: OneProcess | Distributed) -> Forwards:
    """The forwards of a policy that is not trained: float32 weights cast to the compute dtype (buffers stay: RoPE
    frequencies need float32), no gradients, and sharded under a distributed world."""
    policy.eval().requires_grad_(False)
    if isinstance(world, Distributed):
        fsdp.shard(policy, world, options.compute)
    else:
        for parameter in policy.model.parameters():
            if parameter.dtype == torch.float32:
                parameter.data = parameter.data.to(options.compute)
    return Forwards(
        policy, world, budget=options.budget, compute=options.compute, whole=options.whole, long_from=options.long_from
    )


def _fixed(what: str) -> ConfigError:
    return ConfigError(
        f"the reference is {what} and does not move, but the algorithm moves it; expected reference: memory without "
        "reference_model"
    )
