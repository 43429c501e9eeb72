"""Word problems about small quantities: one to three operations, worked step by step, ending in `#### answer`.

A problem is a function of its seed. Its `key` is its chain of operations (`12+7=19;19*3=57`); the hash of the key alone
decides whether it belongs to the split `train` or `test`. So the chain of a test problem occurs in no training problem,
story or sum, whatever names and words tell it. A single step of a longer chain may occur.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from espalier.errors import ConfigError
from espalier.toy import words

Split = Literal["train", "test"]
SMALLEST, LARGEST = 2, 300  # of every quantity in a problem, so that "1 apples" never occurs
FACTORS = (2, 3, 4, 5, 6, 7, 8, 9)
TEST_SHARE = 10  # one chain in ten belongs to the test split
PROMPT = "Problem:\n{question}\nSolution:\n"


@dataclass(frozen=True, slots=True)
class Step:
    """One operation: `sentence` contains `expression=value`, as in `Mia has 12+7=19 apples.`"""

    expression: str
    value: int
    sentence: str


@dataclass(frozen=True, slots=True)
class Problem:
    """`solution` has one line per step and a last line `#### answer`; `story` tells events and result in prose."""

    question: str
    solution: str
    answer: str
    steps: tuple[Step, ...]
    story: str

    @property
    def text(self) -> str:
        """The form in which the base model reads problems: the prompt of the text form followed by the solution."""
        return self.prompt + self.solution

    @property
    def prompt(self) -> str:
        """The text form up to the solution."""
        return PROMPT.format(question=self.question)

    @property
    def largest(self) -> int:
        """The largest number in a step."""
        return max(int(n) for step in self.steps for n in re.findall(r"\d+", f"{step.expression}={step.value}"))

    @property
    def key(self) -> str:
        """The chain of operations, which decides the split."""
        return ";".join(f"{step.expression}={step.value}" for step in self.steps)


def split_of(key: str) -> Split:
    """The split of a chain of operations: sha256(key) mod 10 is 0 for `test`.

    >>> split_of("12+7=19"), split_of("12+7=19;19*3=57")
    ('train', 'train')
    """
    digest = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    return "test" if digest % TEST_SHARE == 0 else "train"


def problem(seed: int | str, split: Split = "train", largest: int = LARGEST) -> Problem:
    """The problem of `seed` in `split`: problems are drawn until one lies in it and its steps have no number above
    `largest`, so each split has another one.

    Raises ConfigError for a split that does not exist, and for a `largest` that no problem keeps to.
    """
    if largest < FACTORS[-1]:
        raise ConfigError(f"largest got {largest}; expected at least {FACTORS[-1]}, or few problems are left")
    if split not in ("train", "test"):
        raise ConfigError(f"world split got {split!r}; expected 'train' or 'test'")
    rng = Random(f"{seed}/{split}")
    while True:
        drawn = _draw(rng)
        if drawn is not None and split_of(drawn.key) == split and drawn.largest <= largest:
            return drawn


def problems(n: int, seed: int = 0, split: Split = "train", largest: int = LARGEST) -> list[Problem]:
    """`n` problems with different questions and no number above `largest`; `problems(n, s)` starts with
    `problems(m, s)` for m < n."""
    by_question: dict[str, Problem] = {}
    for item in stream(seed, split, largest):
        if len(by_question) >= n:
            break
        by_question.setdefault(item.question, item)
    return list(by_question.values())


def stream(seed: int = 0, split: Split = "train", largest: int = LARGEST) -> Iterator[Problem]:
    """Problems without end, repeats possible."""
    for number in itertools.count():
        yield problem(f"{seed}/{number}", split, largest)


class _Tale:
    """A problem while it is told: who holds how many of one thing, the sentences and steps so far."""

    def __init__(self, rng: Random):
        self.rng = rng
        self.names = rng.sample(words.NAMES, 6)
        self.holder = self.names.pop()
        self.other: tuple[str, int] | None = None  # a second holder, for "together"
        self.thing, self.spare = rng.sample(words.THINGS, 2)
        self.value = 0
        self.sentences: list[str] = []
        self.steps: list[Step] = []

    def tell(self, templates: Sequence[str], **fields: object) -> None:
        """Add a sentence of one of the templates."""
        self.sentences.append(self.rng.choice(templates).format(t=self.thing, o=self.spare, **fields))

    def compute(self, left: int, op: str, right: int, template: str) -> int | None:
        """Record a step and return its value; None if the value is not one of the world's numbers.

        In `template` # is the computation and @ the thing.
        """
        value = {"+": left + right, "-": left - right, "*": left * right, "/": left // right}[op]
        if (op == "/" and left % right) or not SMALLEST <= value <= LARGEST:
            return None
        expression = f"{left}{op}{right}"
        sentence = template.replace("#", f"{expression}={value}").replace("@", self.thing)
        self.steps.append(Step(expression, value, sentence))
        return value

    def amount(self) -> int:
        """A number to add or take away; small ones are more common, as in real life."""
        return self.rng.randint(SMALLEST, self.rng.choice((9, 40, 99)))


# Below every number is drawn in a fixed order: a problem is a function of its seed, and the embedded model was trained
# on these. Each operation tells its event, records its step and returns False if the numbers do not work out.


def _groups(tale: _Tale) -> bool:
    """The holder has several boxes with as many things in each."""
    boxes, inside = tale.rng.choice(FACTORS), tale.rng.randint(2, 20)
    tale.tell(words.GROUPS, a=tale.holder, n=boxes, m=inside, g=tale.rng.choice(words.BOXES))
    value = tale.compute(boxes, "*", inside, f"{tale.holder} has # @.")
    tale.value = value or 0
    return value is not None


def _change(tale: _Tale) -> bool:
    """The holder gains or loses some."""
    op, templates = tale.rng.choice((("+", words.GAIN), ("-", words.LOSE)))
    amount = tale.amount()
    tale.tell(templates, a=tale.holder, b=tale.rng.choice(tale.names), n=amount)
    value = tale.compute(tale.value, op, amount, f"Now {tale.holder} has # @.")
    tale.value = value or 0
    return value is not None


def _compare(tale: _Tale) -> bool:
    """Somebody else has more, fewer, or a multiple; the tale goes on with them."""
    name = tale.names.pop()
    amount = tale.amount()
    op, templates = tale.rng.choice((("+", words.MORE), ("-", words.FEWER), ("*", words.TIMES), ("/", words.HALF)))
    if op == "*":
        amount = tale.rng.choice(FACTORS)
        templates = words.TWICE if amount == 2 else words.TIMES
    if op == "/":
        amount = 2
    tale.tell(templates, a=tale.holder, b=name, n=amount)
    value = tale.compute(tale.value, op, amount, f"{name} has # @.")
    tale.other = (tale.holder, tale.value)
    tale.holder, tale.value = name, value or 0
    return value is not None


Ending = tuple[str, str]
"""A question to end with, and its answer as a statement."""


def _together(tale: _Tale) -> Ending | None:
    if tale.other is None:
        return None
    name, count = tale.other
    value = tale.compute(count, "+", tale.value, "Together that is # @.")
    return _ask(tale, words.ASK_TOGETHER, value, a=name, b=tale.holder)


def _share(tale: _Tale) -> Ending | None:
    fitting = [factor for factor in FACTORS if tale.value % factor == 0]
    if not fitting:
        return None
    friends = tale.rng.choice(fitting)
    value = tale.compute(tale.value, "/", friends, "Each part is # @.")
    return _ask(tale, words.ASK_SHARE, value, a=tale.holder, n=friends)


def _need(tale: _Tale) -> Ending | None:
    needed = tale.value + tale.amount()
    if needed > LARGEST:
        return None
    value = tale.compute(needed, "-", tale.value, f"{tale.holder} needs # more @.")
    return _ask(tale, words.ASK_NEED, value, a=tale.holder, n=needed)


def _ask(tale: _Tale, forms: Sequence[Ending], value: int | None, **fields: object) -> Ending | None:
    """A question of one of the forms, with its answer as a statement; None if there is no value."""
    if value is None:
        return None
    question, statement = tale.rng.choice(forms)
    return question.format(t=tale.thing, **fields), statement.format(t=tale.thing, v=value, **fields)


_CLOSINGS: tuple[Callable[[_Tale], Ending | None], ...] = (_together, _share, _need)


def _draw(rng: Random) -> Problem | None:
    """One attempt; None if its numbers do not work out."""
    tale = _Tale(rng)
    count = rng.choices((1, 2, 3), weights=(3, 4, 3))[0]
    closing = None
    if rng.random() < 0.4:
        closing = rng.choice(_CLOSINGS)
    # A closing question is a step, too.
    before_closing = count - 1 if closing else count
    if rng.random() < 0.3 and before_closing > 0:
        if not _groups(tale):
            return None
    else:
        tale.value = rng.randint(SMALLEST, rng.choice((20, 99, LARGEST)))
        tale.tell(words.START, a=tale.holder, n=tale.value)
    while len(tale.steps) < before_closing:
        if not rng.choice((_change, _change, _compare))(tale):
            return None
    ending = closing(tale) if closing else _ask(tale, words.ASK, tale.value, a=tale.holder)
    if ending is None or len(tale.steps) != count:
        return None
    return _written(tale, *ending)


def _written(tale: _Tale, question: str, statement: str) -> Problem:
    """The problem of a tale: its question has up to two sentences that change nothing, its story has none."""
    sentences = list(tale.sentences)
    for _ in range(tale.rng.choice((0, 0, 0, 1, 1, 2))):
        distractor = tale.rng.choice(words.DISTRACTORS)
        name, number = tale.rng.choice(tale.names), tale.rng.randint(SMALLEST, 60)
        idle = distractor.format(a=tale.holder, b=name, n=number, t=tale.thing, o=tale.spare)
        sentences.insert(tale.rng.randint(1, len(sentences)), idle)
    answer = str(tale.steps[-1].value)
    lines = [step.sentence for step in tale.steps]
    return Problem(
        question=" ".join([*sentences, question]),
        solution="\n".join([*lines, f"#### {answer}"]),
        answer=answer,
        steps=tuple(tale.steps),
        story=" ".join([*tale.sentences, statement]),
    )
