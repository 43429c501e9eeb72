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
from espalier.engines.forwards import Forwards
from espalier.engines.optimizer import Optimizer
from espalier.engines.processes import Distributed, OneProcess
from espalier.engines.protocols import Group, LossFn, Measured, Quantity, SampleOutputs, StepResult, from_first
from espalier.errors import CheckpointError
from espalier.files import file_to_tensors, tensors_to_file
from espalier.forest.pack import totals
from espalier.forest.trie import laid_length
from espalier.losses.ops import normalise
from espalier.models import adapters
from espalier.models.attention import interface as attention
from espalier.models.export import export
from espalier.models.noise import Noise
from espalier.models.policy import Policy
from espalier.types import Batch, Outputs, Sample


@dataclass(frozen=True, slots=True)
class LearnerOptions:
    """How a learner computes.

    budget: packed tokens in a forward. compute: dtype of forward and backward; masters are float32. linear: the loss is
    linear in the log-probabilities, so the head forms its gradients in the forward pass. whole: the loss needs groups
    in one piece. router_coef: coefficient of the load-balancing loss. long_from: see `microbatches.Packing`.
    """

    budget: int = 2048
    compute: torch.dtype = torch.float32
    linear: bool = False
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
        trained = [(n, p) for n, p in policy.model.named_parameters() if p.requires_grad]
        ends: list[Any] = [m for m in policy.model.modules() if isinstance(m, torch.nn.Embedding)]  # of positions, too
        ends += [policy.model.get_input_embeddings(), policy.model.get_output_embeddings()]
        ends.append(getattr(policy.model, adapters.SCORE, None))
        inside = {id(p) for module in ends if module is not None for p in module.parameters()}
        plain = {n for n, p in trained if id(p) in inside}
        self.optimizer = self._build_optimizer(trained, optim, plain)
        self.forwards = Forwards(
            policy, self.world, budget=options.budget, compute=options.compute, whole=options.whole,
            long_from=options.long_from, count_uses=bool(options.router_coef),
        )  # fmt: skip
        self._zero = torch.zeros((), dtype=torch.float64, device=self.device)

    def _build_optimizer(self, trained: list[tuple[str, Any]], optim: OptimConfig, plain: set[str]) -> Optimizer:
        low = self.options.compute != torch.float32 and not isinstance(self.world, Distributed)
        exact = {n: p.detach().clone() for n, p in trained} if low else {}
        self._frozen: dict[str, Tensor] = {}  # frozen weights that the compute dtype cannot hold, on the CPU
        if low:  # buffers keep their dtype: RoPE frequencies need float32
            score = getattr(self.policy.model, adapters.SCORE, None)  # small, read in float32, and never rounded
            wide = {id(p) for p in score.parameters()} if score is not None else set()
            for n, p in self.policy.model.named_parameters():
                if p.dtype == torch.float32 and id(p) not in wide:
                    whole, p.data = p.data, p.data.to(self.options.compute)
                    if not p.requires_grad and not torch.equal(p.data.float(), whole):
                        self._frozen[n] = whole.cpu()
        optimizer = Optimizer(trained, optim, plain)
        for name, value in exact.items():  # masters start from the weights as loaded, not from their rounding
            optimizer.take(name, value)
        return optimizer

    # --------------------------------------------------------------------------------------------- without gradients

    def say(self, groups: Sequence[Group], what: Sequence[Quantity]) -> list[SampleOutputs]:
        """What the model says about every sample, in order; scores have the stored bias and scale applied.

        Raises ValueError for a quantity that the policy's head does not give.
        """
        return self.forwards.say(groups, what, calibrated=True)

    @torch.no_grad()
    def measure(self, groups: Sequence[Group], loss: LossFn, state: dict[str, float]) -> dict[str, Measured]:
        """The terms of `loss`, summed over all groups and ranks, each with what it is divided by."""
        sums = totals(groups)
        found: dict[str, tuple[float, float]] = {}  # total and coefficient, the same in every batch
        added: dict[str, Tensor] = {}
        plan = self.forwards.plan(groups)
        for batch, real in self.forwards.batches(plan, groups, sums, state):
            scores = self.policy(batch)
            if real:
                for name, term in loss(self._outputs(scores, batch), batch).items():
                    found[name] = (sums[term.over, term.part], term.coef)
                    added[name] = added.get(name, torch.zeros_like(self._zero)) + term.x.sum()
        fsdp.reshard(self.policy)
        if self._some_idle(plan):
            found = from_first(found, self.world)
        values = self.world.sum([added[n].item() if n in added else 0.0 for n in sorted(found)])
        return {n: Measured(x, *found[n]) for n, x in zip(sorted(found), values, strict=True)}

    def _outputs(self, scores: dict[str, Tensor], batch: Batch) -> Outputs:
        if self.policy.says == "reads":
            return Outputs(scores["scores_RK"].new_zeros(0), scores_RK=scores["scores_RK"])
        return Outputs(scores["logprobs"][batch.score])

    # ------------------------------------------------------------------------------------------------------ training

    def forward_backward(self, groups: Sequence[Group], loss: LossFn, state: dict[str, float], step: int) -> StepResult:
        """Accumulate the gradient of `loss`: sums over all micro-batches and ranks, divided by the step's totals."""
        sums = totals(groups)
        shares: dict[str, Tensor] = {}
        whole = torch.zeros_like(self._zero)
        packed = scored = 0
        plan = self.forwards.plan(groups)
        forwards = sum(1 for forward in plan if forward)
        for batch, real in self.forwards.batches(plan, groups, sums, state):
            noise = self._noise(batch, step)
            if not real:  # no loss sees a dummy: it joins the collectives and adds nothing
                scores = self.policy(batch, noise=noise)
                said = scores["scores_RK" if self.policy.says == "reads" else "logprobs"]
                torch.autograd.backward(said, torch.zeros_like(said))
                continue
            cotangent = self._cotangent(batch, loss) if self.options.linear else None
            scores = self.policy(batch, cotangent_U=cotangent, noise=noise)
            value, terms = normalise(loss(self._outputs(scores, batch), batch), sums)
            if self.options.router_coef:
                balance = scores["router"] / forwards
                terms["router"] = balance.detach()
                value = value + self.options.router_coef * balance
            value.backward()  # type: ignore[no-untyped-call]
            whole += value.detach()
            for name, share in terms.items():
                shares[name] = shares.get(name, torch.zeros_like(whole)) + share
            packed += batch.inputs_N.numel()
            scored += batch.score.numel()
        names: list[str] = sorted(shares)
        if self._some_idle(plan):
            names = from_first(names, self.world)
        numbers = self.world.sum(
            [whole.item(), *(shares[n].item() if n in shares else 0.0 for n in names), packed, scored]
        )
        return StepResult(
            loss=numbers[0],
            terms=dict(zip(names, numbers[1:-2], strict=True)),
            tokens=sum(len(s.tokens) for g in groups for s in g),
            packed=int(numbers[-2]),
            scored=int(numbers[-1]),
        )

    def _some_idle(self, plan: list[list[Sequence[Sample]]]) -> bool:
        """Whether a rank sees no loss: all that it runs are dummies. Rank 0 always has a batch if there is one."""
        return any(not any(plan[rank :: self.world.size]) for rank in range(self.world.size))

    def _cotangent(self, batch: Batch, loss: LossFn) -> Tensor:
        """d loss / d log-probabilities [U] of a linear loss, which is the same wherever it is taken."""
        wide = torch.float64 if next(self.policy.parameters()).dtype == torch.float64 else torch.float32
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
        """Clip, update, clear gradients. Raises FloatingPointError before the update when the gradient is not
        finite."""
        return {"grad_norm": self.optimizer.step(lr)}

    def probe_update(self, lr: float, dtype: torch.dtype) -> dict[str, float]:
        """Share of weights with a gradient that a first Adam step of size `lr` would change, in the masters' dtype and
        in `dtype`; clears the gradient.

        Adam's first step moves every weight by lr times the sign of its gradient, whatever the gradient's size.
        """
        moved = {torch.float32: 0.0, dtype: 0.0}
        counted = 0.0
        for p in self.optimizer.parameters().values():
            if p.grad is None:
                continue
            w, g = fsdp.local(p.detach()), fsdp.local(p.grad)
            touched = g != 0
            counted += touched.sum().item()
            for kind in moved:
                rounded = w.to(kind)
                moved[kind] += (((w - lr * g.sign()).to(kind) != rounded) & touched).sum().item()
            p.grad = None
        sums = self.world.sum([counted, *moved.values()])
        names = [str(kind).removeprefix("torch.") for kind in moved]
        return {name: share / max(1.0, sums[0]) for name, share in zip(names, sums[1:], strict=True)}

    # ------------------------------------------------------------------------------------------------------- weights

    @contextmanager
    def _exact(self) -> Iterator[None]:
        """The model's parameters in master precision, for reading."""
        exact = {**self._frozen, **{name: master.data for name, master in self.optimizer.masters.items()}}
        parameters = {name: p for name, p in self.policy.model.named_parameters() if name in exact}
        low = {name: p.data for name, p in parameters.items()}
        for name, p in parameters.items():
            p.data = exact[name].to(self.device)
        try:
            yield
        finally:
            for name, p in parameters.items():
                p.data = low[name]

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
        main = self.world.rank == 0
        trained: dict[str, Tensor] = {}
        state: dict[str, Tensor] = {}
        for into, tensors in ((trained, self.optimizer.weights()), (state, self.optimizer.state())):
            for name, tensor in tensors:
                if main:
                    into[name] = tensor.cpu()
        if main:
            tensors_to_file(trained, folder / "trained.safetensors")
            tensors_to_file(state, folder / "optimizer.safetensors")

    def load(self, folder: Path) -> None:
        """Take what `save` wrote. Raises CheckpointError where trained parameters differ from the saved ones."""
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
        o = self.export_options
        try:
            with self._exact():
                export(
                    self.policy.model, o.tokenizer, folder, source_dtype=o.source_dtype, stop_ids=o.stop_ids,
                    adapter_only=o.adapter_only, write=self.world.rank == 0,
                )  # fmt: skip
        finally:  # a rank 0 that cannot write must not leave the others waiting
            self.world.barrier()
