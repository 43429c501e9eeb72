"""What rendering makes of an example: samples, where their tokens come from, and what was left out."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Literal, NamedTuple

from espalier.data.render.control import Piece
from espalier.errors import RowError
from espalier.types import Response, Sample, Task

EMPTIED = "emptied by truncation"


class Span(NamedTuple):
    """Tokens `start` up to, not including, `end` come from `role`.

    A message's role covers its content; of a trained turn, everything from the end of its prompt through its stop
    token. `text`, `prompt` and `completion` are the parts of examples without chat markup. What a template writes
    around content is in no span.
    """

    start: int
    end: int
    role: str
    trained: bool


class Rendered(NamedTuple):
    """One sample and where its tokens come from; `response` is the answer of a ranking that it ends in."""

    sample: Sample
    spans: list[Span]
    response: Response | None = None


class RenderedGroup(list[Rendered]):
    """The samples of a row: of a conversation or text, or of a ranking, a solution in steps or a tree, which share
    prefixes; of a task, its prompt.

    dropped: how much of the row was left out, by reason. noted: what else was done to it, by what (turns merged).
    controls: texts that look like control tokens, by place and text. dimensions: the names of what `Sample.grades`
    are about, if the run reads scores and the row has some. learned: the run learns from grades alone, so that a row
    with other dimensions than the rows before it is refused; other runs leave such grades out and keep the row.
    labelled: `Sample.label` is 1 for good and 0 for bad. judged_by: which judgement of a ranking decides: ranks,
    scores, dimensions (scores of named ones) or labels. task: what the only sample is the prompt of; graders: the names
    of the rewards that grade it.
    """

    def __init__(self, kind: Literal["chat", "ranking", "steps", "tree", "task"]) -> None:
        super().__init__()
        self.kind = kind
        self.dropped: dict[str, int] = {}
        self.noted: dict[str, int] = {}
        self.controls: dict[str, int] = {}
        self.dimensions: tuple[str, ...] = ()
        self.learned = False
        self.labelled = False
        self.judged_by = ""
        self.task: Task | None = None
        self.graders: tuple[str, ...] = ()

    def drop(self, reason: str, count: int = 1) -> None:
        """Count what is left out; a count of 0 leaves no trace."""
        if count:
            self.dropped[reason] = self.dropped.get(reason, 0) + count

    def take(self, drafts: Drafts) -> None:
        """Count what became of the turns of a conversation."""
        for reason, count in drafts.dropped.items():
            self.drop(reason, count)
        for what, count in drafts.noted.items():
            self.noted[what] = self.noted.get(what, 0) + count


class Mark(NamedTuple):
    """Characters `start` up to `end` of a conversation come from `role` and are trained with `weight`."""

    start: int
    end: int
    role: str
    weight: float


class Draft:
    """A sample that grows, with its spans.

    turn_at: the token at which its last turn begins. turn: the tokens of that turn. turn_text: what the model writes in
    it, up to its stop token; `turn.starts()` are places in this text. left_open: the template writes no stop token
    behind that turn unless something follows.
    """

    def __init__(self) -> None:
        self.sample = Sample()
        self.spans: list[Span] = []
        self.turn_at = 0
        self.turn = Piece([], [])
        self.turn_text = ""
        self.left_open = False

    def add(self, ids: list[int], weight: float, role: str = "") -> None:
        """Append tokens, trained if `weight` is above 0; a span of `role`, if one is named."""
        start = len(self.sample)
        self.sample.append(ids, trained=weight > 0, weight=weight)
        if role and ids:
            self.spans.append(Span(start, len(self.sample), role, weight > 0))

    def add_turn(self, piece: Piece, weight: float, text: str) -> None:
        """Append what the model writes in an assistant turn."""
        self.turn_at, self.turn, self.turn_text = len(self.sample), piece, text
        self.add(piece.ids, weight, "assistant")

    def add_piece(self, piece: Piece, offset: int, marks: Sequence[Mark], base: float) -> None:
        """Append a piece from character `offset` on; tokens outside every mark have the weight `base`."""
        starts, at = piece.starts(), 0
        # A token belongs to the mark that its first character is in: one that straddles the end of
        # a message counts as that message's, one that begins in front of it does not.
        for mark in marks:
            first = max(at, bisect_left(starts, mark.start - offset))
            behind = max(first, bisect_left(starts, mark.end - offset))
            self.add(piece.ids[at:first], base)
            self.add(piece.ids[first:behind], mark.weight, mark.role)
            at = behind
        self.add(piece.ids[at:], base)

    def finish(self, limit: int, key: int, response: Response | None = None) -> Rendered:
        """The sample, cut to `limit` tokens (0 for no limit). Raises RowError if nothing trained is left."""
        sample = self.sample
        sample.key = sample.group = key
        if limit and len(sample) > limit:
            length = len(sample)
            for column in (sample.tokens, sample.mask, sample.weights):
                del column[limit:]
            sample.stop = "length"
            self.spans = _cut(self.spans, limit)
            # The first token of a sample has nothing before it and is never scored, whatever its
            # mask says.
            if not any(sample.mask[1:]):
                raise RowError(
                    EMPTIED,
                    got=f"{length} tokens, the first trained one behind the limit",
                    expected=f"a trained token among the first {limit}",
                    fix="Raise --max-length, if the model takes more, or leave such rows out with --on-bad-row skip",
                )
        return Rendered(sample, self.spans, response)


class Drafts(list[Draft]):
    """The samples of a conversation. dropped: turns that were left out, by reason; noted: what else was done to turns,
    by what."""

    def __init__(self) -> None:
        super().__init__()
        self.dropped: dict[str, int] = {}
        self.noted: dict[str, int] = {}


def _cut(spans: list[Span], limit: int) -> list[Span]:
    """What is left of spans in the first `limit` tokens."""
    return [span._replace(end=min(span.end, limit)) for span in spans if span.start < limit]
