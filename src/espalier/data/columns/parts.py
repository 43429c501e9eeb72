"""The parts of a row that a mapping is made of: their paths, the words of their names, and the shapes of values."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from espalier.data.columns.contents import decoded, is_prose, is_turn
from espalier.data.columns.names import is_metadata

PROMPT = ("prompt", "instruction", "question", "query", "problem", "input", "user", "human", "request", "q")
ANSWER = ("response", "completion", "answer", "output", "solution", "target", "assistant", "bot", "reply", "gpt")
# Names that are a prompt or an answer if nothing has a plainer name.
PROMPT_LIKE = (
    "post",
    "task",
    "article",
    "document",
    "source",
    "context",
    "goal",
    "sentence",
    "title",
    "content",
    "text",
    "premise",
)
ANSWER_LIKE = ("summary", "code", "translation", "generation", "attempt", "highlights", "explanation", "label")
FINAL = ("answer", "truth", "gold", "target", "result")
"""Names of the answer by which a task is graded."""
SYSTEM = ("system",)
REASONING = ("reasoning", "cot", "thinking", "thought", "thoughts")
CONTEXT = ("context", "passage", "article", "document", "background", "history", "title", "name")
"""Names of what is read before a question, and never answers it."""
ANY_TEXT = {"text", "texts", "content", "value", "full"}
"""Words of names that say nothing of what a text is."""
CHOSEN = ("chosen", "preferred", "better", "winner", "accepted", "positive", "pos", "good", "best")
REJECTED = ("rejected", "dispreferred", "worse", "loser", "negative", "neg", "bad", "worst", "unpreferred")
LABEL = ("label", "good", "correct", "desirable", "upvoted", "thumbs")
SCORE = ("score", "rating", "reward", "grade", "quality", "scores", "ratings", "rewards", "label", "labels")
WON = ("winner", "won", "win", "preferred", "chosen", "better")
BEST = ("better", "best", "choice", "winner", "preferred", "label")
TURNS = ("data", "turns", "messages", "conversation", "dialog", "dialogue", "chat", "utterances")
"""Names of lists of texts that are turns."""
STEPS = ("step", "steps", "thought", "thoughts", "chunk", "chunks")
WHOLE = 100
"""Ranks below this are of whole names."""
_SPEAKER = re.compile(r"\b(?:human|user|assistant|chatbot)\s*[:>]", re.IGNORECASE)
LETTERED = re.compile(r"(?:\w+[ _-])?([a-z])")
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|\d+")


@dataclass(frozen=True, slots=True)
class Part:
    """A column, or a part of one, by its path."""

    path: str
    value: Any

    @property
    def words(self) -> list[str]:
        """The words of its own name, in lower case; of the column that holds it, if its own is that of any text."""
        above, _, own = self.path.rpartition(".")
        words = words_of(own)
        return words_of(above) if above and set(words) <= ANY_TEXT else words

    @property
    def about_the_row(self) -> bool:
        """Whether its own name is one of metadata."""
        return is_metadata(self.path.rpartition(".")[2])

    def rank(self, names: Sequence[str]) -> int:
        """The place of the first of `names` that its name holds, whole names before parts; a large number if none."""
        words, best = self.words, 1000
        for place, name in enumerate(names):
            singular = [re.sub(r"ie$", "y", word.removesuffix("s")) for word in words]
            if words == [name] or singular == [name]:
                best = min(best, place)
            elif name in words or name in singular:
                best = min(best, WHOLE + place)
        return best


def words_of(name: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(name) if not word.isdigit()]


def parts_of_row(row: Mapping[str, Any], place: str = "", depth: int = 0) -> Iterator[Part]:
    """The columns of a row, those of objects in them, and the only item of a list written as text."""
    for key, value in row.items():
        path = f"{place}{key}"
        if isinstance(value, str):
            value = decoded(value)
        if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
            path, value = f"{path}[0]", value[0]
        if isinstance(value, dict) and depth < 1 and not is_turn(value):
            yield from parts_of_row(value, f"{path}.", depth + 1)
        elif value is not None:
            yield Part(path, value)


def is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and is_prose(value)


def is_texts(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 1 and all(map(is_text, value))


def is_turns(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(is_turn(item) for item in value)


def is_answer(value: Any) -> bool:
    return is_text(value) or is_turns(value) or is_turn(value)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def best_of(columns: Sequence[Part], names: Sequence[str], taken: Sequence[str] = ()) -> str | None:
    """The path of the column whose name says most clearly that it is one of `names`; of equals, the longest."""
    ranked = []
    for column in columns:
        rank = column.rank(names)
        if rank < 1000 and column.path not in taken:
            ranked.append((rank, -len(str(column.value)), column.path))
    return min(ranked)[2] if ranked else None


def is_transcript(text: str) -> bool:
    """Whether a text holds turns of its own behind the names of their speakers."""
    return len(_SPEAKER.findall(text)) > 1
