"""The commands: each takes a config, builds the parts and runs them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from espalier import checkpoint, files
from espalier.config import ExportConfig, QuickstartConfig, RunConfig, SampleConfig
from espalier.errors import CheckpointError, ConfigError
from espalier.metrics import MetricsFile
from espalier.options import dump, flat
from espalier.progress import Progress, peak_memory
from espalier.rundir import RunDir

if TYPE_CHECKING:
    from espalier.build import Model
    from espalier.data.dataset import Dataset, Opened
    from espalier.data.render import Renderer
    from espalier.preflight import Check
    from espalier.train import Finished

CHECKED_ROWS = 32


@dataclass(slots=True)
class _Parts:
    """What `sft` and `check` share."""

    model: Model
    renderer: Renderer
    opened: Opened
    dataset: Dataset
    world: Any
    device: Any
    say: Progress


@contextmanager
def _parts(config: RunConfig) -> Iterator[_Parts]:
    """Model and data, read and described; ends the process group on the way out."""
    import torch

    from espalier import build
    from espalier.engines import world as worlds

    device = worlds.pick_device()
    if config.loop.deterministic and device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.manual_seed(config.loop.seed)
    world = worlds.start(device)
    say = Progress(0, rank=world.rank)
    try:
        model = build.build_model(config.model, device, neftune_alpha=config.sft.neftune_alpha)
        renderer = build.build_renderer(config, model.loaded)
        reading = say.reading("rows read") if hasattr(say, "reading") else None
        opened, dataset = build.build_data(config, renderer, reading)
        yield _Parts(model, renderer, opened, dataset, world, device, say)
    finally:
        world.close()


def sft(config: RunConfig) -> Path:
    """Fine-tune; returns the exported model's folder (the newest checkpoint's where a signal ended the run)."""
    from espalier import build

    text = dump(config)
    with _parts(config) as p:
        loop = config.loop
        main = p.world.rank == 0
        run = RunDir(Path(loop.out))
        if main:
            run = RunDir.open(
                Path(loop.out), text, resume=loop.resume, overwrite=loop.overwrite, accept_changes=loop.accept_changes
            )
        p.world.barrier()
        try:
            if main:
                run.pin("data", {"plan": p.dataset.plan.fingerprint, "steps": p.dataset.steps})
                run.pin("machine", _machine(p, build.budget(config, p.device)))
                _write_rejected(p.opened, run.rejected)
            _describe(config, p)
            before = _checks_before(config, p)
            learner = build.build_learner(config, p.model, p.renderer, p.world, p.device)
            checks = [*before, *_checks_after(config, p, learner)]
            _settle(p.say, checks, run.preflight if main else None)
            finished = _train(config, p, learner, run)
            if finished.chosen is None:
                p.say.note(f"stopped by {finished.stopped} at step {finished.state.step}, saved in {run.checkpoints}")
                if finished.stopped == "SIGINT":
                    raise KeyboardInterrupt
                return run.checkpoints / checkpoint.step_name(finished.state.step) / "model"
            if main:
                files.copy_dir(finished.chosen / "model", run.model)
            why = f" ({finished.stopped})" if finished.stopped else ""
            p.say.note(f"done after step {finished.state.step}{why}: {run.model} holds {finished.chosen.name}")
            p.world.barrier()
            return run.model
        finally:
            run.close()


def check(config: RunConfig) -> None:
    """Run every check of `sft` and stop there. Raises CheckError where one fails."""
    from espalier import build

    with _parts(config) as p:
        _describe(config, p)
        before = _checks_before(config, p)
        learner = build.build_learner(config, p.model, p.renderer, p.world, p.device)
        _settle(p.say, [*before, *_checks_after(config, p, learner)], None)


def _machine(p: _Parts, budget: int) -> dict[str, Any]:
    import torch

    name = torch.cuda.get_device_name() if p.device.type == "cuda" else "cpu"
    threads = torch.get_num_threads() if p.device.type == "cpu" else 0
    return {"device": name, "threads": threads, "ranks": p.world.size, "tokens_per_microbatch": budget}


def _write_rejected(opened: Opened, path: Path) -> None:
    from espalier.data.rejected import write_rejected

    if any(s.stats.rejected for s in opened.all):
        write_rejected(opened.all, path)


# ------------------------------------------------------------------------------------------------------- what it says


def _describe(config: RunConfig, p: _Parts) -> None:
    """Print what the run resolved to, before anything is computed."""
    from espalier import build

    stats = [(s, s.stats) for s in p.opened.all]
    columns = ("source", "part", "rows", "kept", "rejected", "truncated", "samples", "tokens", "trained")
    p.say.table(
        "Data", columns,
        [(s.source, s.part, t.rows, t.kept, t.rejected, t.truncated, t.samples, t.tokens, t.trained) for s, t in stats],
    )  # fmt: skip
    if repeated := sum(t.duplicates for _, t in stats):
        p.say.note(f"{repeated:,} rows are exact duplicates of earlier ones")
    first = p.dataset.groups(0)
    budget = build.budget(config, p.device)
    need = build.estimate(p.model, budget, ranks=p.world.size, checkpointing=config.loop.grad_checkpointing)
    gib = {name: f"{size / 2**30:.2f}" for name, size in need.items()}
    total = sum(need.values()) / 2**30
    frozen = p.model.frozen
    for line in (
        *p.model.notes,
        f"trains {frozen.trainable:,} of {frozen.total:,} parameters, compute in {str(p.model.compute)[6:]}",
        f"{p.dataset.steps:,} steps, {p.dataset.epoch_of(p.dataset.steps):.2f} epochs; the first step has "
        f"{sum(len(g) for g in first):,} samples, {sum(len(s) for g in first for s in g):,} tokens, in forwards of at most "
        f"{budget:,} tokens on {p.world.size} process{'es' * (p.world.size > 1)}",
        f"memory about {total:.2f} GiB a process ({', '.join(f'{n} {v}' for n, v in gib.items())}), libraries not counted",
    ):
        p.say.note(line)


def _checks_before(config: RunConfig, p: _Parts) -> list[Check]:
    """Checks of the data, and of the model before it is sharded."""
    from espalier import preflight
    from espalier.data.read import read
    from espalier.errors import RowError

    stores = p.opened.all
    stats = [s.stats for s in stores]
    main = p.opened.main[0]
    source = p.opened.sources[0]

    def examples() -> Iterator[Any]:
        found = read(source, default_format=config.data.format, alpaca_prompt=config.data.alpaca_prompt)
        return islice((e for e in found if not isinstance(e, RowError) and _renders(p.renderer, e)), CHECKED_ROWS)

    decode = p.model.loaded.tokenizer.decode
    dtype = p.model.compute if p.world.size == 1 else _float32()
    return preflight.run(
        (
            ("rows", lambda: preflight.rows(stats)),
            ("trained", lambda: preflight.trained(stats)),
            ("stop", lambda: preflight.stop([s.stats for s in stores if s.part == "main"])),
            ("bos", lambda: preflight.bos(stats, p.renderer.bos_id)),
            ("mask", lambda: preflight.mask(examples(), p.renderer.render, decode, config.sft.train_on)),
            (
                "template",
                lambda: preflight.template(examples(), p.renderer.render, (main.group(i) for i in range(len(main)))),
            ),
            ("layout", lambda: preflight.layout(p.model.policy, p.dataset.groups(0), dtype)),
        ),
        config.loop.skip_checks,
    )


def _float32() -> Any:
    import torch

    return torch.float32


def _renders(renderer: Renderer, example: Any) -> bool:
    from espalier.errors import RowError

    try:
        renderer.render(example)
    except RowError:
        return False
    return True


def _checks_after(config: RunConfig, p: _Parts, learner: Any) -> list[Check]:
    """Checks that need a gradient; nothing is updated."""
    from espalier import preflight

    asked = set(config.loop.skip_checks)
    if {"loss", "update"} <= asked:
        return preflight.run((("loss", lambda: _never()), ("update", lambda: _never())), config.loop.skip_checks)
    groups = p.dataset.groups(0)[: max(4, p.world.size)]
    result = learner.forward_backward(groups, lambda o, b: config.sft.loss(o, b)["policy"], {}, 0)
    shares = learner.probe_update(config.optim.lr, p.model.loaded.source_dtype)
    vocabulary = p.model.loaded.model.config.get_text_config().vocab_size
    return preflight.run(
        (
            ("loss", lambda: preflight.loss(result.terms.get("nll", result.loss), vocabulary)),
            ("update", lambda: preflight.update(shares)),
        ),
        config.loop.skip_checks,
    )


def _never() -> Check:
    raise AssertionError("a skipped check ran")


def _settle(say: Progress, checks: list[Check], path: Path | None) -> None:
    from espalier import preflight

    say.table("Checks", ("check", "value", "limit", "verdict"), [(c.name, c.value, c.limit, c.verdict) for c in checks])
    for c in checks:
        if c.verdict == "warn":
            say.note(f"{c.name}: {c.way_out}")
    preflight.settle(checks, path)


# ----------------------------------------------------------------------------------------------------------- training


def _train(config: RunConfig, p: _Parts, learner: Any, run: RunDir) -> Finished:
    from espalier.track import Trackers
    from espalier.train import Reporters, Trainer

    loop = config.loop
    main = p.world.rank == 0
    found = checkpoint.choose(run.checkpoints, loop.resume_from) if loop.resume else None
    if found is not None and found.state().step > p.dataset.steps:
        raise CheckpointError(
            f"{found.path.name} is beyond the {p.dataset.steps} steps of this config; give more --steps or --epochs"
        )
    start = found.state().step if found else 0
    if found and main:
        for path in checkpoint.set_aside(run.checkpoints, start):
            p.say.note(f"set aside {path}")
    metrics = MetricsFile(run.metrics) if main else None
    if metrics is not None and found is None:
        metrics.truncate_to(0)
    trackers = Trackers(run.path, loop.track, flat(config), step=start, rank=p.world.rank)
    progress = Progress(p.dataset.steps, rank=p.world.rank)
    try:
        with progress:
            trainer = Trainer(
                learner, config.sft, p.dataset, optim=config.optim, loop=loop, root=run.checkpoints, metrics=metrics,
                reporters=Reporters(progress.update, trackers.log, progress.note, peak_memory),
            )  # fmt: skip
            if found is not None:
                trainer.resume(found)
                progress.note(f"resumed from {found.path.name}")
            return trainer.run()
    finally:
        trackers.close()
        if metrics is not None:
            metrics.close()


# ------------------------------------------------------------------------------------------------------ other commands


def inspect(config: RunConfig, *, rows: int, html: str) -> None:
    """Show the first rows of each source as the model will see them."""
    from rich.console import Console

    from espalier import inspect as view
    from espalier.data.dataset import longest
    from espalier.data.read import parse_sources, read
    from espalier.data.render import Renderer
    from espalier.data.templates import apply_template
    from espalier.errors import RowError
    from espalier.models.load import load_tokenizer

    tokenizer = load_tokenizer(config.model.model, trust_remote_code=config.model.trust_remote_code)
    if config.model.add_tokens:
        tokenizer.add_special_tokens({"additional_special_tokens": list(config.model.add_tokens)})
    apply_template(tokenizer, config.model.template)
    renderer = Renderer(tokenizer, train_on=config.sft.train_on, max_length=longest(config.data, None))
    console = Console(highlight=False)
    shown: list[Any] = []
    origins: list[str] = []
    for source in (*parse_sources(config.data.data), *parse_sources(config.data.replay)):
        count = 0
        default = "text" if str(source.path) in config.data.replay else config.data.format
        for example in read(source, default_format=default, alpaca_prompt=config.data.alpaca_prompt):
            if count == rows:
                break
            try:
                if isinstance(example, RowError):
                    raise example
                group = renderer.render(example)
                shown.extend(group)
                origins.extend([str(example.origin)] * len(group))
            except RowError as error:
                console.print(f"rejected: {error.at(source.path)}", markup=False)
            count += 1
    view.show(shown, tokenizer, console, origins)
    if html:
        view.html(shown, tokenizer, Path(html), origins)
        console.print(f"written: {html}", markup=False)


def export(config: ExportConfig) -> Path:
    """Copy the model of a run, or of one of its checkpoints, out of it; returns the folder."""
    run = Path(config.run)
    source = next((f for f in (run / "model", run) if (f / "config.json").is_file() or (f / "adapter_config.json").is_file()), None)
    if source is None and (run / "checkpoints").is_dir():
        found, _ = checkpoint.find(run / "checkpoints")
        source = found.path / "model" if found else None
    if source is None:
        raise ConfigError(f"run: {run} holds no model and no intact checkpoint; expected a run directory", key="run")
    target = Path(config.out) if config.out else run / "model"
    if target.resolve() != source.resolve():
        if target.exists() and any(target.iterdir()):
            raise ConfigError(f"out: {target} exists and is not empty; choose a new folder", key="out")
        files.copy_dir(source, target)
    print(f"{target} holds the model of {source}")
    return target


def sample(config: SampleConfig) -> None:
    """Answer prompts, each as a user's message unless `chat` is off."""
    from rich.console import Console

    from espalier.config import ModelConfig
    from espalier.answer import Chatter

    chatter = Chatter.load(
        ModelConfig(
            model=config.model, dtype=config.dtype, template=config.template, trust_remote_code=config.trust_remote_code
        )
    )
    console = Console(highlight=False)
    answers = chatter.answer(
        list(config.prompt), chat=config.chat, system=config.system, max_tokens=config.max_tokens,
        temperature=config.temperature, seed=config.seed,
    )  # fmt: skip
    for prompt, said in zip(config.prompt, answers, strict=True):
        console.print(f"[bold]{_escape(prompt)}[/bold]")
        console.print(said + "\n", markup=False)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def quickstart(config: QuickstartConfig) -> None:
    """Fine-tune the embedded model and show answers before and after."""
    from espalier import demo

    demo.quickstart(config)
