"""The words of the toy world. Fields of the templates: a, b names; n, m, v numbers; t a thing; o another one; g boxes;
e an expression; q a question."""

from __future__ import annotations


def _each(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _each("Ada Ben Cleo Dan Ella Finn Gina Hugo Iris Jon Kira Leo Mia Noah Olga Paul Rosa Sam Tara Vera Will Yara")
THINGS = _each(
    "apples pears plums nuts eggs rolls cakes pens books cards coins stamps shells stones beads balls kites ropes "
    "cups plates spoons candles flowers seeds roses carrots lemons buttons hats socks"
)
BOXES = _each("boxes bags baskets jars crates trays")

# The sentences of each operation. A story tells the same events as a problem, so both use them.
START = ("{a} has {n} {t}.", "{a} owns {n} {t}.", "There are {n} {t} on the table of {a}.", "{a} starts with {n} {t}.")
GROUPS = (
    "{a} has {n} {g} with {m} {t} in each.",
    "{a} packs {m} {t} into each of {n} {g}.",
    "There are {n} {g} and each holds {m} {t} of {a}.",
)
GAIN = (
    "{a} buys {n} more {t}.",
    "{b} gives {a} {n} {t}.",
    "Then {a} finds {n} {t}.",
    "{a} gets {n} {t} from {b}.",
    "After a while {n} {t} are added to those of {a}.",
)
LOSE = (
    "{a} gives {n} {t} to {b}.",
    "Then {a} loses {n} {t}.",
    "{a} sells {n} of the {t}.",
    "{b} takes {n} {t} from {a}.",
    "Later {n} of these {t} are thrown away.",
)
MORE = ("{b} has {n} more {t} than {a}.", "{b} owns {n} {t} more than {a} does.", "{a} has {n} {t} fewer than {b}.")
FEWER = ("{b} has {n} fewer {t} than {a}.", "{b} owns {n} {t} less than {a} does.", "{a} has {n} {t} more than {b}.")
TIMES = ("{b} has {n} times as many {t} as {a}.", "For every one of the {t} of {a}, {b} has {n}.")
TWICE = ("{b} has twice as many {t} as {a}.", "{b} has double the {t} of {a}.")
HALF = ("{b} has half as many {t} as {a}.",)

# Sentences that change nothing; a solver must ignore them.
DISTRACTORS = (
    "{a} also has {n} {o}.",
    "{b} has {n} {o}.",
    "{a} is {n} years old.",
    "{b} saw {n} {o} at the market.",
    "It takes {a} {n} minutes to walk home.",
    "{b} wanted to bring {n} {t} but forgot.",
)

# (question, the same as a statement)
ASK = (
    ("How many {t} does {a} have now?", "Now {a} has {v} {t}."),
    ("How many {t} are there for {a} in the end?", "In the end there are {v} {t} for {a}."),
    ("What is the number of {t} that {a} has?", "The number of {t} that {a} has is {v}."),
)
ASK_TOGETHER = (
    ("How many {t} do {a} and {b} have together?", "{a} and {b} have {v} {t} together."),
    ("How many {t} is that for {a} and {b} in all?", "That is {v} {t} for {a} and {b} in all."),
)
ASK_SHARE = (
    (
        "{a} shares them equally among {n} friends. How many {t} does each friend get?",
        "Each friend of {a} gets {v} {t}.",
    ),
    ("{a} puts the {t} into {n} equal piles. How many {t} are in one pile?", "One pile of {a} is {v} {t}."),
)
ASK_NEED = (
    ("How many more {t} does {a} need to have {n}?", "{a} needs {v} more {t} to have {n}."),
    ("{a} wants {n} {t}. How many are missing?", "For {n} {t}, {a} is missing {v}."),
)

# Other words for a worked step, for instruction data by several authors.
REWORDED_STEP = (
    "First we work out {e}, which is {v}.",
    "We take {e} and get {v}.",
    "{e} makes {v}.",
    "So that is {e}, or {v}.",
)
REWORDED_END = ("So the answer is {v}.", "That leaves us with {v}.", "In total: {v}.")
REQUESTS = ("{q}", "Please solve this. {q}", "{q} Show your work.", "Can you help me? {q}")
