"""What a scoring model says of rows: from a config to a model, and from rows to lines of scores."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from espalier.assembly.learner import budget_for
from espalier.assembly.model import HeadSpec, build_model, compute_dtype
from espalier.config.sections import ModelConfig, ScoreConfig, TurnsConfig
from espalier.data.columns.ledger import Ledger
from espalier.data.read import Source, read
from espalier.data.render.answers import answers_of, read_at
from espalier.data.render.drafts import EMPTIED, RenderedGroup
from espalier.data.render.form import Form
from espalier.data.render.refusals import EMPTY
from espalier.data.render.renderer import Renderer
from espalier.engines import processes
from espalier.engines.forwards import Forwards
from espalier.engines.learner import LearnerOptions
from espalier.engines.protocols import SampleOutputs
from espalier.engines.reference import frozen
from espalier.errors import RowError
from espalier.models import heads
from espalier.models.stops import stops_of
from espalier.types import Consumes, Example, Ranking, Sample, Steps

Line = dict[str, Any]
ANY_HEAD = HeadSpec((), "response", trained=False, any=True)
CUT_STEP = "behind max_length"


class Scorer:
    """A scoring model, and the form in which it reads rows: answers, or solutions in steps."""

    def __init__(self, config: ScoreConfig, device: torch.device) -> None:
        """Load the model, with its adapter in it. Raises ModelError and ConfigError."""
        settings = ModelConfig(
            model=config.model,
            adapter=config.adapter,
            dtype=config.dtype,
            template=config.template,
            trust_remote_code=config.trust_remote_code,
        )
        model = build_model(settings, device, head=ANY_HEAD, merged=bool(config.adapter))
        loaded = model.loaded
        head = heads.scalar_head(loaded.model)
        assert head is not None
        self.loaded, self.aggregation = loaded, config.aggregate
        self.steps, self.names = head.kind == "steps", head.names
        self.unread = loaded.model.config.get_text_config().pad_token_id
        turns = TurnsConfig(template_args=config.template_args)
        form = Form(self.consumes, "comparisons", reads=True, unread=self.unread, turns=turns)
        self.renderer = Renderer(
            loaded.tokenizer,
            max_length=config.max_length or loaded.limit or 0,
            form=form,
            known_stops=stops_of(loaded.folder, loaded.adapter),
        )
        options = LearnerOptions(
            budget=budget_for(config.tokens_per_microbatch, device), compute=compute_dtype(config.dtype, device)
        )
        self.forwards: Forwards = frozen(model.policy, options, processes.OneProcess())

    @property
    def consumes(self) -> Consumes:
        return "steps" if self.steps else "ranking"

    def rows(self, source: Source, ledger: Ledger) -> Iterator[Example | RowError]:
        """The rows of a source, whether anything judges their answers or not. Raises DataError for a source that has
        something that must not be left out without a word."""
        for example in read(replace(source, consumes=self.consumes, judged=False), ledger):
            if ledger.early:
                ledger.refuse(source.path)
            yield example
        ledger.refuse(source.path)

    def lines(self, rows: list[tuple[Source, Example | RowError]]) -> list[Line]:
        """A line for each row, in order."""
        lines: list[Line] = []
        groups: list[list[Sample]] = []
        kept: list[_Asked] = []
        for source, example in rows:
            line: Line = {"file": source.path}
            lines.append(line)
            try:
                if isinstance(example, RowError):
                    raise example
                line["line"] = example.origin.line
                answers = self._asked(line, example)
            except RowError as error:
                line.setdefault("line", _line_of(error))
                line["error"] = str(error)
                continue
            if answers.samples:
                groups.append(answers.samples)
                kept.append(answers)
            else:
                answers.fill([], self)
        outputs = iter(self.forwards.say(groups, ["scores"], calibrated=True)) if groups else iter(())
        for answers in kept:
            cut = sum(s.stop == "length" for s in answers.samples)
            if cut:
                answers.line["cut"] = cut
            answers.fill([next(outputs) for _ in answers.samples], self)
        return lines

    def named(self, scores: tuple[float, ...]) -> Any:
        """A number, or a number by dimension if there are several."""
        if len(scores) == 1:
            return scores[0]
        names = self.names or tuple(str(k) for k in range(len(scores)))
        return dict(zip(names, scores, strict=True))

    def _asked(self, line: Line, example: Example) -> _Asked:
        """What is asked of a row. Raises RowError for one that cannot be rendered."""
        if isinstance(example, Steps):
            (rendered,) = self.renderer.render(example)
            errors = [None if i < len(rendered.sample.reads) else CUT_STEP for i in range(len(example.steps))]
            return _Asked(line, [rendered.sample], errors)
        if not isinstance(example, Ranking):
            raise RowError("no answer", got=f"a {type(example).__name__.lower()}", expected="a conversation or ranking")
        answers = [self._answer(example, place) for place in range(len(example.responses))]
        samples = [sample for sample in answers if isinstance(sample, Sample)]
        return _Asked(line, samples, [None if isinstance(sample, Sample) else sample for sample in answers])

    def _answer(self, example: Ranking, place: int) -> Sample | str:
        """One answer as tokens, or why it cannot be scored. Each by itself: no other one has a part in its score."""
        group = RenderedGroup("ranking")
        try:
            alone = replace(example, responses=(example.responses[place],))
            (answer,) = answers_of(self.renderer.chats, alone, 0, group) or (None,)
        except RowError as error:
            if error.reason == EMPTIED:
                return f"{EMPTIED}: the prompt alone is longer than max_length"
            return str(error)
        if answer is None:
            return EMPTY if EMPTY in group.dropped else "no text"
        sample = answer.rendered.sample
        sample.reads = [read_at(sample.tokens[: answer.written], self.unread)]
        return sample


class _Asked:
    """The line of a row, the samples that are scored for it, and an error for each answer (or step) that is not."""

    def __init__(self, line: Line, samples: list[Sample], errors: list[str | None]) -> None:
        self.line, self.samples, self.errors = line, samples, errors

    def fill(self, outputs: list[SampleOutputs], scorer: Scorer) -> None:
        """Enter what was said into the line: null where there is an error."""
        scored = iter(read for out in outputs for read in out.scores)
        scores = [scorer.named(next(scored)) if error is None else None for error in self.errors]
        self.line["scores"] = scores
        if scorer.steps:
            known = [score for score in scores if score is not None]
            self.line["aggregate"] = _of_solution(known, scorer.aggregation) if len(known) == len(scores) else None
        if any(self.errors):
            self.line["errors"] = self.errors


def _of_solution(scores: list[float], aggregation: str) -> float:
    """The number of a whole solution, from 0 to 1, of the probabilities p of its steps: their product, the least, the
    last or the mean."""
    chances = [0.5 * (1 + math.tanh(score / 2)) for score in scores]
    if aggregation == "product":
        return math.prod(chances)
    if aggregation == "min":
        return min(chances)
    if aggregation == "last":
        return chances[-1]
    return sum(chances) / len(chances)


def _line_of(error: RowError) -> int | None:
    """The line of a row that could not be read, from where its error says it stands."""
    where = str(getattr(error, "where", "")).rpartition(":")[2]
    return int(where) if where.isdigit() else None
