"""Word problems about small quantities: one to three operations, worked step by step, ending in `#### answer`.

A problem is a function of its seed. Its `key` is its chain of operations (`12+7=19;19*3=57`); the hash of the key alone
decides whether it belongs to the split `train` or `test`. So a chain that a test problem asks for is in no training
problem, story or fact, whatever names and words it is told with. A step of a longer chain may be.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from espalier.errors import ConfigError
from espalier.toy import words

Split = Literal["train", "test"]
SMALLEST, LARGEST = 2, 300  # every quantity in a problem, so that "1 apples" is never said
FACTORS = (2, 3, 4, 5, 6, 7, 8, 9)
TEST_SHARE = 10  # one chain in ten belongs to the test split
PROMPT = "Problem:\n{question}\nSolution:\n"


@dataclass(frozen=True, slots=True)
class Step:
    """One operation: `said` is its sentence and holds `expression=value`, as in `Mia has 12+7=19 apples.`"""

    expression: str
    value: int
    said: str


@dataclass(frozen=True, slots=True)
class Problem:
    """`solution` is one line a step and a last line `#### answer`; `story` tells the events and the result in prose."""

    question: str
    solution: str
    answer: str
    steps: tuple[Step, ...]
    story: str

    @property
    def text(self) -> str:
        """What the base model has read: the prompt of the text form followed by the solution."""
        return self.prompt + self.solution

    @property
    def prompt(self) -> str:
        """The text form up to where the solution starts."""
        return PROMPT.format(question=self.question)

    @property
    def key(self) -> str:
        return ";".join(f"{step.expression}={step.value}" for step in self.steps)


def split_of(key: str) -> Split:
    """The split of a chain of operations: sha256(key) mod 10 is 0 for `test`.

    >>> split_of("12+7=19"), split_of("12+7=19;19*3=57")
    ('train', 'train')
    """
    digest = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    return "test" if digest % TEST_SHARE == 0 else "train"


def problem(seed: int | str, split: Split = "train") -> Problem:
    """The problem of `seed` in `split`: draws until one lies in it. Each split has another one."""
    if split not in ("train", "test"):
        raise ConfigError(f"world split got {split!r}; expected 'train' or 'test'")
    rng = Random(f"{seed}/{split}")
    while True:
        drawn = _draw(rng)
        if drawn is not None and split_of(drawn.key) == split:
            return drawn


def problems(n: int, seed: int = 0, split: Split = "train") -> list[Problem]:
    """`n` problems with unlike questions; `problems(n, s)` starts with `problems(m, s)` for m < n."""
    found: dict[str, Problem] = {}
    for item in stream(seed, split):
        if len(found) >= n:
            break
        found.setdefault(item.question, item)
    return list(found.values())


def stream(seed: int = 0, split: Split = "train") -> Iterator[Problem]:
    """Problems without end, repeats possible."""
    i = 0
    while True:
        yield problem(f"{seed}/{i}", split)
        i += 1


class _Teller:
    """A problem while it is told: who holds how many of one thing, what was said, what was computed."""

    def __init__(self, rng: Random):
        self.rng = rng
        self.names = rng.sample(words.NAMES, 6)
        self.holder = self.names.pop()
        self.other: tuple[str, int] | None = None  # a second holder, for "together"
        self.thing, self.spare = rng.sample(words.THINGS, 2)
        self.value = 0
        self.sentences: list[str] = []
        self.steps: list[Step] = []

    def say(self, templates: Sequence[str], **fields: object) -> None:
        self.sentences.append(self.rng.choice(templates).format(t=self.thing, o=self.spare, **fields))

    def compute(self, left: int, op: str, right: int, said: str) -> int | None:
        """Record a step and return its value, or None where it leaves the world's numbers."""
        value = {"+": left + right, "-": left - right, "*": left * right, "/": left // right}[op]
        if (op == "/" and left % right) or not SMALLEST <= value <= LARGEST:
            return None
        expression = f"{left}{op}{right}"
        filled = said.replace("#", f"{expression}={value}").replace("@", self.thing)
        self.steps.append(Step(expression, value, filled))
        return value

    def amount(self) -> int:
        """A number to add or take away; small ones are more common, as in the world."""
        return self.rng.randint(SMALLEST, self.rng.choice((9, 40, 99)))


# An operation tells its event, records its step and returns False where the numbers do not work out.
def _groups(w: _Teller) -> bool:
    n, m = w.rng.choice(FACTORS), w.rng.randint(2, 20)
    w.say(words.GROUPS, a=w.holder, n=n, m=m, g=w.rng.choice(words.BOXES))
    value = w.compute(n, "*", m, f"{w.holder} has # @.")
    w.value = value or 0
    return value is not None


def _change(w: _Teller) -> bool:
    """The holder gains or loses some."""
    op, templates = w.rng.choice((("+", words.GAIN), ("-", words.LOSE)))
    n = w.amount()
    w.say(templates, a=w.holder, b=w.rng.choice(w.names), n=n)
    value = w.compute(w.value, op, n, f"Now {w.holder} has # @.")
    w.value = value or 0
    return value is not None


def _compare(w: _Teller) -> bool:
    """Somebody else has more, fewer, or a multiple; the tale goes on with them."""
    b = w.names.pop()
    n = w.amount()
    op, templates = w.rng.choice((("+", words.MORE), ("-", words.FEWER), ("*", words.TIMES), ("/", words.HALF)))
    if op == "*":
        n = w.rng.choice(FACTORS)
        templates = words.TWICE if n == 2 else words.TIMES
    if op == "/":
        n = 2
    w.say(templates, a=w.holder, b=b, n=n)
    value = w.compute(w.value, op, n, f"{b} has # @.")
    w.other, w.holder, w.value = (w.holder, w.value), b, value or 0
    return value is not None


def _together(w: _Teller) -> tuple[str, str] | None:
    if w.other is None:
        return None
    name, count = w.other
    value = w.compute(count, "+", w.value, "Together that is # @.")
    return _ask(w, words.ASK_TOGETHER, a=name, b=w.holder, v=value) if value else None


def _share(w: _Teller) -> tuple[str, str] | None:
    fitting = [m for m in FACTORS if w.value % m == 0]
    if not fitting:
        return None
    n = w.rng.choice(fitting)
    value = w.compute(w.value, "/", n, "Each part is # @.")
    return _ask(w, words.ASK_SHARE, a=w.holder, n=n, v=value) if value else None


def _need(w: _Teller) -> tuple[str, str] | None:
    n = w.value + w.amount()
    if n > LARGEST:
        return None
    value = w.compute(n, "-", w.value, f"{w.holder} needs # more @.")
    return _ask(w, words.ASK_NEED, a=w.holder, n=n, v=value) if value else None


def _ask(w: _Teller, forms: Sequence[tuple[str, str]], **fields: object) -> tuple[str, str]:
    question, statement = w.rng.choice(forms)
    return question.format(t=w.thing, **fields), statement.format(t=w.thing, **fields)


_CLOSINGS: tuple[Callable[[_Teller], tuple[str, str] | None], ...] = (_together, _share, _need)


def _draw(rng: Random) -> Problem | None:
    """One attempt; None where its numbers do not work out."""
    w = _Teller(rng)
    count = rng.choices((1, 2, 3), weights=(3, 4, 3))[0]
    closing = rng.choice(_CLOSINGS) if rng.random() < 0.4 else None
    if rng.random() < 0.3 and (count > 1 or closing is None):
        if not _groups(w):
            return None
    else:
        w.value = rng.randint(SMALLEST, rng.choice((20, 99, LARGEST)))
        w.say(words.START, a=w.holder, n=w.value)
    while len(w.steps) < count - (closing is not None):
        if not rng.choice((_change, _change, _compare))(w):
            return None
    asked = closing(w) if closing else _ask(w, words.ASK, a=w.holder, v=w.value)
    if asked is None or len(w.steps) != count:
        return None
    question, statement = asked
    told = list(w.sentences)
    for _ in range(rng.choice((0, 0, 0, 1, 1, 2))):
        idle = rng.choice(words.DISTRACTORS).format(
            a=w.holder, b=rng.choice(w.names), n=rng.randint(SMALLEST, 60), t=w.thing, o=w.spare
        )
        told.insert(rng.randint(1, len(told)), idle)
    answer = str(w.steps[-1].value)
    return Problem(
        question=" ".join([*told, question]),
        solution="\n".join([*(step.said for step in w.steps), f"#### {answer}"]),
        answer=answer,
        steps=tuple(w.steps),
        story=" ".join([*w.sentences, statement]),
    )
