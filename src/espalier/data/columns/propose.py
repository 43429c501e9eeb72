"""Which mapping to try for a row of an unknown layout: by the names of its columns, then by the shapes of values."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from espalier.data.columns.parts import (
    ANSWER,
    ANSWER_LIKE,
    ANY_TEXT,
    BEST,
    CHOSEN,
    CONTEXT,
    FINAL,
    LABEL,
    LETTERED,
    PROMPT,
    PROMPT_LIKE,
    REASONING,
    REJECTED,
    SCORE,
    STEPS,
    SYSTEM,
    TURNS,
    WHOLE,
    WON,
    Part,
    best_of,
    is_answer,
    is_number,
    is_text,
    is_texts,
    is_transcript,
    is_turns,
    parts_of_row,
    words_of,
)
from espalier.types import Consumes


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
    columns = list(parts_of_row(row))
    if consumes == "steps":
        fields = _steps(columns)
    elif consumes == "task":
        fields = _task(columns)
    elif consumes == "ranking":
        fields = _pair(columns) or _several(columns)
        if not fields and not _answers(columns):
            fields = _judged(columns)
    else:
        fields = _chat(columns)
    if not fields:
        return
    texts = [column for column in columns if is_text(column.value) and column.path not in fields.values()]
    reasoning = best_of(texts, REASONING) if consumes == "chat" and "response" in fields else None
    if reasoning is not None:
        yield [f"{name}={path}" for name, path in {**fields, "reasoning": reasoning}.items()]
    yield [f"{name}={path}" for name, path in fields.items()]
    if fields.pop("system", None) is not None:
        yield [f"{name}={path}" for name, path in fields.items()]


# --------------------------------------------------------------------------------------------------------------- forms


def _task(columns: Sequence[Part]) -> dict[str, str]:
    """A prompt, by its name or else the only text of several words, and a final answer, by its name."""
    texts = [column for column in columns if is_text(column.value) or is_turns(column.value)]
    prompt = best_of(texts, PROMPT)
    if prompt is None:
        plain = [
            column
            for column in texts
            if not column.about_the_row and column.rank((*ANSWER, *ANSWER_LIKE, "prediction")) == 1000
        ]
        spoken = [column for column in plain if is_turns(column.value) or len(column.value.split()) > 1]
        prompt = best_of(spoken, PROMPT_LIKE) or (spoken[0].path if len(spoken) == 1 else None)
    if prompt is None:
        return {}
    short = [column for column in columns if isinstance(column.value, str | int | float)]
    answer = best_of(short, FINAL, (prompt,))
    return {"prompt": prompt} if answer is None else {"prompt": prompt, "answer": answer}


def _chat(columns: Sequence[Part]) -> dict[str, str]:
    judged = _pair(columns) or _several(columns)
    if judged or _answers(columns):
        # Of several answers, which one is right is not for a name to say.
        return judged
    for column in columns:
        if is_turns(column.value):
            return _prompted(columns, column) or {"messages": column.path, **_system(columns)}
    for column in columns:
        if is_text(column.value) and is_transcript(column.value) and column.rank(PROMPT) == 1000:
            return {"chat": column.path}
        if is_texts(column.value) and column.rank(TURNS) < 1000:
            return {"messages": column.path, **_system(columns)}
    texts = [column for column in columns if is_text(column.value)]
    found = _asked(texts)
    if found is None:
        return {}
    prompt, answer = found
    fields = {"prompt": prompt, "response": answer}
    return {**fields, **_system(texts, taken=(prompt, answer))}


def _prompted(columns: Sequence[Part], turns: Part) -> dict[str, str]:
    """A conversation that waits for its answer, and the text that is one by its name."""
    last = turns.value[-1]
    speaker = str(last.get("role", last.get("from", ""))).lower()
    texts = [column for column in columns if is_text(column.value)]
    answer = best_of(texts, ANSWER)
    if speaker not in ("user", "human") or answer is None:
        return {}
    return {"prompt": turns.path, "response": answer, **_system(texts, taken=(answer,))}


def _system(columns: Sequence[Part], taken: Sequence[str] = ()) -> dict[str, str]:
    path = best_of([column for column in columns if is_text(column.value)], SYSTEM, taken)
    return {} if path is None else {"system": path}


def _asked(texts: Sequence[Part]) -> tuple[str, str] | None:
    """What is asked and what is answered: by their names, else the first text and the longest of the others."""
    good = [column for column in texts if not set(words_of(column.path)) & {*REJECTED, "incorrect", "wrong"}]
    answers = [column for column in good if column.rank(SYSTEM) == 1000 and not is_transcript(column.value)]
    prompt = best_of(answers, PROMPT)
    answer = best_of(answers, ANSWER, [prompt] if prompt else [])
    taken = [path for path in (prompt, answer) if path]
    plain = [column for column in answers if not column.about_the_row and column.path not in taken]
    prompt = (
        prompt or best_of(plain, PROMPT_LIKE) or best_of(answers, PROMPT_LIKE) or (plain[0].path if plain else None)
    )
    rest = [column for column in plain if column.path != prompt]
    answer = answer or best_of(rest, ANSWER_LIKE)
    if answer is None:
        # Words that follow one another, at the top of the row: not a code such as `found_error`.
        rest = [column for column in rest if column.rank((*CONTEXT, *REASONING)) == 1000]
        spoken = [column for column in rest if len(column.value.split()) > 1 and "." not in column.path]
        answer = max(spoken, key=lambda column: len(column.value)).path if spoken else None
    if answer is None:
        # A label of several words is no class.
        labels = [column for column in texts if column.words == ["label"] and len(column.value.split()) > 2]
        answer = labels[0].path if labels else None
    return (prompt, answer) if prompt and answer else None


def _prompt(columns: Sequence[Part], taken: Sequence[str]) -> dict[str, str]:
    """What is to be answered: a text whose whole name says so, turns, a text with the name of a prompt, or the first
    text."""
    free = [column for column in columns if column.path not in taken]
    texts = [column for column in free if is_text(column.value) and not is_transcript(column.value)]
    turns = [column for column in free if is_turns(column.value) and not column.about_the_row]
    path = best_of([column for column in texts if column.rank(PROMPT) < WHOLE], PROMPT)
    if turns and (path is None or turns[0].rank(PROMPT) < WHOLE):
        return {"prompt": turns[0].path}
    plain = [column for column in texts if not column.about_the_row]
    path = path or best_of(texts, PROMPT) or best_of(plain, PROMPT_LIKE) or (plain[0].path if plain else None)
    return {} if path is None else {"prompt": path, **_system(texts, (*taken, path))}


def _pair(columns: Sequence[Part]) -> dict[str, str]:
    """A preferred answer and another one, by their names."""
    answers = [column for column in columns if is_answer(column.value)]
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


def _several(columns: Sequence[Part]) -> dict[str, str]:
    """Several answers and what is said about each, or about which is best."""
    return _listed(columns) or _scored(columns) or _chosen_by_place(columns) or _numbered(columns)


def _scored(columns: Sequence[Part]) -> dict[str, str]:
    """A list of objects with an answer and a score each."""
    for column in columns:
        items = column.value
        if not isinstance(items, list) or len(items) < 2 or not all(isinstance(item, dict) for item in items):
            continue
        texts = [key for key in (*sorted(ANY_TEXT), *ANSWER) if all(is_text(item.get(key)) for item in items)]
        numbers = [Part(key, items[0][key]) for key in items[0] if all(is_number(item.get(key)) for item in items)]
        score = best_of(numbers, SCORE)
        fields = _prompt(columns, (column.path,)) if texts and score else {}
        if fields:
            return {**fields, "responses": f"{column.path}[].{texts[0]}", "scores": f"{column.path}[].{score}"}
    return {}


def _chosen_by_place(columns: Sequence[Part]) -> dict[str, str]:
    """A list of objects with an answer each, and the place of the best one."""
    for column in columns:
        if not isinstance(column.value, list) or not all(isinstance(item, dict) for item in column.value):
            continue
        for key in (*sorted(ANY_TEXT), *ANSWER):
            if len(column.value) < 2 or not all(is_text(item.get(key)) for item in column.value):
                continue
            best = _place(columns, len(column.value))
            fields = _prompt(columns, (column.path,)) if best else {}
            return {**fields, "responses": f"{column.path}[].{key}", "best": best} if fields and best else {}
    return {}


def _place(columns: Sequence[Part], count: int) -> str | None:
    """The column that names one of `count` answers by its place."""
    letters = "abcdefghijklmnopqrstuvwxyz"[:count]
    places = []
    for column in columns:
        letter = LETTERED.fullmatch(column.value.strip().lower()) if isinstance(column.value, str) else None
        if letter and letter[1] in letters:
            places.append(column)
        if type(column.value) is int and 0 <= column.value < count:
            places.append(column)
    return best_of(places, BEST)


def _listed(columns: Sequence[Part]) -> dict[str, str]:
    """A list of answers, and one of as many numbers beside it."""
    lists = [column for column in columns if isinstance(column.value, list) and len(column.value) > 1]
    texts = [column for column in lists if all(map(is_text, column.value)) and not column.about_the_row]
    answers = [column for column in texts if column.rank(STEPS) == 1000]
    for answer in sorted(answers, key=lambda column: -len(str(column.value))):
        for scores in lists:
            numbers = len(scores.value) == len(answer.value) and all(map(is_number, scores.value))
            if numbers and scores.rank(SCORE) < 1000:
                fields = _prompt(columns, (answer.path,))
                return {**fields, "responses": answer.path, "scores": scores.path} if fields else {}
    return {}


def _numbered(columns: Sequence[Part]) -> dict[str, str]:
    """Answers in numbered columns, with as many numbers about them, or a number that says which is best."""
    numbers = _series(columns, is_number)
    for paths in _answers(columns):
        fields = _prompt(columns, paths)
        if not fields:
            continue
        fields["responses"] = ",".join(paths)
        for stem, judged in numbers.items():
            if len(judged) != len(paths):
                continue
            if Part(stem, 0).rank(SCORE) < 1000:
                return {**fields, "scores": ",".join(judged)}
            if Part(stem, 0).rank(WON) < 1000:
                return {**fields, "labels": ",".join(judged)}
        best = _place(columns, len(paths))
        if best is not None:
            return {**fields, "best": best}
        signed = [column for column in columns if type(column.value) is int]
        preference = best_of(signed, ("preference",)) if len(paths) == 2 else None
        if preference is not None:
            return {**fields, "preference": preference}
    return {}


def _answers(columns: Sequence[Part]) -> list[list[str]]:
    """Texts in numbered columns, the longest first, without what is about them."""
    series = _series(columns, is_text)
    size = {column.path: len(str(column.value)) for column in columns}
    paths = [paths for stem, paths in series.items() if not Part(stem, "").about_the_row]
    return sorted(paths, key=lambda several: -sum(size[path] for path in several))


def _series(columns: Sequence[Part], fits: Any) -> dict[str, list[str]]:
    """The columns whose names differ in their last word alone, a number or a letter, by what they have in common."""
    series: dict[str, list[str]] = {}
    for column in columns:
        match = re.fullmatch(r"(.*?)[ _-]?(\d+|[a-z]|(?<=_)[A-Z])(?:\[0\])?", column.path)
        if match and fits(column.value):
            series.setdefault(match.group(1), []).append(column.path)
    return {stem: paths for stem, paths in series.items() if stem and len(paths) > 1}


def _judged(columns: Sequence[Part]) -> dict[str, str]:
    """One answer with a label or a score of its own."""
    texts = [column for column in columns if is_text(column.value)]
    found = _asked(texts)
    if found is None:
        return {}
    numbers = [column for column in columns if is_number(column.value)]
    flags = [column for column in numbers if column.value in (0, 1)]
    label, score = best_of(flags, LABEL), best_of(numbers, SCORE)
    if label is None and score is None:
        return {}
    judgement = {"label": label} if label else {"score": score or ""}
    return {"prompt": found[0], "response": found[1], **judgement}


def _steps(columns: Sequence[Part]) -> dict[str, str]:
    """A list of steps, and one of as many labels beside it."""
    lists = [column for column in columns if isinstance(column.value, list) and column.value]
    for steps in sorted(lists, key=lambda column: column.rank(STEPS)):
        if not all(map(is_text, steps.value)):
            continue
        for labels in lists:
            marks = all(isinstance(label, bool | int | float) or label in ("+", "-") for label in labels.value)
            if labels is not steps and marks and len(labels.value) == len(steps.value):
                fields = _prompt(columns, (steps.path,))
                return {**fields, "steps": steps.path, "labels": labels.path} if fields else {}
    return _judged_steps(columns)


def _judged_steps(columns: Sequence[Part]) -> dict[str, str]:
    """A list of objects with the text of a step and what is said of it."""
    for column in columns:
        items = column.value
        if not isinstance(items, list) or not items or not all(isinstance(item, dict) for item in items):
            continue
        parts = [Part(key, items[0][key]) for key in items[0]]
        texts = [part for part in parts if all(isinstance(item.get(part.path), str) for item in items)]
        marks = [part for part in parts if all(is_number(item.get(part.path)) for item in items)]
        text = best_of(texts, (*sorted(ANY_TEXT), *STEPS))
        mark = best_of(marks, (*LABEL, *SCORE, "ok", "valid", "right"))
        fields = _prompt(columns, (column.path,)) if text and mark else {}
        if fields:
            return {**fields, "steps": f"{column.path}[].{text}", "labels": f"{column.path}[].{mark}"}
    return {}
