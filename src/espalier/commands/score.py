"""`espalier score`: what a scoring model says of the answers in files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from espalier.assembly.learner import budget_for
from espalier.assembly.model import HeadSpec, Model, build_model, compute_dtype
from espalier.config.sections import ModelConfig, ScoreConfig, TurnsConfig
from espalier.data.read import Source, parse_sources, read
from espalier.data.render.answers import answers_of, read_at
from espalier.data.render.drafts import RenderedGroup
from espalier.data.render.form import Form
from espalier.data.render.renderer import Renderer
from espalier.engines import processes
from espalier.engines.forwards import Forwards
from espalier.engines.learner import LearnerOptions
from espalier.engines.reference import frozen
from espalier.errors import ConfigError, RowError
from espalier.files import make_dir
from espalier.loop.progress import Progress
from espalier.models import heads
from espalier.models.stops import stops_of
from espalier.types import Chat, Example, Ranking, Response, Sample, Steps

CHUNK = 64
SNIFFED = 16
"""Rows that decide whether a source holds rankings or conversations."""

Line = dict[str, Any]


def run(config: ScoreConfig) -> None:
    """Write a line of scores for every row."""
    out = Path(config.out)
    if out.exists() and not config.overwrite:
        raise ConfigError(f"out: {out} exists; choose another file, or give --overwrite", key="out")
    console = Progress(0)
    device = processes.pick_device()
    settings = ModelConfig(
        model=config.model,
        dtype=config.dtype,
        template=config.template,
        trust_remote_code=config.trust_remote_code,
    )
    scorer = Scorer(
        build_model(settings, device, head=HeadSpec((), "response", trained=False, any=True)), config, device
    )
    make_dir(out.parent)
    partial = out.with_name(out.name + ".partial")
    counts = [0, 0]
    with open(partial, "w", encoding="utf-8") as file:
        for source in parse_sources(config.data):
            shown = console.reading("rows scored")
            rows = scorer.rows(replace(source, default_format=config.format))
            while chunk := list(islice(rows, CHUNK)):
                for line in scorer.lines(chunk):
                    counts["error" in line] += 1
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
                    if "error" in line and counts[1] <= 5:
                        console.note(f"{line['file']}:{line['line']}: {line['error']}")
                shown(source.name, sum(counts))
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, out)
    refused = f", {counts[1]:,} without (see `error` there)" if counts[1] else ""
    console.note(f"{out} holds {sum(counts):,} rows: {counts[0]:,} with scores{refused}")


class Scorer:
    """A scoring model, and the form in which it reads rows: rankings and conversations, or solutions in steps."""

    def __init__(self, model: Model, config: ScoreConfig, device: Any) -> None:
        head = heads.scalar_head(model.loaded.model)
        assert head is not None
        self.steps, self.names = head.kind == "steps", head.names
        self.unread = model.loaded.model.config.get_text_config().pad_token_id
        consumes = "steps" if self.steps else "ranking"
        turns = TurnsConfig(template_args=config.template_args)
        form = Form(consumes, "comparisons", reads=True, unread=self.unread, turns=turns)  # type: ignore[arg-type]
        self.renderer = Renderer(
            model.loaded.tokenizer,
            max_length=config.max_length or model.loaded.limit or 0,
            form=form,
            known_stops=stops_of(model.loaded.folder, model.loaded.adapter),
        )
        options = LearnerOptions(
            budget=budget_for(config.tokens_per_microbatch, device), compute=compute_dtype(config.dtype, device)
        )
        self.forwards: Forwards = frozen(model.policy, options, processes.OneProcess())

    def rows(self, source: Source) -> Iterator[tuple[Source, Example | RowError]]:
        """The rows of a source; conversations if none of the first rows is a ranking."""
        consumes = "steps" if self.steps else "ranking"
        examples = read(replace(source, consumes=consumes))  # type: ignore[arg-type]
        first = list(islice(examples, SNIFFED))
        if not self.steps and not any(isinstance(example, Ranking) for example in first):
            examples, first = read(replace(source, consumes="chat", keep_wrong=True)), []
        for example in chain(first, examples):
            yield source, example

    def lines(self, rows: list[tuple[Source, Example | RowError]]) -> list[Line]:
        """A line for each row, in order."""
        lines: list[Line] = []
        groups: list[list[Sample]] = []
        of_row: list[tuple[Line, list[int], int]] = []  # its line, the places of what is scored, how many there are
        for source, example in rows:
            line: Line = {"file": source.path}
            lines.append(line)
            try:
                if isinstance(example, RowError):
                    raise example
                line["line"] = example.origin.line
                samples, places, count = self._samples(example)
            except RowError as error:
                line.setdefault("line", _line_of(error))
                line["error"] = str(error)
                continue
            groups.append(samples)
            of_row.append((line, places, count))
        said = iter(self.forwards.say(groups, ["scores"], calibrated=True)) if groups else iter(())
        for (line, places, count), samples in zip(of_row, groups, strict=True):
            scores = [[self._named(read) for read in next(said).scores] for _ in samples]
            if self.steps:
                line["scores"] = scores[0]
                continue
            line["scores"] = [None] * count  # null: an answer without text, or cut off whole
            for place, of_answer in zip(places, scores, strict=True):
                line["scores"][place] = of_answer[0]
        return lines

    def _named(self, scores: tuple[float, ...]) -> Any:
        """A number, or a number by dimension if there are several."""
        if len(scores) == 1:
            return scores[0]
        names = self.names or tuple(str(k) for k in range(len(scores)))
        return dict(zip(names, scores, strict=True))

    def _samples(self, example: Example) -> tuple[list[Sample], list[int], int]:
        """The samples of a row, the place of each among its answers, and how many answers there are."""
        if isinstance(example, Steps):
            return [rendered.sample for rendered in self.renderer.render(example)], [0], 1
        if isinstance(example, Chat):
            last = example.messages[-1]
            if last.role != "assistant":
                raise RowError("no answer", got=f"a conversation that ends on {last.role}", expected="one to score")
            example = Ranking(example.messages[:-1], (Response(last),), tools=example.tools, origin=example.origin)
        if not isinstance(example, Ranking):
            raise RowError("no answer", got=f"a {type(example).__name__.lower()}", expected="a conversation or ranking")
        answers = answers_of(self.renderer.chats, example, 0, RenderedGroup("ranking"))
        if not answers:
            raise RowError("no answer", got="responses without text", expected="one to score")
        samples, places = [], []
        for answer in answers:
            sample = answer.rendered.sample
            sample.reads = [read_at(sample.tokens[: answer.written], self.unread)]
            samples.append(sample)
            places.append(next(i for i, response in enumerate(example.responses) if response is answer.response))
        return samples, places, len(example.responses)


def _line_of(error: RowError) -> int | None:
    """The line of a row that could not be read, from where its error says it stands."""
    where = str(getattr(error, "where", "")).rpartition(":")[2]
    return int(where) if where.isdigit() else None
