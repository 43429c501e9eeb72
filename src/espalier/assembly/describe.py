"""What a run resolved to, printed before anything is computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy
import torch

from espalier.algorithms.dpo import DPO
from espalier.algorithms.reward import Reward
from espalier.assembly import learner as build
from espalier.assembly.parts import Parts
from espalier.assembly.reference import reference_bytes
from espalier.assembly.runs import RunConfig, preference_of, unread_in_judging
from espalier.data.store.stats import StoreStats
from espalier.forest.microbatches import Packing, forward_size, microbatches

SIZED = 64


def describe_data(config: RunConfig, p: Parts) -> None:
    """Print what was read, what became of it and why."""
    stats = [(s, s.stats) for s in p.opened.all]
    columns = ("source", "part", "rows", "kept", "rejected", "truncated", "samples", "tokens", "trained")
    p.say.table(
        "Data", columns,
        [(s.source, s.part, t.rows, t.kept, t.rejected, t.truncated, t.samples, t.tokens, t.trained) for s, t in stats],
    )  # fmt: skip
    for s, t in stats:
        for line in _counted(t):
            p.say.note(f"{s.source}: {line}")
    if repeated := sum(t.duplicates for _, t in stats):
        p.say.note(f"{repeated:,} rows are exact duplicates of earlier ones")
    if unread := unread_in_judging(config):
        p.say.note(f"eval_only trains nothing; not used: {', '.join(unread)}")
    for line in _taken(config, [t for _, t in stats]):
        p.say.note(line)


def describe(config: RunConfig, p: Parts) -> None:
    """Print what the run resolved to, before anything is computed."""
    describe_data(config, p)
    first = p.dataset.groups(0)
    budget = build.budget(config, p.device)
    layout = build.token_layout(p.model, whole=config.algorithm.traits.whole)
    forwards = microbatches(first, budget, layout, ranks=p.world.size)
    largest = max(budget, *(forward_size(forward, layout) for forward in forwards), _largest(p, budget, layout))
    need = build.estimate(p.model, largest, ranks=p.world.size, checkpointing=config.loop.grad_checkpointing)
    if extra := reference_bytes(config, p.model):
        need["reference"] = extra // p.world.size
    gib = {name: f"{size / 2**30:.2f}" for name, size in need.items()}
    total = sum(need.values()) / 2**30
    frozen = p.model.frozen
    piece = "group" if layout.whole else "sample"
    for line in (
        *p.model.notes,
        f"trains {frozen.trainable:,} of {frozen.total:,} parameters, compute in {str(p.model.compute)[6:]}",
        f"attention: {_attention(p)}",
        f"{p.dataset.steps:,} steps, {p.dataset.epoch_of(p.dataset.steps):.2f} epochs; the first step has "
        f"{sum(len(g) for g in first):,} samples and {sum(len(s) for g in first for s in g):,} tokens in "
        f"{len(forwards)} micro-batches of at most {budget:,} on {p.world.size} process{'es' * (p.world.size > 1)}",
        *[f"a {piece} is never cut: the largest one has {largest:,} tokens and runs alone"] * (largest > budget),
        *_resolved(config, p),
        f"memory about {total:.2f} GiB a process, libraries aside: {', '.join(f'{n} {v}' for n, v in gib.items())}",
    ):
        p.say.note(line)


def _largest(p: Parts, budget: int, layout: Packing) -> int:
    """Tokens of the largest piece (what is never cut) above the budget, 0 where there is none: of the `SIZED` groups of
    each source that have the most tokens, counting a shared prefix for each sample."""
    found = 0
    for store in p.opened.all:
        above = numpy.flatnonzero(store.lengths > (0 if layout.padded else budget))  # padding adds to them
        for i in above[numpy.argsort(-store.lengths[above], kind="stable")][:SIZED]:
            group = store.group(int(i))
            pieces = [group] if layout.whole else [[s] for s in group]
            found = max([found, *(forward_size([piece], layout) for piece in pieces)])
    return found if found > budget else 0


def _resolved(config: RunConfig, p: Parts) -> Iterator[str]:
    """What settings come to that mean something else, or nothing, in this run."""
    algorithm = config.algorithm
    if isinstance(algorithm, DPO) and not algorithm.beta:
        several = "sigmoid_norm" in algorithm.weights and len(algorithm.weights) > 1
        yield f"beta {algorithm.strength:g}" + " for all variants, where sigmoid_norm alone has 5" * several
    if (every := algorithm.traits.sync_every) > p.dataset.steps:
        yield f"the reference never moves: sync_every is {every:,}, and there are {p.dataset.steps:,} steps"
    if isinstance(algorithm, Reward) and len(algorithm.dimensions) > 1 and not algorithm.learns_grades:
        why = "pointwise_coef is 0" if p.opened.dimensions else "no response has a score in them"
        yield f"of dimensions {', '.join(algorithm.dimensions)} only the total is trained: {why}"


def _taken(config: RunConfig, stats: Sequence[StoreStats]) -> Iterator[str]:
    """What is asked for of judgements, where anything is, and what of it touches none that these rows have."""
    asked = preference_of(config)
    have = {kind for t in stats for kind in t.judged_by}
    # Labels that are learned from as they are have no gap; as comparisons, good and bad are 1 apart.
    gaps = config.algorithm.traits.wants != "labels" or bool(have - {"labels"})
    weights = "dimensions" in have
    said = [
        f"{asked.judged_by} alone decide" * (asked.judged_by != "auto"),
        f"those less than {asked.min_gap:g} apart are left out" * bool(asked.min_gap and gaps),
        f"at most {asked.max_pairs:,} a prompt" * bool(asked.max_pairs),
        f"a share of {asked.flip:g} is turned around, of held-out ones none" * bool(asked.flip),
        f"score dimensions weigh {', '.join(asked.score_weights)}" * bool(asked.score_weights and weights),
    ]
    if any(said):
        yield f"judgements: {'; '.join(filter(None, said))}"
    if asked.min_gap and not gaps:
        yield "min_gap touches no row that is kept: labels good and bad decide in all of them, not ranks or scores"
    if asked.score_weights and not weights:
        yield "score_weights touch no row that is kept: scores of named dimensions decide in none of them"


def _counted(stats: StoreStats) -> Iterator[str]:
    """Why rows are rejected, what is left out of those that are kept, and how many responses prompts have."""
    several = {f"{k} responses": n for k, n in stats.responses.items()} if max(stats.responses, default=0) > 2 else {}
    counts = {"rejected": stats.reasons, "left out of rows that are kept": stats.dropped, "prompts with": several}
    for what, found in counts.items():
        if found:
            yield f"{what} " + ", ".join(f"{name} ({n:,})" for name, n in found.items())


def _attention(p: Parts) -> str:
    """Which kernels attend, and whether a rerun repeats their bits."""
    if p.model.policy.layout == "padded":
        return f"the architecture's own ({p.model.loaded.model.config._attn_implementation})"
    if p.device.type == "cpu":
        return "SDPA, a call a segment; repeats bit for bit"
    kernel = "flash over gathered keys" if p.model.compute == torch.bfloat16 else "FlexAttention with an ancestor mask"
    bits = (
        "repeats bit for bit" if torch.are_deterministic_algorithms_enabled() else "not bitwise (see --deterministic)"
    )
    return f"{kernel}; {bits}"
