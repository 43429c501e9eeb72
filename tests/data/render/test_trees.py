"""Conversation trees: reading nested and flat ones, their threads, their rankings, and what is refused."""

from __future__ import annotations

import doctest
import json
from pathlib import Path
from typing import Any

import pytest

from espalier.data.files.json_rows import Row
from espalier.data.formats import convert
from espalier.data.formats.nodes import read_nodes
from espalier.data.read import Source, read
from espalier.data.render import trees
from espalier.data.render.trees import path, rank_error, rankings, threads
from espalier.errors import RowError
from espalier.types import Message, Origin, Ranking, Tree, TreeNode

HERE = Origin("file", 7)


def node(text: str, *replies: dict[str, Any], rank: int | None = None, **more: Any) -> dict[str, Any]:
    """A nested message whose text begins with its role: u or a."""
    role = {"u": "prompter", "a": "assistant"}[text[0]]
    return {"text": text, "role": role, "rank": rank, "replies": list(replies), **more}


def tree(root: dict[str, Any]) -> Tree:
    (made,) = convert("tree", {"prompt": root}, HERE)
    assert isinstance(made, Tree)
    return made


def texts(tree: Tree, indices: list[int]) -> str:
    return " ".join(tree.nodes[i].message.content for i in indices)


BRANCHING = node(
    "u0",
    node("a1", node("u2", node("a3", rank=1), node("a4", node("u5"), rank=0)), rank=1),
    node("a6", node("u7"), node("u8", node("a9")), rank=0),
    node("a10", rank=None),
)


def test_worked_examples() -> None:
    failed, tried = doctest.testmod(trees)
    assert failed == 0 and tried >= 9


def test_nested_messages_stand_in_preorder() -> None:
    made = tree(BRANCHING)
    assert texts(made, list(range(11))) == "u0 a1 u2 a3 a4 u5 a6 u7 u8 a9 a10"
    assert [n.parent for n in made.nodes] == [-1, 0, 1, 2, 2, 4, 0, 6, 6, 8, 0]
    assert [n.rank for n in made.nodes] == [None, 1, None, 1, 0, None, 0, None, None, None, None]
    assert made.origin == HERE and made.nodes[1].message == Message("assistant", "a1")
    (bare,) = convert("tree", BRANCHING, HERE)
    assert bare == made  # a row may be the root itself


def test_threads_end_on_the_last_answer() -> None:
    made = tree(BRANCHING)
    assert [texts(made, t) for t in threads(made)] == ["u0 a1 u2 a3", "u0 a1 u2 a4", "u0 a6 u8 a9", "u0 a10"]
    assert path(made, 9) == [0, 6, 8, 9] and path(made, -1) == []


def test_branches_that_end_in_questions_after_one_answer_are_one_thread() -> None:
    made = tree(node("u0", node("a1", node("u2"), node("u3"))))
    assert [texts(made, t) for t in threads(made)] == ["u0 a1"]
    assert threads(Tree((TreeNode(Message("user", "?"), -1),))) == []


def test_every_ranked_group_shares_the_thread_above_it() -> None:
    first, second = rankings(tree(BRANCHING))
    assert isinstance(first, Ranking) and isinstance(second, Ranking)
    assert [m.content for m in first.prompt] == ["u0"] and first.origin == HERE
    assert [(r.message.content, r.rank) for r in first.responses] == [("a1", 1), ("a6", 0), ("a10", None)]
    assert [m.content for m in second.prompt] == ["u0", "a1", "u2"]
    assert [(r.message.content, r.rank) for r in second.responses] == [("a3", 1), ("a4", 0)]


@pytest.mark.parametrize(
    ("root", "reason"),
    [
        (node("u0", node("a1", rank=0), node("a2")), "siblings without ranks; .*1 ranked of 2"),
        (node("u0", node("a1"), node("a2")), "siblings without ranks; .*0 ranked of 2"),
        (node("u0", node("a1", rank=0), node("a2", rank=2)), "ranks with gaps; .*got 0, 2; expected rank 1 after 1"),
        (node("u0", node("a1", rank=0), node("a1", rank=1)), "identical responses"),
        (node("u0", node("a1", node("u2", node("a3")))), "no siblings"),
        (node("u0", node("a1", node("a2", rank=0), node("a3", rank=1))), "nothing to answer; .*an assistant message"),
    ],
)
def test_groups_that_say_nothing_are_refused(root: dict[str, Any], reason: str) -> None:
    (found,) = rankings(tree(root))
    assert isinstance(found, RowError)
    with pytest.raises(RowError, match=reason):
        raise found


@pytest.mark.parametrize(
    ("ranks", "fits"),
    [
        ([0, 1, 2], True),
        ([0, 0, 1], True),
        ([0, 0, 2], True),
        ([1, 2], False),
        ([0, 0, 3], False),
        ([0, 2, 2], False),
        ([0, 2, None], True),
        ([0, 3, None], False),
        ([None, None], True),
    ],
)
def test_gaps_in_ranks(ranks: list[int | None], fits: bool) -> None:
    assert (rank_error(ranks, "") is None) == fits


@pytest.mark.parametrize(
    ("root", "reason"),
    [
        (node("u0", node("a1", node("u2", node("a  ")))) | {"role": "bot"}, "unknown role; field prompt.role"),
        (node("u0", {"text": " ", "role": "assistant"}), r"empty assistant turn; field prompt.replies\[0\].text"),
        (node("u0", {"text": "s", "role": "system"}), "system turn not first"),
        (node("u0", node("a1") | {"rank": 0.5}), r"wrong type; field prompt.replies\[0\].rank"),
        (node("u0", node("a1") | {"rank": True}), "wrong type"),
        (node("u0") | {"replies": "none"}, "wrong type; field prompt.replies"),
        (node("u0", "a1"), "wrong type"),  # type: ignore[arg-type]
        (node("u0", node("u1")), "no assistant turn"),
    ],
)
def test_bad_messages_in_a_tree(root: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        tree(root)


def test_deleted_messages_go_with_all_below_them() -> None:
    made = tree(node("u0", node("a1", node("u2", node("a3")), deleted=True), node("a4", deleted=False)))
    assert texts(made, [0, 1]) == "u0 a4" and len(made.nodes) == 2


def test_a_tree_of_a_thousand_turns_is_read() -> None:
    root = node("a999")
    for i in range(998, -1, -1):
        root = node(("a" if i % 2 else "u") + str(i), root)
    assert len(tree(root).nodes) == 1000


# ---------------------------------------------------------------------------------------------------------- flat rows


def flat(*rows: tuple[str, str | None, str]) -> list[Row]:
    """Rows from line 1 on: id and parent, and a text that begins with the role."""
    made = [{"message_id": name, "parent_id": parent, **node(text)} for name, parent, text in rows]
    return [Row(line, row) for line, row in enumerate(made, 1)]


def nodes(rows: list[Row]) -> tuple[list[Tree], list[str]]:
    found = list(read_nodes(rows, "f.json", "f"))
    errors = [str(e).split(";")[0] for e in found if isinstance(e, RowError)]
    return [e for e in found if isinstance(e, Tree)], errors


def test_flat_rows_become_trees_in_any_order() -> None:
    rows = flat(
        ("c", "b", "u3"), ("x", None, "u9"), ("b", "a", "a2"), ("a", None, "u1"), ("d", "a", "a4"), ("y", "x", "a8")
    )
    (first, second), errors = nodes(rows)
    assert errors == [] and [str(first.origin), str(second.origin)] == ["f:2", "f:4"]
    assert texts(first, [0, 1]) == "u9 a8"
    assert texts(second, [0, 1, 2, 3]) == "u1 a2 u3 a4" and [n.parent for n in second.nodes] == [-1, 0, 1, 0]


def test_flat_rows_that_belong_nowhere_are_refused_with_their_lines() -> None:
    rows = flat(
        ("a", None, "u1"), ("b", "a", "a2"), ("a", None, "u3"), ("c", "gone", "u4"), ("d", "c", "a5"),
        ("e", "f", "u6"), ("f", "e", "a7"), ("g", None, "u8"),
    )  # fmt: skip
    rows.append(Row(9, [1]))
    made, errors = nodes(rows)
    assert [texts(t, list(range(len(t.nodes)))) for t in made] == ["u1 a2"]
    assert errors == [
        "f.json:3: duplicate id",
        "f.json:9: wrong type",
        "f.json:8: no assistant turn",
        "f.json:4: parent not found",
        "f.json:5: parent not found",
        "f.json:6: parent not found",  # 6 and 7 are each other's parent
        "f.json:7: parent not found",
    ]


def test_flat_rows_are_recognised_and_read_as_rankings(tmp_path: Path) -> None:
    file = tmp_path / "flat.jsonl"
    rows = [row.value for row in flat(*(("r", None, "u0"), ("a", "r", "a1"), ("b", "r", "a2")))]
    for row in rows:
        del row["replies"]
    rows[1]["rank"], rows[2]["rank"] = 1, 0
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (whole,) = read(Source(str(file)))
    (ranked,) = read(Source(str(file), consumes="ranking"))
    assert isinstance(whole, Tree) and len(whole.nodes) == 3
    assert isinstance(ranked, Ranking) and [r.rank for r in ranked.responses] == [1, 0]
    (refused,) = read(Source(str(file), consumes="steps"))
    assert isinstance(refused, RowError) and str(refused).startswith(f"{file}:1: no steps; got a conversation tree")
