"""The 25 verifiable instructions of IFEval (2311.07911): for each id, whether a response follows it.

Every function takes the response and the instruction's arguments by their names in the data (`kwargs`). The rules are
those of the paper's program, with three differences: sentences are cut by the rule below and not by a trained model,
words in capitals are cut by a pattern, and languages are told by `language`; a text of fewer than five words is English
if its letters are Latin.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from espalier.rewards.builtin.language import detect, is_language, scripts

Arguments = Mapping[str, Any]
Follows = Callable[[str, Arguments], bool]

_ABBREVIATION = re.compile(
    r"(?:^|[\s(\"'])(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|Inc|Ltd|Co|Corp|vs|etc|e\.g|i\.e|a\.m|p\.m|No|Vol|Gen|Rev|Mt|approx|"
    r"[A-Z](?:\.[A-Z])*|[0-9]{1,3})$"
)
_END = re.compile(r"[.!?]+[\"'\u201d\u2019)\]*]*(?=\s+|$)")
_CAPITALS = re.compile(r"[^\W_]+(?:[-.&/][^\W_]+)*")


def sentences(text: str) -> int:
    """The number of sentences: pieces that end in `.`, `!` or `?` before a blank or the end, and the rest if there is
    one. A full stop after a title, an initial or a number of a list ends none, nor one before a small letter (if the
    text has capitals at all).

    >>> sentences("Dr. Who came. He left!  1. One thing"), sentences("No end"), sentences("so. it is."), sentences(" ")
    (3, 1, 2, 0)
    """
    count, start = 0, 0
    cased = text.lower() != text
    for end in _END.finditer(text):
        # A few characters tell: whole texts would be copied for each sentence.
        before = text[max(start, end.start() - 12) : end.start()]
        after = text[end.end() : end.end() + 99].lstrip()
        mark = end[0].rstrip("\"'\u201d\u2019)]*")
        inside = (mark == "." and _ABBREVIATION.search(before)) or (cased and after[:1].islower())
        if after and inside and not mark.strip("."):
            continue
        count, start = count + 1, end.end()
    return count + bool(text[start:].strip())


def words(text: str) -> int:
    """The number of runs of letters, digits and underscores: `It's` is two."""
    return len(re.findall(r"\w+", text))


def _compare(count: int, relation: str, limit: int) -> bool:
    if relation not in ("less than", "at least"):
        raise ValueError(f"got relation {relation!r}; expected 'less than' or 'at least'")
    return count < limit if relation == "less than" else count >= limit


def _keywords(text: str, args: Arguments) -> bool:
    return all(re.search(re.escape(word), text, re.IGNORECASE) for word in args["keywords"])


def _frequency(text: str, args: Arguments) -> bool:
    count = len(re.findall(re.escape(args["keyword"].strip()), text, re.IGNORECASE))
    return _compare(count, args["relation"], args["frequency"])


def _forbidden(text: str, args: Arguments) -> bool:
    return not any(re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) for word in args["forbidden_words"])


def _letters(text: str, args: Arguments) -> bool:
    count = text.lower().count(args["letter"].strip().lower())
    return _compare(count, args["let_relation"], args["let_frequency"])


def _language(text: str, args: Arguments) -> bool:
    return is_language(text, args["language"])


def _sentences(text: str, args: Arguments) -> bool:
    return _compare(sentences(text), args["relation"], args["num_sentences"])


def _words(text: str, args: Arguments) -> bool:
    return _compare(words(text), args["relation"], args["num_words"])


def _paragraphs(text: str, args: Arguments) -> bool:
    """Paragraphs stand between lines of ***; an empty one is allowed at both ends only."""
    parts = [part.strip() for part in re.split(r"\s?\*\*\*\s?", text)]
    if not all(parts[1:-1]):
        return False
    return bool(sum(map(bool, parts)) == args["num_paragraphs"])


def _nth_paragraph(text: str, args: Arguments) -> bool:
    """Paragraphs stand between empty lines; the nth starts with a word, quotes and what follows it aside."""
    parts = text.split("\n\n")
    count, nth = sum(bool(part.strip()) for part in parts), args["nth_paragraph"]
    if nth > count or count != args["num_paragraphs"] or not parts[nth - 1].strip():
        return False
    first = parts[nth - 1].split()[0].lstrip("'").lstrip('"')
    return bool(re.split(r"[.,?!'\"]", first)[0].lower() == args["first_word"].lower())


def _placeholders(text: str, args: Arguments) -> bool:
    return bool(len(re.findall(r"\[.*?\]", text)) >= args["num_placeholders"])


def _postscript(text: str, args: Arguments) -> bool:
    marker = args["postscript_marker"].strip()
    patterns = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    return re.search(patterns.get(marker, re.escape(marker.lower())), text.lower()) is not None


def _bullets(text: str, args: Arguments) -> bool:
    stars = re.findall(r"^\s*\*[^*].*$", text, re.MULTILINE)
    dashes = re.findall(r"^\s*-.*$", text, re.MULTILINE)
    return bool(len(stars) + len(dashes) == args["num_bullets"])


def _constrained(text: str, args: Arguments) -> bool:
    return any(f"My answer is {word}." in text for word in ("yes", "no", "maybe"))


def _highlights(text: str, args: Arguments) -> bool:
    single = [part for part in re.findall(r"\*[^\n*]*\*", text) if part.strip("*").strip()]
    double = [part for part in re.findall(r"\*\*[^\n*]*\*\*", text) if part.strip("*").strip()]
    return bool(len(single) + len(double) >= args["num_highlights"])


def _sections(text: str, args: Arguments) -> bool:
    marks = re.findall(rf"\s?{re.escape(args['section_spliter'].strip())}\s?\d+\s?", text)
    return bool(len(marks) >= args["num_sections"])


def _json(text: str, args: Arguments) -> bool:
    text = text.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def _title(text: str, args: Arguments) -> bool:
    return any(title.lstrip("<").rstrip(">").strip() for title in re.findall(r"<<[^\n]+>>", text))


def _two_responses(text: str, args: Arguments) -> bool:
    parts = [part.strip() for part in text.split("******")]
    if not all(parts[1:-1]):
        return False
    full = [part for part in parts if part]
    return len(full) == 2 and full[0] != full[1]


def _repeats_prompt(text: str, args: Arguments) -> bool:
    return text.strip().lower().startswith(args["prompt_to_repeat"].strip().lower())


def _ends(text: str, args: Arguments) -> bool:
    return text.strip().strip('"').lower().endswith(args["end_phrase"].strip().lower())


def _english(text: str) -> bool:
    counts = scripts(text)
    if not counts or counts.most_common(1)[0][0] != "LATIN":
        return False
    return words(text) < 5 or detect(text) == "en"


def _capital(text: str, args: Arguments) -> bool:
    return text.isupper() and _english(text)


def _lowercase(text: str, args: Arguments) -> bool:
    return text.islower() and _english(text)


def _capital_words(text: str, args: Arguments) -> bool:
    count = sum(word.isupper() for word in _CAPITALS.findall(text))
    return _compare(count, args["capital_relation"], args["capital_frequency"])


def _no_comma(text: str, args: Arguments) -> bool:
    return "," not in text


def _quoted(text: str, args: Arguments) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


INSTRUCTIONS: dict[str, tuple[Follows, tuple[str, ...]]] = {
    # id: whether a response follows it, and the arguments that it needs
    "keywords:existence": (_keywords, ("keywords",)),
    "keywords:frequency": (_frequency, ("keyword", "frequency", "relation")),
    "keywords:forbidden_words": (_forbidden, ("forbidden_words",)),
    "keywords:letter_frequency": (_letters, ("letter", "let_frequency", "let_relation")),
    "language:response_language": (_language, ("language",)),
    "length_constraints:number_sentences": (_sentences, ("num_sentences", "relation")),
    "length_constraints:number_paragraphs": (_paragraphs, ("num_paragraphs",)),
    "length_constraints:number_words": (_words, ("num_words", "relation")),
    "length_constraints:nth_paragraph_first_word": (_nth_paragraph, ("num_paragraphs", "nth_paragraph", "first_word")),
    "detectable_content:number_placeholders": (_placeholders, ("num_placeholders",)),
    "detectable_content:postscript": (_postscript, ("postscript_marker",)),
    "detectable_format:number_bullet_lists": (_bullets, ("num_bullets",)),
    "detectable_format:constrained_response": (_constrained, ()),
    "detectable_format:number_highlighted_sections": (_highlights, ("num_highlights",)),
    "detectable_format:multiple_sections": (_sections, ("section_spliter", "num_sections")),
    "detectable_format:json_format": (_json, ()),
    "detectable_format:title": (_title, ()),
    "combination:two_responses": (_two_responses, ()),
    "combination:repeat_prompt": (_repeats_prompt, ("prompt_to_repeat",)),
    "startend:end_checker": (_ends, ("end_phrase",)),
    "startend:quotation": (_quoted, ()),
    "change_case:capital_word_frequency": (_capital_words, ("capital_frequency", "capital_relation")),
    "change_case:english_capital": (_capital, ()),
    "change_case:english_lowercase": (_lowercase, ()),
    "punctuation:no_comma": (_no_comma, ()),
}


def follows(instruction: str, response: str, args: Arguments) -> bool:
    """Whether a response follows one instruction; an empty response follows none.

    Raises ValueError for an id that is not one of the 25, and for an argument that is missing.
    """
    if instruction not in INSTRUCTIONS:
        raise ValueError(f"got instruction {instruction!r}; expected one of {', '.join(INSTRUCTIONS)}")
    check, needed = INSTRUCTIONS[instruction]
    missing = [name for name in needed if args.get(name) is None]
    if missing:
        raise ValueError(f"instruction {instruction} has no {', '.join(missing)} in its kwargs")
    return bool(response.strip()) and check(response, args)


def variants(response: str) -> tuple[str, ...]:
    """The eight forms of a response of which one must follow an instruction in loose grading: with and without its
    first line, its last line and all asterisks."""
    lines = response.split("\n")
    forms = [response, "\n".join(lines[1:]).strip(), "\n".join(lines[:-1]).strip(), "\n".join(lines[1:-1]).strip()]
    return (*forms, *(form.replace("*", "") for form in forms))
