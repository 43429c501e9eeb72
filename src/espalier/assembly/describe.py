"""What a run resolved to, printed before anything is computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy
import torch

from espalier.assembly.describe_rollouts import answered_steps, on_processes
from espalier.assembly.learner import budget, token_layout
from espalier.assembly.memory import memory, per_weight
from espalier.assembly.runs import unread_in_judging
from espalier.assembly.session import Session
from espalier.data.store.stats import StoreStats
from espalier.data.store.store import Store
from espalier.data.tasks import shared_prompts
from espalier.forest.microbatches import Packing, forward_size, microbatches

SIZED = 64
"""Groups of each source among which the largest is sought."""


def describe_data(session: Session) -> None:
    """Print what was read, what became of it and why."""
    stores, console = session.stores, session.console
    console.table("Data", *_table(session.opened.all))
    if session.conversations is not None:
        console.table("Conversations beside the answers", *_table(session.conversations.opened.all))
    for store in stores:
        for line in (*store.columns.lines(), *_counts(store.stats)):
            console.note(f"{store.source}: {line}")
    repeated = sum(store.stats.duplicates for store in stores)
    if repeated:
        console.note(f"{repeated:,} rows are exact duplicates of earlier ones")
    if session.traits.consumes == "task":
        shared = shared_prompts(session.opened)
        if shared:
            console.note(f"{shared:,} held-out prompts are trained on, too: scores on them say little")
    unread = unread_in_judging(session.config)
    if unread:
        console.note(f"eval_only trains nothing; not used: {', '.join(unread)}")
    for line in _judgements(session, [store.stats for store in stores]):
        console.note(line)


Cells = tuple[str | int, ...]


def _table(stores: Sequence[Store]) -> tuple[tuple[str, ...], list[Cells]]:
    """Headings and rows of the table of sources: of tasks, how many have an answer, and their prompts' tokens."""
    tasks = any(store.holds_tasks for store in stores)
    own = ("tasks", "with answer", "tokens", "longest") if tasks else ("truncated", "samples", "tokens", "trained")
    rows: list[Cells] = []
    for store in stores:
        s = store.stats
        counts = (s.truncated, s.samples, s.tokens, s.trained)
        if tasks:
            counts = (s.samples, s.answers, s.tokens, s.longest)
        rows.append((store.source, store.part, s.rows, s.kept, s.rejected, *counts))
    return ("source", "part", "rows", "kept", "rejected", *own), rows


def describe(session: Session) -> None:
    """Print what the run resolved to, before anything is computed."""
    describe_data(session)
    for line in (*session.model.notes, *_plan(session)):
        session.console.note(line)


def _plan(session: Session) -> Iterator[str]:
    """Parameters, kernels, steps, micro-batches and memory, a line each."""
    config, model = session.config, session.model
    frozen = model.frozen
    yield f"trains {frozen.trainable:,} of {frozen.total:,} parameters, compute in {str(model.compute)[6:]}"
    yield f"attention: {_attention(session)}"
    limit = budget(config, session.device)
    layout = token_layout(model, whole=session.traits.whole)
    if session.rollouts is None:
        lines, largest = _given_steps(session, limit, layout)
    else:
        lines, largest = answered_steps(session, limit, layout)
    yield from lines
    if largest > limit:
        piece = "group" if layout.whole else "sample"
        yield f"a {piece} is never cut: the largest one has {largest:,} tokens and runs alone"
    yield from _settings(session)
    need = memory(session, largest)
    if session.rollouts is not None:
        yield per_weight(session)
    parts = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in need.items())
    yield f"memory about {sum(need.values()) / 2**30:.2f} GiB a process, libraries aside: {parts}"


def _given_steps(session: Session, limit: int, layout: Packing) -> tuple[list[str], int]:
    """Lines about the steps of a run on given rows, and the tokens of its largest forward."""
    dataset, ranks = session.rows, session.processes.size
    first = dataset.groups(0)
    forwards = microbatches(first, limit, layout, ranks=ranks)
    samples = sum(len(group) for group in first)
    tokens = sum(len(s) for group in first for s in group)
    line = (
        f"{dataset.steps:,} steps, {dataset.epoch_of(dataset.steps):.2f} epochs; the first step has {samples:,} "
        f"samples and {tokens:,} tokens in {len(forwards)} micro-batches of at most {limit:,} on {on_processes(ranks)}"
    )
    largest = max(limit, _largest_piece(session, limit, layout))
    for forward in forwards:
        largest = max(largest, forward_size(forward, layout))
    return [line], largest


def _largest_piece(session: Session, limit: int, layout: Packing) -> int:
    """Tokens of the largest piece (what is never cut) above the limit, 0 if there is none.

    Sought among the `SIZED` groups of each source that have the most tokens, a shared prefix counted for each sample.
    """
    # Padding adds to the tokens of a group, so that a padded forward of a smaller group may be above the limit, too.
    least = 0 if layout.padded else limit
    largest = 0
    for store in session.opened.all:
        above = numpy.flatnonzero(store.lengths > least)
        for i in above[numpy.argsort(-store.lengths[above], kind="stable")][:SIZED]:
            group = store.group(int(i))
            pieces = [group] if layout.whole else [[s] for s in group]
            for piece in pieces:
                largest = max(largest, forward_size([piece], layout))
    return largest if largest > limit else 0


def _settings(session: Session) -> Iterator[str]:
    """What settings come to if they mean something else, or nothing, in this run."""
    traits, steps = session.traits, session.dataset.steps
    yield from traits.notes
    if traits.sync_every > steps:
        yield f"the reference never moves: sync_every is {traits.sync_every:,}, and there are {steps:,} steps"
    if len(traits.dimensions) > 1 and traits.grades is None:
        why = "pointwise_coef is 0" if session.opened.dimensions else "no response has a score in them"
        yield f"of dimensions {', '.join(traits.dimensions)} only the total is trained: {why}"


def _judgements(session: Session, stats: Sequence[StoreStats]) -> Iterator[str]:
    """How judgements are chosen among, if they are, and which of these choices changes nothing in these rows."""
    preference = session.config.preference
    present = {kind for s in stats for kind in s.judged_by}
    # Labels that are learned from as they are have no gap; as comparisons, good and bad are 1 apart.
    gaps = session.traits.wants != "labels" or bool(present - {"labels"})
    dimensions = "dimensions" in present
    choices = []
    if preference.judged_by != "auto":
        choices.append(f"{preference.judged_by} alone decide")
    if preference.min_gap and gaps:
        choices.append(f"those less than {preference.min_gap:g} apart are left out")
    if preference.max_pairs:
        choices.append(f"at most {preference.max_pairs:,} a prompt")
    if preference.flip:
        choices.append(f"{100 * preference.flip:g} % are flipped, held-out ones never")
    if preference.score_weights and dimensions:
        choices.append(f"score dimensions weigh {', '.join(preference.score_weights)}")
    if choices:
        yield f"judgements: {'; '.join(choices)}"
    if preference.min_gap and not gaps:
        yield "min_gap changes no row: good and bad labels decide in all of them, not ranks or scores"
    if preference.score_weights and not dimensions:
        yield "score_weights change no row: scores of named dimensions decide in none of them"


def _counts(stats: StoreStats) -> Iterator[str]:
    """Why rows are rejected, what is left out of those that are kept, and how many responses prompts have."""
    counts = {
        "rejected": stats.reasons,
        "left out of rows that are kept": stats.dropped,
        "changed in rows that are kept": stats.noted,
        "written as ordinary text": stats.controls,
    }
    if max(stats.responses, default=0) > 2:
        counts["prompts with"] = {f"{k} responses": n for k, n in stats.responses.items()}
    for what, numbers in counts.items():
        if numbers:
            yield f"{what} " + ", ".join(f"{name} ({n:,})" for name, n in numbers.items())


def _attention(session: Session) -> str:
    """Which kernels attend, and whether a rerun repeats their bits."""
    model = session.model
    if model.policy.layout == "padded":
        return f"the architecture's own ({model.loaded.model.config._attn_implementation})"
    if session.device.type == "cpu":
        return "by keys if samples share prefixes, else one SDPA call a segment; repeats bit for bit"
    kernel = "flash over gathered keys" if model.compute == torch.bfloat16 else "FlexAttention with an ancestor mask"
    if torch.are_deterministic_algorithms_enabled():
        return f"{kernel}; repeats bit for bit"
    return f"{kernel}; not bitwise (see --deterministic)"
