"""Under which names data sets keep a field: names of one group stand for the same thing."""

from __future__ import annotations

from collections.abc import Sequence

GROUPS: dict[str, tuple[str, ...]] = {
    "messages": ("messages", "conversations", "conversation"),
    "prompt": ("prompt", "question", "query", "instruction", "problem"),
    "answer": (
        *("response", "completion", "answer", "output", "solution"),
        *("attempt", "generated_solution", "target", "targets"),
    ),
    "text": ("text", "content", "paragraphs"),
    "chosen": ("chosen", "chosen_messages", "chosen_response", "preferred"),
    "rejected": ("rejected", "rejected_messages", "rejected_response", "dispreferred"),
    "responses": ("responses", "answers", "completions", "candidates", "solutions"),
    "steps": ("steps", "completions"),
    "labels": ("labels", "ratings", "label", "kto_tag", "mistake_index"),
    "scores": ("scores", "score", "rating", "reward", "rewards"),
    "ranks": ("ranks", "rank"),
    "system": (
        *("system", "system_prompt", "custom_system_prompt", "system_message", "meta_instruction"),
        *("system_instruction", "system_instructions", "sys_prompt"),
    ),
}
"""Groups of names, the first of which is the one that proposals use."""
INSTEAD = {
    "answer": ("messages", "text", "chosen", "rejected"),
    "messages": ("text",),
    "prompt": ("text",),
    "chosen": ("answer",),
    "rejected": ("answer",),
    "steps": ("messages", "responses"),
    "responses": ("answer", "chosen", "rejected"),
}
"""Groups that a mapped field takes the place of: a row with a mapped answer is not read by its messages."""


def groups_of(name: str) -> list[str]:
    """The groups that a name belongs to."""
    return [group for group, names in GROUPS.items() if name in names]


def same_field(names: Sequence[str]) -> frozenset[str]:
    """Further names of the fields that these names stand for."""
    groups = {group for name in names for group in groups_of(name)}
    return frozenset(other for group in groups for other in GROUPS[group]) - set(names)


def replaced(names: Sequence[str]) -> frozenset[str]:
    """The columns that give way to mapped fields of these names."""
    mapped = {group for name in names for group in groups_of(name)}
    away = set(same_field(names))
    for group in mapped:
        for other in INSTEAD.get(group, ()):
            if other not in mapped:
                away.update(GROUPS[other])
    return frozenset(away - set(names))


METADATA = frozenset(
    (
        *("id", "ids", "uuid", "guid", "key", "hash", "index", "idx", "number", "name", "names", "url", "urls", "link"),
        *("source", "sources", "origin", "dataset", "subset", "split", "dump", "license", "version", "path", "file"),
        *("date", "time", "timestamp", "at", "year", "lang", "language", "title", "author", "authors", "by", "user"),
        *("domain", "category", "categories", "topic", "topics", "type", "kind", "tag", "tags", "meta", "metadata"),
        *(
            "level",
            "difficulty",
            "model",
            "generator",
            "score",
            "label",
            "labels",
            "count",
            "size",
            "length",
            "hostname",
        ),
        *("copyright", "publisher", "worker", "annotator", "status", "filename", "extension", "headers", "stats"),
    )
)
"""Words that a name of a column ends in if it says something about a row, and is nothing to learn from."""


def is_metadata(name: str) -> bool:
    """Whether a column of this name is about a row, such as `created_at` or `source`.

    >>> is_metadata("page-title"), is_metadata("source_text")
    (True, False)
    """
    return name.lower().replace("-", "_").replace(" ", "_").rpartition("_")[2] in METADATA
