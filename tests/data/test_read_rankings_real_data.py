"""Judged files that others wrote: what is read of each, what is refused and why, counted by hand."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from espalier.config.sections import PreferenceConfig
from espalier.data.read import Source, read
from espalier.data.render.rankings import comparisons, levels
from espalier.data.render.trees import threads
from espalier.errors import RowError
from espalier.types import Chat, Consumes, Ranking, Tree

pytestmark = pytest.mark.real_data


def split(path: Path, consumes: Consumes = "ranking") -> tuple[list[Any], list[RowError]]:
    found = list(read(Source(str(path), consumes=consumes)))
    return [e for e in found if not isinstance(e, RowError)], [e for e in found if isinstance(e, RowError)]


def compared(ranking: Ranking) -> tuple[int, int]:
    """How many strict preferences and ties a ranking has."""
    found = comparisons(levels(ranking, {}), PreferenceConfig(), key=0, seed=0)
    return sum(map(len, found.beats)), sum(map(len, found.ties))


def test_pairs_of_hh(shared: Path) -> None:
    pairs, errors = split(shared / "data/pref/hh_harmless_test.jsonl.gz")
    assert len(pairs) == 1578 - 9
    lines = {(e.reason, int(e.where.rpartition(":")[2])) for e in errors}
    assert lines == {
        *(("empty assistant turn", line) for line in (359, 623, 748)),
        *(("roles do not alternate", line) for line in (453, 889, 1274)),
        *(("prompts differ", line) for line in (1161, 1337, 1390)),
    }
    first = pairs[0]
    assert [m.role for m in first.prompt] == ["user", "assistant", "user", "assistant", "user"]
    assert first.prompt[0].content == "How much alcohol can I drink per day?"
    assert first.responses[0].message.content.startswith("Sounds like alcohol is something you use to calm down")
    assert first.responses[1].message.content.startswith("I’m glad that you’re enjoying your alcohol intake.")  # noqa: RUF001
    assert {compared(pair) for pair in pairs} == {(1, 0)}


EN = {"u": 114, "su": 80, "uauau": 57, "uauauau": 46, "uauauauau": 1, "uauauauauauau": 1, "uau": 1}


@pytest.mark.parametrize(
    ("name", "rows", "roles"),
    [
        ("llamafactory_dpo_en_demo.json.gz", 300, EN),
        ("llamafactory_dpo_zh_demo.json.gz", 300, {"u": 236, "su": 64}),
        ("llamafactory_v1_dpo_demo.jsonl.gz", 10, {"su": 10}),
        ("prometheus_hhh_alignment.json.gz", 221, {"u": 221}),
    ],
)
def test_pairs(shared: Path, name: str, rows: int, roles: dict[str, int]) -> None:
    pairs, errors = split(shared / "data/pref" / name)
    assert (len(pairs), errors) == (rows, [])
    assert {tuple(r.rank for r in pair.responses) for pair in pairs} == {(0, 1)}
    assert Counter("".join(m.role[0] for m in pair.prompt) for pair in pairs) == roles
    chats, errors = split(shared / "data/pref" / name, "chat")
    assert errors == [] and all(isinstance(chat, Chat) for chat in chats)
    assert all(c.messages == (*p.prompt, p.responses[0].message) for c, p in zip(chats, pairs, strict=True))


def test_labels_of_kto(shared: Path) -> None:
    path = shared / "data/pref/llamafactory_kto_en_demo.json.gz"
    found, errors = split(path)
    assert (len(found), errors) == (300, []) and {len(r.responses) for r in found} == {1}
    assert Counter(r.responses[0].good for r in found) == {True: 150, False: 150}
    assert found[0].prompt[0].content.startswith("The Federal Trade Commission is going after spyware")
    chats, errors = split(path, "chat")  # bad answers are not trained on
    assert len(chats) == 150 and not errors


def test_grades_of_rubrics(shared: Path) -> None:
    found, errors = split(shared / "data/pref/prometheus_vicuna_eval.json.gz")
    assert (len(found), errors) == (320, [])
    assert Counter(r.responses[0].author for r in found) == dict.fromkeys(
        ("vicuna", "chat_gpt", "wizard", "llama-2-chat"), 80
    )
    means = Counter(r.responses[0].scores for r in found)
    assert (means[(5.0,)], means[(4.0,)], means[(1.0,)]) == (
        71,
        106,
        3,
    )  # three equal grades; no others have such means
    assert found[0].prompt[0].content == "How can I improve my time management skills?"
    assert found[0].responses[0].message.content.startswith("Improving your time management skills can help you to be")
    assert found[0].responses[0].message.content.endswith("you can improve your time management skills and become more "
                                                          "productive and efficient.")  # fmt: skip


def test_reviews_of_vicuna(shared: Path) -> None:
    lists, errors = split(shared / "data/pref/fastchat_vicuna80")
    assert [str(e.origin) for e in lists] == [f"fastchat_vicuna80:{line}" for line in range(1, 81)]
    answers = (
        "alpaca-13b:v1",
        "bard:20230327",
        "gpt-3.5-turbo:20230327",
        "llama-13b:v1",
        "vicuna-13b:20230322-new-hp-fp16",
    )
    assert tuple(r.author for r in lists[0].responses) == (*answers, "vicuna-13b:20230322-clean-lang")
    assert levels(lists[0], {}) == [8.0, 9.0, 9.0, 9.0, (9 + 3 * 8.5) / 4, (9 + 8.5 + 8.5 + 8) / 4]
    assert compared(lists[0]) == (12, 3)  # three share the first place
    assert Counter(len(e.responses) for e in lists) == {6: 79, 5: 1} and len(lists[73].responses) == 5
    # The one empty answer, and the three reviews that give it 0 of 1 to 10.
    assert {e.where.rpartition("/")[2].partition("_")[0] + e.where[-3:] + " " + e.reason for e in errors} == {
        "answer:74 empty assistant turn",
        "review:74 review of an unusable answer",
    }
    assert len(errors) == 4


def test_eight_judged_solutions(shared: Path) -> None:
    found, errors = split(shared / "data/process/qwen_math_cot_100x8_rm.jsonl.gz")
    assert (len(found), errors) == (100, []) and {len(r.responses) for r in found} == {8}
    scored = [levels(r, {}) for r in found]
    best = [max(range(8), key=lambda i: own[i] or 0.0) for own in scored]
    assert sum(r.responses[0].good is True for r in found) == 90
    assert sum(r.responses[i].good is True for r, i in zip(found, best, strict=True)) == 94
    assert sum(any(one.good for one in r.responses) for r in found) == 96
    assert scored[0] == [3.546875, 3.515625, 3.46875, 3.46875, 3.265625, 3.328125, 3.5, 3.4375]
    assert [m.role for m in found[0].prompt] == ["system", "user"]


@pytest.mark.parametrize("name", ["tree", "message"])
def test_trees_of_open_assistant(shared: Path, name: str) -> None:
    path = shared / f"data/trees/oasst_en_{name}.jsonl.gz"
    trees, errors = split(path, "chat")
    assert (len(trees), errors, sum(len(tree.nodes) for tree in trees)) == (65, [], 722)
    # 160 messages have several replies. 140 are a user's: 137 groups are ranked throughout, 1 but for one answer, 2 not
    # at all. 20 are the assistant's, and what users reply is never ranked.
    ranked, errors = split(path)
    assert len(ranked) == 138 and len(errors) == 2
    assert {str(e).partition("; field")[0] for e in errors} == {f"{path}:45: siblings without ranks"}
    partial = [r for r in ranked if any(one.rank is None for one in r.responses)]
    assert [[one.rank for one in r.responses] for r in partial] == [[0, 1, 2, None]]
    sizes = {2: 41, 3: 75, 4: 14, 5: 3, 6: 3, 8: 1, 9: 1}
    assert Counter(len(r.responses) for r in ranked) == sizes
    strict = sum(count * size * (size - 1) // 2 for size, count in sizes.items()) - 3  # the unranked one is in no pair
    assert sum(compared(r)[0] for r in ranked) == strict and sum(compared(r)[1] for r in ranked) == 0
    assert all(r.prompt[-1].role == "user" and len(r.prompt) % 2 for r in ranked)


def test_every_message_above_an_answer_is_in_a_thread(shared: Path) -> None:
    trees, _ = split(shared / "data/trees/oasst_en_tree.jsonl.gz", "chat")
    total = 0
    for tree in trees:
        found = threads(tree)
        above = {i for i, node in enumerate(tree.nodes) if node.message.role == "assistant"}
        for i in reversed(range(len(tree.nodes))):
            if i in above:
                above.add(tree.nodes[i].parent)
        assert {i for thread in found for i in thread} == above - {-1}
        assert all(tree.nodes[thread[-1]].message.role == "assistant" and thread[0] == 0 for thread in found)
        total += len(found)
    assert total == 348  # answers that no other answer follows


def test_a_flat_list_is_rebuilt_into_trees(shared: Path) -> None:
    path = shared / "data/trees/oasst_realistic_seed.json.gz"
    trees, errors = split(path, "chat")
    assert (len(trees), errors, sum(len(tree.nodes) for tree in trees)) == (74, [], 444)
    assert all(isinstance(tree, Tree) for tree in trees) and sum(len(threads(tree)) for tree in trees) == 158
    first = trees[0]
    assert [n.parent for n in first.nodes] == [-1, 0, 1, 2, 2] and first.origin.line == 2
    assert first.nodes[3].message.content.startswith("A horseshoe is usually made out of metal")
    ranked, errors = split(path)
    assert ranked == [] and Counter(e.reason for e in errors) == {"siblings without ranks": 77}
