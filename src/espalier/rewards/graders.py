"""All rewards of a run: responses in, outcomes out, while others are still being drawn."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields

from espalier.errors import EspalierError
from espalier.outcomes import Key, Outcome
from espalier.rewards.combine import Component, best_score, combine
from espalier.rewards.grading import Grading
from espalier.rewards.pool import Job, Pool
from espalier.rewards.results import Result
from espalier.rewards.reward import Answer
from espalier.types import Prompt, Sample, Task

WINDOW = 200
"""How many of the last outcomes the share of errors is taken over."""
FIRST = 8
"""After so many outcomes that are all errors, nothing more is tried."""

ANSWER = tuple(entry.name for entry in fields(Answer))

Decode = Callable[[Sequence[int]], str]
"""Text of token ids, special tokens kept."""


@dataclass(slots=True)
class ErrorShare:
    """How many of the last outcomes were errors, and the limit that stops a run."""

    limit: float
    way_out: str = "Correct the reward, or give it more time (reward_timeout)"
    last: deque[str] = field(default_factory=lambda: deque(maxlen=WINDOW))
    causes: Counter[str] = field(default_factory=Counter)
    first: str = ""
    total: int = 0

    def count(self, outcome: Outcome) -> None:
        """Count one outcome. Raises EspalierError if more than `limit` of the last 200 are errors (of fewer, if that
        many are already), or if the first 8 all are; the message names the first error and counts all by cause."""
        self.total += 1
        self.last.append(outcome.error)
        if not outcome.error:
            return
        self.causes[outcome.error] += 1
        self.first = self.first or outcome.error
        errors = sum(bool(error) for error in self.last)
        hopeless = errors == self.total == FIRST and self.limit < 1
        if errors > self.limit * WINDOW or hopeless:
            counts = "; ".join(f"{number} x {cause}" for cause, number in self.causes.most_common(5))
            raise EspalierError(
                f"{errors} of the last {len(self.last)} answers could not be graded, and max_error_share allows "
                f"{self.limit:g} of {WINDOW}; first: {self.first}; all by cause: {counts}. {self.way_out}"
            )


@dataclass(slots=True)
class _Open:
    """A response of which some rewards have not answered yet. scored: reward models score it after them."""

    key: Key
    components: list[Component]
    results: dict[str, Result] = field(default_factory=dict)
    place: Callable[[int], int] | None = None
    scored: bool = False


class WorkerGraders:
    """`Graders` (engines/protocols.py) by the rewards of `grading`, in worker processes.

    decode: the text of token ids, special tokens kept. stop: the ids that end a response and are no part of its text.
    invalid_score: the score of an answer that does not qualify. max_error_share: see `ErrorShare`.
    The pool is started, and is ended by `close`.
    """

    def __init__(
        self,
        grading: Grading,
        pool: Pool,
        *,
        decode: Decode,
        stop: Iterable[int] = (),
        invalid_score: float = 0.0,
        max_error_share: float = 0.05,
    ):
        self.grading, self.pool = grading, pool
        self.decode, self.stop = decode, frozenset(stop)
        self.invalid_score = invalid_score
        self.errors = ErrorShare(max_error_share)
        self._open: dict[int, _Open] = {}
        self._ready: list[tuple[Key, Outcome]] = []
        self._tickets = 0
        self._kinds: set[tuple[str, ...]] = set()

    # ------------------------------------------------------------------------------------------- who grades what

    @property
    def best(self) -> float | None:
        """The highest score that the rewards declare together for a task; of the tasks that `grades` was asked about,
        the highest. None if one of them declares none, and if reward models score beside them."""
        if self.grading.scored:
            return None
        kinds = self._kinds or {tuple(entry.name for entry in self.grading.entries)}
        scores = [best_score(self.grading.components(names)) for names in kinds]
        known = [score for score in scores if score is not None]
        return max(known) if len(known) == len(scores) else None

    def grades(self, task: Task) -> tuple[str, ...]:
        """See `Grading.grades`."""
        names = self.grading.grades(task)
        if names:
            self._kinds.add(names)
        return names

    def refusal(self, task: Task) -> str:
        """See `Grading.refusal`."""
        return self.grading.refusal(task)

    # ----------------------------------------------------------------------------------------------------- grading

    def submit(self, key: Key, prompt: Prompt, sample: Sample) -> None:
        """Grade one response; `sample` holds its ids behind the prompt's. Its text is without the stop token."""
        self._submit(key, prompt, sample, None)

    def submit_names(self, prompt: Prompt, sample: Sample, names: Sequence[str], key: Key = (0, 0, 0)) -> None:
        """As `submit`, by some of the rewards."""
        self._submit(key, prompt, sample, names)

    def _submit(self, key: Key, prompt: Prompt, sample: Sample, names: Sequence[str] | None) -> None:
        ids = sample.tokens[len(prompt.tokens) :]
        words = ids[:-1] if ids and sample.stop == "stop" and ids[-1] in self.stop else ids
        text = self.decode(words)
        place = Places(self.decode, words, text)
        self.submit_text(key, prompt.task, text, row=prompt.row, stop=sample.stop, ids=ids, names=names, place=place)

    def submit_text(
        self,
        key: Key,
        task: Task,
        response: str,
        *,
        row: int = 0,
        stop: str = "stop",
        ids: Sequence[int] = (),
        names: Sequence[str] | None = None,
        place: Callable[[int], int] | None = None,
    ) -> None:
        """Grade a text. names: the rewards that do; None leaves that to the task."""
        components = self.grading.components(self.grades(task) if names is None else names)
        scored = self.grading.scored and names is None
        if not components:
            error = "" if scored else f"no reward: {self.refusal(task) or 'none is chosen'}"
            self._ready.append((key, Outcome(0.0, error=error)))
            return
        answer = answer_of(task, response, row=row, stop=stop, ids=ids)
        self._tickets += 1
        self._open[self._tickets] = _Open(key, components, place=place, scored=scored)
        values = {name: getattr(answer, name) for name in ANSWER}
        for component in components:
            self.pool.submit(Job(self._tickets, component.name, values))

    def finished(self, *, wait: bool) -> list[tuple[Key, Outcome]]:
        """Outcomes that are there, in any order; with `wait`, after at least one came in or half a second (empty if not
        `busy`).

        Raises EspalierError if too many are errors, and if no worker can be started any more.
        """
        ready = self._fetch(wait)
        for _, outcome in ready:
            self.errors.count(outcome)
        return ready

    def _fetch(self, wait: bool) -> list[tuple[Key, Outcome]]:
        ready, self._ready = self._ready, []
        waits = wait and not ready and bool(self._open)
        while True:
            results = self.pool.results(wait=waits)
            for ticket, name, result in results:
                self._take(ticket, name, result, ready)
            # Of one response all rewards must have answered, so results may come in without an outcome.
            if ready or not waits or not results:
                return ready

    def notes(self) -> list[str]:
        """What the user should know at the end: processes that rewards have left, batches that were graded again."""
        left, again = self.pool.replaced.items(), self.pool.repeated.items()
        return [
            *(f"reward {name} left processes behind after {n:,} calls; they were ended" for name, n in left),
            *(f"reward {name}: {n:,} batches failed, and their answers were graded one by one" for name, n in again),
        ]

    def _take(self, ticket: int, name: str, result: Result, ready: list[tuple[Key, Outcome]]) -> None:
        response = self._open[ticket]
        response.results[name] = result
        if len(response.results) == len(response.components):
            del self._open[ticket]
            outcome = combine(
                response.components, response.results, self.invalid_score, response.place, scored=response.scored
            )
            ready.append((response.key, outcome))

    @property
    def busy(self) -> bool:
        """Whether something that was submitted has not been returned."""
        return bool(self._open or self._ready)

    def grade(
        self,
        answers: Iterable[tuple[Task, str]],
        names: Sequence[str] | None = None,
        *,
        stop: str = "stop",
        encode: Callable[[str], Sequence[int]] | None = None,
    ) -> list[Outcome]:
        """The outcomes of (task, response) pairs, in order; nothing else may be in flight. Errors are not counted
        towards a limit. encode: the ids of a response, its stop token included, for rewards that read them; none
        without it."""
        count = 0
        for count, (task, response) in enumerate(answers, 1):
            ids = encode(response) if encode is not None else ()
            self.submit_text((count - 1, 0, 0), task, response, row=count - 1, stop=stop, ids=ids, names=names)
        outcomes: dict[int, Outcome] = {}
        while len(outcomes) < count:
            outcomes.update({key[0]: outcome for key, outcome in self._fetch(True)})
        return [outcomes[row] for row in range(count)]

    def close(self) -> None:
        """End all worker processes, and whatever rewards have started in them."""
        self.pool.close()


def answer_of(task: Task, response: str, *, row: int = 0, stop: str = "stop", ids: Sequence[int] = ()) -> Answer:
    """A response to a task as rewards see it."""
    questions = [message.content for message in task.prompt if message.role == "user"]
    return Answer(
        prompt=questions[-1] if questions else "",
        response=response,
        answer=task.answer,
        verifier=task.verifier,
        facts=task.facts,
        columns=task.columns,
        messages=tuple({"role": message.role, "content": message.content} for message in task.prompt),
        row=row,
        stop=stop,
        ids=tuple(ids),
    )


@dataclass(frozen=True, slots=True)
class Places:
    """Places of tokens in a response, by the characters that they hold."""

    decode: Decode
    ids: Sequence[int]
    text: str

    def __call__(self, end: int) -> int:
        """The place of the first token with which `text[:end]` is decoded whole. Raises ValueError if `end` lies
        outside the response.

        A character may be spread over tokens, so prefixes are decoded, and a prefix that ends inside a character does
        not end in it.
        """
        if not 0 < end <= len(self.text):
            raise ValueError(f"a step ends at character {end}; the response has {len(self.text)}")
        low, high = 0, len(self.ids) - 1
        while low < high:
            middle = (low + high) // 2
            if self.decode(self.ids[: middle + 1])[:end] == self.text[:end]:
                high = middle
            else:
                low = middle + 1
        return low
