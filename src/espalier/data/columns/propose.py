"""Which mapping to try for a row of an unknown layout: by the names of its columns, then by the shapes of values."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from espalier.data.columns.contents import decoded, is_prose, is_turn
from espalier.data.columns.names import is_metadata
from espalier.types import Consumes

PROMPT = ("prompt", "instruction", "question", "query", "problem", "input", "user", "human", "request")
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
SYSTEM = ("system",)
REASONING = ("reasoning", "cot", "thinking", "thought", "thoughts")
CONTEXT = ("context", "passage", "article", "document", "background", "history", "title", "name")
"""Names of what is read before a question, and never answers it."""
ANY_TEXT = {"text", "texts", "content", "value", "full"}
"""Words of names that say nothing of what a text is."""
CHOSEN = ("chosen", "preferred", "better", "winner", "accepted", "positive", "pos", "good", "best")
REJECTED = ("rejected", "dispreferred", "worse", "loser", "negative", "neg", "bad", "worst", "unpreferred")
LABEL = ("label", "good", "correct", "desirable", "upvoted", "thumbs")
SCORE = ("score", "rating", "reward", "grade", "scores", "ratings", "rewards", "label", "labels")
WON = ("winner", "won", "win", "preferred", "chosen", "better")
BEST = ("better", "best", "choice", "winner", "preferred", "label")
STEPS = ("step", "steps", "thought", "thoughts", "chunk", "chunks")
WHOLE = 100
"""Ranks below this are of whole names."""
_SPEAKER = re.compile(r"\b(?:human|user|assistant|chatbot)\s*[:>]", re.IGNORECASE)
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|\d+")


@dataclass(frozen=True, slots=True)
class _Column:
    """A column, or a part of one, by its path."""

    path: str
    value: Any

    @property
    def words(self) -> list[str]:
        """The words of its own name, in lower case; of the column that holds it, if its own is that of any text."""
        above, _, own = self.path.rpartition(".")
        words = _words(own)
        return _words(above) if above and set(words) <= ANY_TEXT else words

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


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(name) if not word.isdigit()]


def propose(row: Mapping[str, Any], consumes: Consumes) -> list[str]:
    """The first mapping to try for a row, as `--columns` takes it; empty if none comes to mind.

    >>> propose({"id": 7, "problem": "1 + 1?", "final_solution": "It is 2."}, "chat")
    ['prompt=problem', 'response=final_solution']
    >>> propose({"q": "Name a red fruit.", "good_one": "A cherry.", "bad_one": "A banana."}, "ranking")
    ['prompt=q', 'chosen=good_one', 'rejected=bad_one']
    """
    return next(mappings(row, consumes), [])


def mappings(row: Mapping[str, Any], consumes: Consumes) -> Iterator[list[str]]:
    """The mappings to try for a row, the fullest first: those after it have no text before or beside the prompt."""
    columns = list(_columns(row))
    if consumes == "steps":
        fields = _steps(columns)
    elif consumes == "ranking":
        fields = _pair(columns) or _several(columns)
        if not fields and not _answers(columns):
            fields = _judged(columns)
    else:
        fields = _chat(columns)
    if not fields:
        return
    texts = [column for column in columns if _is_text(column.value) and column.path not in fields.values()]
    reasoning = _best(texts, REASONING) if consumes == "chat" and "response" in fields else None
    if reasoning is not None:
        yield [f"{name}={path}" for name, path in {**fields, "reasoning": reasoning}.items()]
    yield [f"{name}={path}" for name, path in fields.items()]
    if fields.pop("system", None) is not None:
        yield [f"{name}={path}" for name, path in fields.items()]


def _columns(row: Mapping[str, Any], place: str = "", depth: int = 0) -> Iterator[_Column]:
    """The columns of a row, those of objects in them, and the only item of a list written as text."""
    for key, value in row.items():
        path = f"{place}{key}"
        if isinstance(value, str):
            value = decoded(value)
        if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
            path, value = f"{path}[0]", value[0]
        if isinstance(value, dict) and depth < 1 and not is_turn(value):
            yield from _columns(value, f"{path}.", depth + 1)
        elif value is not None:
            yield _Column(path, value)


# -------------------------------------------------------------------------------------------------------------- values


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and is_prose(value)


def _is_turns(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(is_turn(item) for item in value)


def _is_answer(value: Any) -> bool:
    return _is_text(value) or _is_turns(value) or is_turn(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _best(columns: Sequence[_Column], names: Sequence[str], taken: Sequence[str] = ()) -> str | None:
    """The path of the column whose name says most clearly that it is one of `names`; of equals, the longest."""
    ranked = []
    for column in columns:
        rank = column.rank(names)
        if rank < 1000 and column.path not in taken:
            ranked.append((rank, -len(str(column.value)), column.path))
    return min(ranked)[2] if ranked else None


# --------------------------------------------------------------------------------------------------------------- forms


def _chat(columns: Sequence[_Column]) -> dict[str, str]:
    judged = _pair(columns) or _several(columns)
    if judged or _answers(columns):
        # Of several answers, which one is right is not for a name to say.
        return judged
    for column in columns:
        if _is_turns(column.value) and any(_speaks_role(turn) for turn in column.value):
            return _prompted(columns, column) or {"messages": column.path, **_system(columns)}
    texts = [column for column in columns if _is_text(column.value)]
    found = _asked(texts)
    if found is None:
        return {}
    prompt, answer = found
    fields = {"prompt": prompt, "response": answer}
    return {**fields, **_system(texts, taken=(prompt, answer))}


def _prompted(columns: Sequence[_Column], turns: _Column) -> dict[str, str]:
    """A conversation that waits for its answer, and the text that is one by its name."""
    last = turns.value[-1]
    speaker = str(last.get("role", last.get("from"))).lower()
    texts = [column for column in columns if _is_text(column.value)]
    answer = _best(texts, ANSWER)
    if speaker not in ("user", "human") or answer is None:
        return {}
    return {"prompt": turns.path, "response": answer, **_system(texts, taken=(answer,))}


def _speaks_role(turn: Mapping[str, Any]) -> bool:
    return "role" in turn or "from" in turn


def _system(columns: Sequence[_Column], taken: Sequence[str] = ()) -> dict[str, str]:
    path = _best([column for column in columns if _is_text(column.value)], SYSTEM, taken)
    return {} if path is None else {"system": path}


def _asked(texts: Sequence[_Column]) -> tuple[str, str] | None:
    """What is asked and what is answered: by their names, else the first text and the longest of the others."""
    answers = [column for column in texts if column.rank(SYSTEM) == 1000 and not _is_transcript(column.value)]
    prompt = _best(answers, PROMPT)
    answer = _best(answers, ANSWER, [prompt] if prompt else [])
    taken = [path for path in (prompt, answer) if path]
    plain = [column for column in answers if not column.about_the_row and column.path not in taken]
    prompt = prompt or _best(plain, PROMPT_LIKE) or _best(answers, PROMPT_LIKE) or (plain[0].path if plain else None)
    rest = [column for column in plain if column.path != prompt]
    answer = answer or _best(rest, ANSWER_LIKE)
    if answer is None:
        # Words that follow one another, at the top of the row: not a code such as `found_error`.
        rest = [column for column in rest if column.rank((*CONTEXT, *REASONING)) == 1000]
        spoken = [column for column in rest if len(column.value.split()) > 1 and "." not in column.path]
        answer = max(spoken, key=lambda column: len(column.value)).path if spoken else None
    return (prompt, answer) if prompt and answer else None


def _is_transcript(text: str) -> bool:
    """Whether a text holds turns of its own behind the names of their speakers."""
    return len(_SPEAKER.findall(text)) > 1


def _prompt(columns: Sequence[_Column], taken: Sequence[str]) -> dict[str, str]:
    """What is to be answered: a text whose whole name says so, turns, a text with the name of a prompt, or the first
    text."""
    free = [column for column in columns if column.path not in taken]
    texts = [column for column in free if _is_text(column.value) and not _is_transcript(column.value)]
    turns = [column for column in free if _is_turns(column.value) and not column.about_the_row]
    path = _best([column for column in texts if column.rank(PROMPT) < WHOLE], PROMPT)
    if turns and (path is None or turns[0].rank(PROMPT) < WHOLE):
        return {"prompt": turns[0].path}
    plain = [column for column in texts if not column.about_the_row]
    path = path or _best(texts, (*PROMPT, *PROMPT_LIKE)) or (plain[0].path if plain else None)
    return {} if path is None else {"prompt": path, **_system(texts, (*taken, path))}


def _pair(columns: Sequence[_Column]) -> dict[str, str]:
    """A preferred answer and another one, by their names."""
    answers = [column for column in columns if _is_answer(column.value)]
    by_path = {column.path: column for column in answers}
    for path in by_path:
        # Better and worse as the paired answers of Stack Exchange are named.
        if path.endswith("_j") and f"{path[:-1]}k" in by_path:
            worse = f"{path[:-1]}k"
            return {**_prompt(columns, (path, worse)), "chosen": path, "rejected": worse}
    rejected = [column for column in answers if column.rank(REJECTED) < 1000 or "non" in column.words]
    if not rejected:
        return {}
    other = rejected[0]
    chosen = [column for column in answers if column.rank(CHOSEN) < 1000 and column is not other]
    # An answer with no such word, beside one that is rejected, is the other one of the pair.
    kind = [name for name in ANSWER if other.rank((name,)) < 1000]
    chosen = chosen or [column for column in answers if column is not other and column.rank(kind or ANSWER) < 1000]
    if not chosen:
        return {}
    better = chosen[0].path
    return {**_prompt(columns, (better, other.path)), "chosen": better, "rejected": other.path}


def _several(columns: Sequence[_Column]) -> dict[str, str]:
    """Several answers and what is said about each, or about which is best."""
    return _listed(columns) or _chosen_by_place(columns) or _numbered(columns)


def _chosen_by_place(columns: Sequence[_Column]) -> dict[str, str]:
    """A list of objects with an answer each, and the place of the best one."""
    for column in columns:
        if not isinstance(column.value, list) or not all(isinstance(item, dict) for item in column.value):
            continue
        for key in (*sorted(ANY_TEXT), *ANSWER):
            if len(column.value) < 2 or not all(_is_text(item.get(key)) for item in column.value):
                continue
            best = _place(columns, len(column.value))
            fields = _prompt(columns, (column.path,)) if best else {}
            return {**fields, "responses": f"{column.path}[].{key}", "best": best} if fields and best else {}
    return {}


def _place(columns: Sequence[_Column], count: int) -> str | None:
    """The column that names one of `count` answers by its place."""
    places = [column for column in columns if type(column.value) is int and 0 <= column.value < count]
    return _best(places, BEST)


def _listed(columns: Sequence[_Column]) -> dict[str, str]:
    """A list of answers, and one of as many numbers beside it."""
    lists = [column for column in columns if isinstance(column.value, list) and len(column.value) > 1]
    texts = [column for column in lists if all(map(_is_text, column.value)) and not column.about_the_row]
    answers = [column for column in texts if column.rank(STEPS) == 1000]
    for answer in sorted(answers, key=lambda column: -len(str(column.value))):
        for scores in lists:
            numbers = len(scores.value) == len(answer.value) and all(map(_is_number, scores.value))
            if numbers and scores.rank(SCORE) < 1000:
                fields = _prompt(columns, (answer.path,))
                return {**fields, "responses": answer.path, "scores": scores.path} if fields else {}
    return {}


def _numbered(columns: Sequence[_Column]) -> dict[str, str]:
    """Answers in numbered columns, with as many numbers about them, or a number that says which is best."""
    numbers = _series(columns, _is_number)
    for paths in _answers(columns):
        fields = _prompt(columns, paths)
        if not fields:
            continue
        fields["responses"] = ",".join(paths)
        for stem, judged in numbers.items():
            if len(judged) != len(paths):
                continue
            if _Column(stem, 0).rank(SCORE) < 1000:
                return {**fields, "scores": ",".join(judged)}
            if _Column(stem, 0).rank(WON) < 1000:
                return {**fields, "labels": ",".join(judged)}
        best = _place(columns, len(paths))
        if best is not None:
            return {**fields, "best": best}
        signed = [column for column in columns if type(column.value) is int]
        preference = _best(signed, ("preference",)) if len(paths) == 2 else None
        if preference is not None:
            return {**fields, "preference": preference}
    return {}


def _answers(columns: Sequence[_Column]) -> list[list[str]]:
    """Texts in numbered columns, the longest first, without what is about them."""
    series = _series(columns, _is_text)
    size = {column.path: len(str(column.value)) for column in columns}
    paths = [paths for stem, paths in series.items() if not _Column(stem, "").about_the_row]
    return sorted(paths, key=lambda several: -sum(size[path] for path in several))


def _series(columns: Sequence[_Column], fits: Any) -> dict[str, list[str]]:
    """The columns whose names differ in their last word alone, a number or a letter, by what they have in common."""
    series: dict[str, list[str]] = {}
    for column in columns:
        match = re.fullmatch(r"(.*?)[ _-]?(\d+|[a-z]|(?<=_)[A-Z])(?:\[0\])?", column.path)
        if match and fits(column.value):
            series.setdefault(match.group(1), []).append(column.path)
    return {stem: paths for stem, paths in series.items() if stem and len(paths) > 1}


def _judged(columns: Sequence[_Column]) -> dict[str, str]:
    """One answer with a label or a score of its own."""
    texts = [column for column in columns if _is_text(column.value)]
    found = _asked(texts)
    if found is None:
        return {}
    numbers = [column for column in columns if _is_number(column.value)]
    flags = [column for column in numbers if column.value in (0, 1)]
    label, score = _best(flags, LABEL), _best(numbers, SCORE)
    if label is None and score is None:
        return {}
    judgement = {"label": label} if label else {"score": score or ""}
    return {"prompt": found[0], "response": found[1], **judgement}


def _steps(columns: Sequence[_Column]) -> dict[str, str]:
    """A list of steps, and one of as many labels beside it."""
    lists = [column for column in columns if isinstance(column.value, list) and column.value]
    for steps in sorted(lists, key=lambda column: column.rank(STEPS)):
        if not all(map(_is_text, steps.value)):
            continue
        for labels in lists:
            marks = all(isinstance(label, bool | int | float) or label in ("+", "-") for label in labels.value)
            if labels is not steps and marks and len(labels.value) == len(steps.value):
                fields = _prompt(columns, (steps.path,))
                return {**fields, "steps": steps.path, "labels": labels.path} if fields else {}
    return {}
