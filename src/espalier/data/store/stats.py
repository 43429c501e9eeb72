"""What a data set holds, counted while it is tokenised."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from espalier.data.render.drafts import Rendered, RenderedGroup
from espalier.types import Sample

ANSWERS = ("assistant", "text", "completion")  # roles whose turns end in a stop token


@dataclass(slots=True)
class StoreStats:
    """Counts over one data source. `rows` == `kept` + `rejected`; a row is kept as one group of samples, and a row that
    holds several examples counts once for each.

    `by_role` and `trained_by_role` count tokens by the role of their turn, "other" outside every turn; they add up to
    `tokens` and `trained`. Tokens of a prefix that several samples of a group share count once for each.
    `truncated` counts rows with a sample that lost its tail; `untrained` counts samples without a trained token.
    Of the `whole` samples (not truncated, an answer trained), `stopped` train the stop token of their last answer.
    `bos_0`, `bos_1` and `bos_more` count samples by their number of BOS tokens, if the tokenizer has one; if it is also
    a stop token, only those at the start of the sample count.
    `histogram[2 ** k]` counts samples of more than 2 ** (k - 1) and at most 2 ** k tokens; `longest` is in tokens.
    `duplicates` counts groups whose tokens are those of an earlier group.

    `dropped` counts what was left out of rows that are kept, by reason (turns, responses, comparisons, steps, threads),
    `noted` what else was done to their turns, and `controls` texts that look like control tokens, by place and text.
    Of rankings, steps and trees: `pairs` counts strict preferences and `ties` ties; `responses[k]` rankings of which
    k responses are kept; `reads` places where a scalar head is read. `good` and `bad` count labels: of responses if
    the run takes those, of steps if it takes steps. `dimensions` names what grades of responses are about, the same
    in all rows that have some; `lowest` and `highest` are the least and the largest of them, None if there are none.
    `judged_by` counts rankings by the judgement that decides: ranks, scores, dimensions (scores of named ones),
    labels. `graded_by` counts tasks by the rewards that grade them ("numeric + length"), or by the verifier that they
    name; "" if neither is known. `answers` counts tasks with an answer.
    """

    rows: int = 0
    kept: int = 0
    rejected: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    samples: int = 0
    tokens: int = 0
    trained: int = 0
    by_role: dict[str, int] = field(default_factory=dict)
    trained_by_role: dict[str, int] = field(default_factory=dict)
    truncated: int = 0
    untrained: int = 0
    whole: int = 0
    stopped: int = 0
    bos_0: int = 0
    bos_1: int = 0
    bos_more: int = 0
    longest: int = 0
    histogram: dict[int, int] = field(default_factory=dict)
    duplicates: int = 0
    pairs: int = 0
    ties: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    noted: dict[str, int] = field(default_factory=dict)
    controls: dict[str, int] = field(default_factory=dict)
    responses: dict[int, int] = field(default_factory=dict)
    reads: int = 0
    good: int = 0
    bad: int = 0
    dimensions: tuple[str, ...] = ()
    lowest: float | None = None
    highest: float | None = None
    judged_by: dict[str, int] = field(default_factory=dict)
    graded_by: dict[str, int] = field(default_factory=dict)
    answers: int = 0

    def reject(self, reason: str) -> None:
        """Count a row that cannot be used."""
        self.rows += 1
        self.rejected += 1
        _add(self.reasons, reason, 1)

    def keep(self, row: Sequence[Rendered], stop_ids: Collection[int], bos_id: int | None) -> None:
        """Count a row that became these samples."""
        self.rows += 1
        self.kept += 1
        if any(rendered.sample.stop == "length" and _lost(rendered) for rendered in row):
            self.truncated += 1
        for rendered in row:
            self._lengths(rendered.sample)
            self._stops(rendered, stop_ids)
            if bos_id is not None:
                self._begins(rendered.sample, bos_id, bos_id in stop_ids)
            self._roles(rendered)
        if isinstance(row, RenderedGroup):
            self._judgements(row)

    def _judgements(self, row: RenderedGroup) -> None:
        samples = [rendered.sample for rendered in row]
        for s in samples:
            self.pairs += len(s.beats)
            self.ties += len(s.ties)
            self.reads += len(s.reads)
        self.dimensions = row.dimensions or self.dimensions
        for mine, counts in ((self.dropped, row.dropped), (self.noted, row.noted), (self.controls, row.controls)):
            for reason, count in counts.items():
                _add(mine, reason, count)
        if row.judged_by:
            _add(self.judged_by, row.judged_by, 1)
        if row.task is not None:
            _add(self.graded_by, " + ".join(row.graders), 1)
            self.answers += bool(row.task.answer)
        if row.kind == "ranking":
            self.responses[len(row)] = self.responses.get(len(row), 0) + 1
        grades = [x for s in samples for grade in s.grades for x in grade]
        if row.kind == "ranking":
            self._range([x for x in grades if not math.isnan(x)])
        labels: Sequence[float | None] = []
        if row.kind == "steps":
            labels = grades  # of one dimension: the label of the step
        elif row.labelled:
            labels = [s.label for s in samples]
        for label in labels:
            # A soft label counts for the side that it is on.
            self.good += label is not None and label > 0.5
            self.bad += label is not None and label < 0.5

    def _range(self, grades: Sequence[float]) -> None:
        """Widen `lowest` and `highest` to `grades`."""
        if not grades:
            return
        self.lowest = min(grades) if self.lowest is None else min(self.lowest, *grades)
        self.highest = max(grades) if self.highest is None else max(self.highest, *grades)

    def _lengths(self, sample: Sample) -> None:
        length, trained = len(sample.tokens), sum(sample.mask)
        self.samples += 1
        self.tokens += length
        self.trained += trained
        if not trained:
            self.untrained += 1
        self.longest = max(self.longest, length)
        edge = 1 << max(0, length - 1).bit_length()
        self.histogram[edge] = self.histogram.get(edge, 0) + 1

    def _stops(self, rendered: Rendered, stop_ids: Collection[int]) -> None:
        """Whether a whole sample trains the stop token of its last answer."""
        sample = rendered.sample
        if sample.stop == "length" or True not in sample.mask:
            return
        # Without spans (a renderer that gives none) the last trained token stands for the end of
        # the answer.
        last = len(sample.tokens) - 1 - sample.mask[::-1].index(True)
        if rendered.spans:
            last = -1
            for span in rendered.spans:
                if span.role in ANSWERS and any(sample.mask[span.start : span.end]):
                    last = span.end - 1
            if last < 0:
                return
        self.whole += 1
        if sample.mask[last] and sample.tokens[last] in stop_ids:
            self.stopped += 1

    def _begins(self, sample: Sample, bos_id: int, stops: bool) -> None:
        """Count BOS tokens; of one that `stops` turns, too, only those at the start."""
        count = sample.tokens.count(bos_id)
        if stops:
            count = next((i for i, token in enumerate(sample.tokens) if token != bos_id), len(sample.tokens))
        if count == 0:
            self.bos_0 += 1
        elif count == 1:
            self.bos_1 += 1
        else:
            self.bos_more += 1

    def _roles(self, rendered: Rendered) -> None:
        mask = rendered.sample.mask
        seen = seen_trained = 0
        for span in rendered.spans:
            part = mask[span.start : span.end]
            seen += len(part)
            seen_trained += sum(part)
            _add(self.by_role, span.role, len(part))
            _add(self.trained_by_role, span.role, sum(part))
        _add(self.by_role, "other", len(mask) - seen)
        _add(self.trained_by_role, "other", sum(mask) - seen_trained)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> StoreStats:
        stats = cls(**data)
        stats.histogram, stats.responses = _numbered(stats.histogram), _numbered(stats.responses)
        stats.dimensions = tuple(stats.dimensions)
        return stats


def _lost(rendered: Rendered) -> bool:
    """Whether a sample that does not stop lost its tail; a plain text goes on in its next sample."""
    return all(span.role != "text" for span in rendered.spans)


def _numbered(counts: dict[Any, int]) -> dict[int, int]:
    """Counts by number, ascending, of keys that JSON made texts."""
    return {int(number): count for number, count in sorted(counts.items(), key=lambda item: int(item[0]))}


def _add(counts: dict[str, int], name: str, n: int) -> None:
    if n:
        counts[name] = counts.get(name, 0) + n
