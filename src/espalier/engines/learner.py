"""The learner on torch: one process, or FSDP2 shards under torchrun. Takes whole steps: global in, global out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from espalier.config.sections import OptimConfig
from espalier.engines import fsdp
from espalier.engines.forwards import OUTPUT, Forwards, Placed
from espalier.engines.optimizer import Optimizer
from espalier.engines.processes import Distributed, OneProcess
from espalier.engines.protocols import (
    Group,
    LossFn,
    Measured,
    Quantity,
    SampleOutputs,
    StepResult,
    from_first,
    samples_of,
)
from espalier.engines.sums import Sums
from espalier.errors import CheckpointError
from espalier.files import file_to_tensors, tensors_to_file
from espalier.forest.pack import Totals, totals
from espalier.forest.trie import laid_length
from espalier.losses.ops import normalise, peaks
from espalier.models import adapters
from espalier.models.attention import interface as attention
from espalier.models.export import export
from espalier.models.noise import Noise
from espalier.models.policy import Policy
from espalier.types import Batch, Outputs, Sample

VALUE_HEAD = "value_head.weight"
"""The name of a value head beside the token head among the parameters that are trained."""


@dataclass(frozen=True, slots=True)
class LearnerOptions:
    """How a learner computes.

    budget: packed tokens in a forward.
    compute: dtype of forward and backward; masters are float32.
    linear: the loss is linear in the log-probabilities, so the head forms its gradients in the forward pass.
    entropy: the loss reads `Outputs.entropy`, gradient included.
    whole: the loss needs groups in one piece.
    router_coef: coefficient of the load-balancing loss.
    grad_checkpointing: recompute each layer's activations in the backward pass.
    compile: compile each layer, with dynamic shapes.
    long_from: see `microbatches.Packing`.
    seed: of the noise (NEFTune, dropout).
    """

    budget: int = 2048
    compute: torch.dtype = torch.float32
    linear: bool = False
    entropy: bool = False
    whole: bool = False
    router_coef: float = 0.0
    grad_checkpointing: bool = False
    compile: bool = False
    long_from: int = 0
    seed: int = 0


@dataclass(slots=True)
class ExportOptions:
    """What `model/` holds: see `models.export`."""

    tokenizer: Any = None
    source_dtype: torch.dtype = torch.float32
    stop_ids: tuple[int, ...] = ()
    adapter_only: bool = False
    source: Path | None = None


class TorchLearner:
    """Trains a `Policy`. Under a distributed world the policy is sharded here, in place."""

    def __init__(
        self,
        policy: Policy,
        optim: OptimConfig,
        options: LearnerOptions,
        *,
        world: OneProcess | Distributed | None = None,
        export_options: ExportOptions | None = None,
    ):
        self.policy, self.options = policy, options
        self.world = world or OneProcess()
        self.export_options = export_options or ExportOptions()
        self.device = next(policy.parameters()).device
        policy.train()
        if options.grad_checkpointing:
            policy.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if options.compile:
            if policy.layout != "padded":
                attention.register(compiled=True)
            for layer in fsdp.layers(policy.model):
                layer.compile(dynamic=True)
        if isinstance(self.world, Distributed):
            fsdp.shard(policy, self.world, options.compute)
        # Frozen weights that the compute dtype cannot hold, on the CPU: `weights` and `export` need
        # them.
        self._frozen: dict[str, Tensor] = {}
        self.optimizer = self._build_optimizer(optim)
        self.forwards = Forwards(
            policy,
            self.world,
            budget=options.budget,
            compute=options.compute,
            whole=options.whole,
            long_from=options.long_from,
            count_uses=bool(options.router_coef),
        )
        self._zero = torch.zeros((), dtype=torch.float64, device=self.device)

    def _build_optimizer(self, optim: OptimConfig) -> Optimizer:
        """The optimizer of the trained parameters, which are cast to the compute dtype first (but for FSDP2, which
        casts on its own)."""
        trained = [
            (name, parameter) for name, parameter in self.policy.model.named_parameters() if parameter.requires_grad
        ]
        if self.policy.value_head is not None:
            trained.append((VALUE_HEAD, self.policy.value_head.weight))
        plain = _ends(self.policy.model, trained) | {VALUE_HEAD}
        if self.options.compute == torch.float32 or isinstance(self.world, Distributed):
            return Optimizer(trained, optim, plain)
        exact = {name: parameter.detach().clone() for name, parameter in trained}
        self._cast()
        optimizer = Optimizer(trained, optim, plain)
        # Masters start from the weights as loaded, not from their rounding.
        for name, value in exact.items():
            optimizer.take(name, value)
        return optimizer

    def _cast(self) -> None:
        """Cast float32 parameters to the compute dtype, and keep frozen ones that this rounds."""
        # A scalar head is small and read in float32, so it is never rounded. Buffers keep their
        # dtype, too: RoPE frequencies need float32.
        score = getattr(self.policy.model, adapters.SCORE, None)
        kept = set() if score is None else {id(parameter) for parameter in score.parameters()}
        for name, parameter in self.policy.model.named_parameters():
            if parameter.dtype != torch.float32 or id(parameter) in kept:
                continue
            exact, parameter.data = parameter.data, parameter.data.to(self.options.compute)
            if not parameter.requires_grad and not torch.equal(parameter.data.float(), exact):
                self._frozen[name] = exact.cpu()

    # --------------------------------------------------------------------------------------------- without gradients

    def say(self, groups: Sequence[Group], what: Sequence[Quantity]) -> list[SampleOutputs]:
        """What the model says about every sample, in order; scores have the stored bias and scale applied.

        Raises ValueError for a quantity that the policy's head does not give.
        """
        return self.forwards.say(groups, what, calibrated=True)

    @torch.no_grad()
    def measure(self, groups: Sequence[Group], loss: LossFn, state: dict[str, float]) -> dict[str, Measured]:
        """The terms of `loss`, summed over all groups and ranks, each with what it is divided by; those over `max` are
        left out."""
        divisors = totals(groups)
        # Total and coefficient of a term: the same in every batch.
        facts: dict[str, tuple[float, float]] = {}
        sums: dict[str, Tensor] = {}
        plan = self.forwards.plan(groups)
        for batch, real in self.forwards.batches(plan, groups, divisors, state):
            scores = self.policy(batch, entropy=self.options.entropy)
            if not real:
                continue
            for name, term in loss(self._outputs(scores, batch), batch).items():
                if term.over == "max":
                    continue
                facts[name] = (divisors[term.over, term.part], term.coef)
                sums[name] = sums.get(name, torch.zeros_like(self._zero)) + term.x.sum()
        fsdp.reshard(self.policy)
        if self._some_idle(plan):
            facts = from_first(facts, self.world)
        names = sorted(facts)
        values = self.world.sum([sums.get(name, self._zero).item() for name in names])
        return {name: Measured(value, *facts[name]) for name, value in zip(names, values, strict=True)}

    def _outputs(self, scores: dict[str, Tensor], batch: Batch) -> Outputs:
        if self.policy.says == "reads":
            return Outputs(scores["scores_RK"].new_zeros(0), scores_RK=scores["scores_RK"])
        if self.policy.says == "values":
            return Outputs(scores["values"].new_zeros(0), values=scores["values"][batch.score])
        # Entropy for the log alone has no gradient, and no loss sees it.
        entropy = scores["entropy"][batch.score] if self.options.entropy else None
        values = scores["values"][batch.score] if self.policy.value_head is not None else None
        return Outputs(scores["logprobs"][batch.score], entropy, values=values)

    # ------------------------------------------------------------------------------------------------------ training

    def forward_backward(
        self,
        groups: Sequence[Group],
        loss: LossFn,
        state: dict[str, float],
        step: int,
        *,
        silent: Sequence[Group] = (),
        keep: Sequence[Quantity] = (),
    ) -> StepResult:
        """Accumulate the gradient of `loss`: sums over all micro-batches and ranks, divided by the update's totals, in
        which `silent` groups count, too."""
        ran = totals(groups)
        divisors = _added(ran, totals(silent, streams=False))
        entropy = self.options.entropy or "entropy" in keep
        # The gradient of a kept entropy is not formed, and a head that forms its gradients early has no entropy.
        early = self.options.linear and not entropy
        sums = Sums(self._zero)
        placed = Placed(samples_of(groups), keep)
        plan = self.forwards.plan(groups)
        forwards = sum(1 for forward in plan if forward)
        for batch, real in self.forwards.batches(plan, groups, divisors, state):
            noise = self._noise(batch, step)
            # No loss sees a dummy: it joins the collectives of both passes and adds nothing.
            if not real:
                scores = self.policy(batch, noise=noise)
                outputs = [scores[name] for name in (OUTPUT[self.policy.says], "values") if name in scores]
                torch.autograd.backward(outputs, [torch.zeros_like(output) for output in outputs])
                continue
            cotangent_U = self._cotangent(batch, loss) if early else None
            scores = self.policy(
                batch, entropy=entropy, entropy_grad=self.options.entropy, cotangent_U=cotangent_U, noise=noise
            )
            terms = loss(self._outputs(scores, batch), batch)
            value, shares = normalise(terms, divisors, ran)
            if self.options.router_coef:
                # The mean over the update's forwards. It is not linear in the tokens, so it depends
                # on the split.
                balance = scores["router"] / forwards
                shares["router"] = balance.detach()
                value = value + self.options.router_coef * balance
            value.backward()  # type: ignore[no-untyped-call]
            sums.add(value, shares, peaks(terms), batch)
            placed.put(batch, scores)
        return sums.result(
            self.world,
            some_idle=self._some_idle(plan),
            tokens=sum(len(s.tokens) for s in samples_of(groups)),
            outputs=self.forwards.gathered(placed) if keep else [],
        )

    def _some_idle(self, plan: list[list[Sequence[Sample]]]) -> bool:
        """Whether a rank sees no loss: all that it runs are dummies. Rank 0 always has a batch if there is one."""
        return any(not any(plan[rank :: self.world.size]) for rank in range(self.world.size))

    def _cotangent(self, batch: Batch, loss: LossFn) -> Tensor:
        """d loss / d log-probabilities [U] of a linear loss: the same at any log-probabilities, so taken at 0."""
        double = next(self.policy.parameters()).dtype == torch.float64
        wide = torch.float64 if double else torch.float32
        zeros_U = torch.zeros(len(batch.targets_U), dtype=wide, device=self.device, requires_grad=True)
        value, _ = normalise(loss(Outputs(zeros_U[batch.score]), batch), batch.totals)
        (cotangent_U,) = torch.autograd.grad(value, zeros_U)
        return cotangent_U

    def _noise(self, batch: Batch, step: int) -> Noise | None:
        if not self.policy.noisy:
            return None
        laid = [s for s in batch.samples if laid_length(s)]
        keys, lengths = [s.key for s in laid], [len(s.tokens) for s in laid]
        return Noise(self.options.seed, step, keys, lengths, [s.length for s in batch.segments])

    def optim_step(self, lr: float) -> dict[str, float]:
        """Clip, update, clear gradients. Raises FloatingPointError before the update if the gradient is not finite."""
        return {"grad_norm": self.optimizer.step(lr)}

    def drop_gradient(self) -> None:
        """Clear what `forward_backward` accumulated."""
        for parameter in self.optimizer.parameters().values():
            parameter.grad = None

    def probe_update(self, lr: float, dtype: torch.dtype) -> dict[str, float]:
        """Share of weights with a gradient that a first Adam step of size `lr` would change, in the masters' dtype and
        in `dtype`; clears the gradient.

        Adam's first step moves every weight by lr times the sign of its gradient, whatever the gradient's size.
        """
        changed = {torch.float32: 0.0, dtype: 0.0}
        with_gradient = 0.0
        for parameter in self.optimizer.parameters().values():
            if parameter.grad is None:
                continue
            weight, gradient = fsdp.local(parameter.detach()), fsdp.local(parameter.grad)
            touched = gradient != 0
            with_gradient += touched.sum().item()
            for kind in changed:
                updated = (weight - lr * gradient.sign()).to(kind)
                changed[kind] += ((updated != weight.to(kind)) & touched).sum().item()
            parameter.grad = None
        count, *counts = self.world.sum([with_gradient, *changed.values()])
        names = [str(kind).removeprefix("torch.") for kind in changed]
        return {name: part / max(1.0, count) for name, part in zip(names, counts, strict=True)}

    # ------------------------------------------------------------------------------------------------------- weights

    @property
    def unrounded(self) -> dict[str, Tensor]:
        """Frozen weights that the compute dtype rounds, as they were loaded."""
        return self._frozen

    @contextmanager
    def _exact(self) -> Iterator[None]:
        """The model's parameters in master precision, for reading."""
        exact = {**self._frozen, **{name: master.data for name, master in self.optimizer.masters.items()}}
        parameters = {name: parameter for name, parameter in self.policy.model.named_parameters() if name in exact}
        rounded = {name: parameter.data for name, parameter in parameters.items()}
        for name, parameter in parameters.items():
            parameter.data = exact[name].to(self.device)
        try:
            yield
        finally:
            for name, parameter in parameters.items():
                parameter.data = rounded[name]

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Full weights by Hugging Face name, adapters merged; a collective under FSDP.

        Values are those of master precision: float32 if they are trained, merged or rounded by the compute dtype. A
        frozen weight that the compute dtype holds exactly comes in the compute dtype.
        """
        with self._exact():
            yield from adapters.merged_state(self.policy.model)

    def save(self, folder: Path) -> None:
        """Write trained weights in master precision and the optimizer's state; all ranks gather, one tensor at a time,
        and rank 0 keeps and writes."""
        trained = self._gathered(self.optimizer.weights())
        state = self._gathered(self.optimizer.state())
        if self.world.rank == 0:
            folder.mkdir(exist_ok=True)
            tensors_to_file(trained, folder / "trained.safetensors")
            tensors_to_file(state, folder / "optimizer.safetensors")

    def _gathered(self, tensors: Iterator[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors on rank 0's CPU; other ranks take part in gathering each and keep none."""
        kept: dict[str, Tensor] = {}
        for name, tensor in tensors:
            if self.world.rank == 0:
                kept[name] = tensor.cpu()
        return kept

    def load(self, folder: Path) -> None:
        """Take what `save` wrote. Raises CheckpointError if other parameters are trained than were saved."""
        trained = file_to_tensors(folder / "trained.safetensors")
        expected = set(self.optimizer.named)
        if set(trained) != expected:
            odd = sorted(set(trained) ^ expected)
            raise CheckpointError(
                f"{folder}: {len(odd)} trained parameters are in the checkpoint or in this run only, such as {odd[0]}; "
                "resume with the model section it was saved with"
            )
        for name, value in trained.items():
            self.optimizer.take(name, fsdp.like(value, self.optimizer.parameters()[name]))
        self.optimizer.load(file_to_tensors(folder / "optimizer.safetensors"))

    def export(self, folder: Path) -> None:
        """Write a plain Hugging Face directory; rank 0 writes, all ranks gather."""
        options = self.export_options
        try:
            with self._exact():
                export(
                    self.policy.model,
                    options.tokenizer,
                    folder,
                    source_dtype=options.source_dtype,
                    stop_ids=options.stop_ids,
                    adapter_only=options.adapter_only,
                    source=options.source,
                    write=self.world.rank == 0,
                )
        finally:
            # Also if rank 0 could not write: the others wait here, and hear of it from whoever
            # called this.
            self.world.barrier()


def _added(one: Totals, other: Totals) -> Totals:
    return {key: one.get(key, 0.0) + other.get(key, 0.0) for key in (*one, *other)}


def _ends(model: Any, trained: list[tuple[str, Any]]) -> set[str]:
    """The trained parameters of embeddings (of positions, too) and of heads, which are neither decayed nor
    orthogonalised."""
    modules: list[Any] = [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    modules += [model.get_input_embeddings(), model.get_output_embeddings(), getattr(model, adapters.SCORE, None)]
    inside = {id(parameter) for module in modules if module is not None for parameter in module.parameters()}
    return {name for name, parameter in trained if id(parameter) in inside}
