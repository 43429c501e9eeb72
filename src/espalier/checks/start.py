"""The checks before the first step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import groupby, islice
from pathlib import Path

import torch

from espalier.assembly import learner as build
from espalier.assembly.parts import Parts
from espalier.assembly.reference import build_reference
from espalier.assembly.runs import RunConfig, preference_of
from espalier.checks import data as preflight
from espalier.checks import table
from espalier.checks.model import layout, loss, update
from espalier.checks.table import Check, run
from espalier.data.plan import REPLAY
from espalier.data.read import read
from espalier.data.render.drafts import Rendered, RenderedGroup
from espalier.data.render.renderer import Renderer
from espalier.data.store.store import Store
from espalier.engines.learner import TorchLearner
from espalier.engines.protocols import Reference
from espalier.errors import RowError
from espalier.loop.annotate import annotate
from espalier.loop.evaluate import loss_of
from espalier.loop.progress import Progress
from espalier.types import Example, Sample

CHECKED_ROWS = 32


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
        checks.append(("layout", lambda: layout(p.model.policy, p.dataset.groups(0), torch.float32)))
    return run(checks, config.loop.skip_checks)


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
        odd = any(isinstance(group, RenderedGroup) and group.dimensions not in ((), kept) for _, group in rendered)
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
    from espalier.checks.preference import gated

    before = checks_before(config, p)
    learner = build.build_learner(config, p.model, p.renderer, p.world, p.device)
    reference = build_reference(config, p.model, p.opened, learner, p.say.reading("groups held against the reference"))
    after = checks_after(config, p, learner, reference)
    return (
        learner,
        reference,
        [*before, *after, *run(gated(config, p, learner, reference), config.loop.skip_checks)],
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
        ("loss", lambda: loss(probe()[0], guess)),
        ("update", lambda: update(probe()[1])),
    ]
    if p.world.size == 1:  # the learner has cast the model: this is the path that trains
        policy, compute = p.model.policy, p.model.compute
        checks.insert(0, ("layout", lambda: layout(policy, p.dataset.groups(0), compute)))
    return run(checks, config.loop.skip_checks)


def settle(say: Progress, checks: list[Check], path: Path | None) -> None:
    say.table("Checks", ("check", "value", "limit", "verdict"), [(c.name, c.value, c.limit, c.verdict) for c in checks])
    for c in checks:
        if c.verdict == "warn":
            say.note(f"{c.name}: {c.way_out}")
    table.settle(checks, path)
