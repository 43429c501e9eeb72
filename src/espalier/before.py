"""What stands before the first step: the parts of a run, what it resolved to, and the checks."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy
import torch

from espalier import build, preflight
from espalier.algorithms.dpo import DPO
from espalier.algorithms.reward import Reward
from espalier.build import Model
from espalier.data.dataset import Dataset, Opened
from espalier.data.plan import REPLAY
from espalier.data.read import read
from espalier.data.render.drafts import Judged, Rendered
from espalier.data.render.renderer import Renderer
from espalier.data.store.stats import StoreStats
from espalier.data.store.store import Store
from espalier.engines import processes as worlds
from espalier.engines.learner import TorchLearner
from espalier.engines.protocols import Reference
from espalier.errors import RowError
from espalier.forest.microbatches import Layout, forward_size, microbatches
from espalier.loop.annotate import annotate
from espalier.loop.evaluate import loss_of
from espalier.loop.progress import Progress
from espalier.preflight import Check
from espalier.reference import build_reference, check_model, reference_bytes
from espalier.runs import RunConfig, preference_of, unread_in_judging
from espalier.types import Example, Sample

CHECKED_ROWS = 32
SIZED = 64


@dataclass(slots=True)
class Parts:
    """What `sft` and `check` share."""

    model: Model
    renderer: Renderer
    opened: Opened
    dataset: Dataset
    world: Any
    device: Any
    say: Progress


@contextmanager
def parts(config: RunConfig) -> Iterator[Parts]:
    """Model and data, read and described; ends the process group on the way out."""
    device = worlds.pick_device()
    if config.loop.deterministic and device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    for plant in (random.seed, numpy.random.seed, torch.manual_seed):  # checkpoints hold all three generators
        plant(config.loop.seed % 2**32)
    world = worlds.start(device)
    say = Progress(0, rank=world.rank)
    try:
        check_model(config)
        noise, head = getattr(config.algorithm, "neftune_alpha", 0.0), build.head_of(config)
        model = build.build_model(config.model, device, seed=config.loop.seed, neftune_alpha=noise, head=head)
        renderer = build.build_renderer(config, model.loaded)
        model.notes += build.padding_notes(model, renderer)
        held = build.held_renderer(config, model.loaded)
        opened, dataset = build.build_data(config, renderer, say.reading("rows tokenised"), held)
        yield Parts(model, renderer, opened, dataset, world, device, say)
    finally:
        world.close()


# ------------------------------------------------------------------------------------------------------- what it says


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


def _largest(p: Parts, budget: int, layout: Layout) -> int:
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


def checks_before(config: RunConfig, p: Parts) -> list[Check]:
    """Checks of the data, and, where it will be sharded, of the model as it is before that."""
    stats = [(s.source, s.stats) for s in p.opened.all]
    counts = [s for _, s in stats]
    tokenizer = p.model.loaded.tokenizer
    rows = list(_rows(config, p))
    examples = [example for example, _ in rows]
    stored = [group for _, group in rows]
    checks: list[tuple[str, Callable[[], Check]]] = [
        ("rows", lambda: preflight.rows(counts)),
        ("trained", lambda: preflight.trained(stats)),
        ("stop", lambda: preflight.stop([s.stats for s in p.opened.all if s.part == "main"])),
        ("bos", lambda: preflight.bos(counts, p.renderer.bos_id)),
        (
            "mask",
            lambda: preflight.mask(
                examples, p.renderer.render, lambda ids: str(tokenizer.decode(ids)), p.renderer.train_on
            ),
        ),
        ("template", lambda: preflight.template(examples, p.renderer.render, stored)),
    ]
    if p.world.size > 1:
        checks.append(("layout", lambda: preflight.layout(p.model.policy, p.dataset.groups(0), torch.float32)))
    return preflight.run(checks, config.loop.skip_checks)


def _rows(config: RunConfig, p: Parts) -> Iterator[tuple[Example, list[Sample]]]:
    """The first rows of every source that can be rendered, each with what is stored of it."""
    flipped = preference_of(config).flip  # held-out files are rendered without it, by another renderer
    held = zip(p.opened.held_sources, p.opened.held_out, strict=False) if not flipped else ()
    for source, store in (*zip(p.opened.sources, (*p.opened.main, *p.opened.replay), strict=True), *held):
        default = "text" if store.part == REPLAY else config.data.format
        form = config.algorithm.traits.consumes
        found = read(source, default_format=default, alpaca_prompt=config.data.alpaca_prompt, form=form)
        examples = (e for e in found if not isinstance(e, RowError))
        yield from islice(matched(p.renderer, store, examples), CHECKED_ROWS)


def matched(renderer: Renderer, store: Store, examples: Iterable[Example]) -> Iterator[tuple[Example, list[Sample]]]:
    """The examples that can be rendered, in the order of the source, each with the group that is stored of it.

    They are matched by line: a store refuses rows that can be rendered (scores in other dimensions than those of the
    rows before). A line of several examples of which it refused some, or whose grades it left out, is skipped.
    """
    at = 0
    for line, several in groupby(examples, key=lambda example: example.origin.line):
        rendered = [(example, group) for example in several if (group := _rendered(renderer, example)) is not None]
        stored = store.groups_of(line, at)
        at = stored.stop
        kept = store.stats.dimensions
        odd = any(isinstance(group, Judged) and group.dimensions not in ((), kept) for _, group in rendered)
        if len(stored) == len(rendered) and not odd and store.dimensions == kept:
            yield from ((example, store.group(i)) for (example, _), i in zip(rendered, stored, strict=True))
        if at == len(store):
            return


def _rendered(renderer: Renderer, example: Example) -> list[Rendered] | None:
    try:
        return renderer.render(example)
    except RowError:
        return None


def prepared(config: RunConfig, p: Parts) -> tuple[TorchLearner, Reference | None, list[Check]]:
    """The learner and the reference of a run, and what all checks say of them; nothing is updated."""
    from espalier.held import gated

    before = checks_before(config, p)
    learner = build.build_learner(config, p.model, p.renderer, p.world, p.device)
    reference = build_reference(config, p.model, p.opened, learner, p.say.reading("groups held against the reference"))
    after = checks_after(config, p, learner, reference)
    return (
        learner,
        reference,
        [*before, *after, *preflight.run(gated(config, p, learner, reference), config.loop.skip_checks)],
    )


def checks_after(config: RunConfig, p: Parts, learner: TorchLearner, reference: Reference | None) -> list[Check]:
    """Checks that need a gradient; nothing is updated."""
    algorithm = config.algorithm

    @cache
    def probe() -> tuple[float, dict[str, float]]:
        groups = p.dataset.groups(0)[: max(4, p.world.size)]
        state = annotate(groups, algorithm, learner, reference, {})
        result = learner.forward_backward(groups, loss_of(algorithm), state, 0)
        shares = learner.probe_update(config.optim.lr, p.model.loaded.source_dtype)
        return result.terms.get("nll", result.loss) if algorithm.traits.likelihood else result.loss, shares

    guess = math.log(p.model.loaded.model.config.get_text_config().vocab_size) if algorithm.traits.likelihood else None
    checks: list[tuple[str, Callable[[], Check]]] = [
        ("loss", lambda: preflight.loss(probe()[0], guess)),
        ("update", lambda: preflight.update(probe()[1])),
    ]
    if p.world.size == 1:  # the learner has cast the model: this is the path that trains
        policy, compute = p.model.policy, p.model.compute
        checks.insert(0, ("layout", lambda: preflight.layout(policy, p.dataset.groups(0), compute)))
    return preflight.run(checks, config.loop.skip_checks)


def settle(say: Progress, checks: list[Check], path: Path | None) -> None:
    say.table("Checks", ("check", "value", "limit", "verdict"), [(c.name, c.value, c.limit, c.verdict) for c in checks])
    for c in checks:
        if c.verdict == "warn":
            say.note(f"{c.name}: {c.way_out}")
    preflight.settle(checks, path)
