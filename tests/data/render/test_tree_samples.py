"""Trees as chat: every message is computed once and trained once."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.data.render.renderer import Renderer
from espalier.errors import RowError
from espalier.forest.pack import pack, totals
from espalier.models.policy import Policy
from espalier.types import Chat, Tree, TreeNode
from tiny import tiny_model, tiny_tokenizer
from toys import FORGETFUL, assistant, letters, merging, show, user

CHATML = letters(template="chatml")
R = Renderer(CHATML)


def tree(*nodes):
    """Nodes as (text, parent); roles alternate from the root, which is a user's."""
    made, depth = [], []
    for text, parent in nodes:
        depth.append(depth[parent] + 1 if parent >= 0 else 0)
        made.append(TreeNode((assistant if depth[-1] % 2 else user)(text), parent))
    return Tree(tuple(made))


#      Q - A - R - B        preorder; two answers to Q, two to R, and a question that nobody answers
#                \ C
#            \ S
#        \ D
BRANCHING = tree(("Q", -1), ("A", 0), ("R", 1), ("B", 2), ("C", 2), ("S", 1), ("D", 0))


def test_a_message_is_trained_in_the_first_thread_it_is_in():
    head, more = "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n", "\n<|im_start|>user\nR<|im_end|>\n"
    again = "<|im_start|>assistant\n"
    group = R.render(BRANCHING, key=3)
    assert [show(r, CHATML) for r in group] == [
        f"{head}⟦A<|im_end|>⟧{more}{again}⟦B<|im_end|>⟧",
        f"{head}A<|im_end|>{more}{again}⟦C<|im_end|>⟧",
        f"{head}⟦D<|im_end|>⟧",
    ]
    assert {(r.sample.group, r.sample.key) for r in group} == {(3, 3)} and group.kind == "tree"


def test_train_on_last_trains_the_ends_of_threads():
    group = Renderer(CHATML, train_on="last").render(BRANCHING)
    trained = [CHATML.decode([t for t, m in zip(r.sample.tokens, r.sample.mask, strict=True) if m]) for r in group]
    assert trained == ["B<|im_end|>", "C<|im_end|>", "D<|im_end|>"]


def test_train_on_all_trains_each_message_with_its_markup_once():
    every = Renderer(CHATML, train_on="all")
    head, own = "<|im_start|>user\nQ<|im_end|>\n", "<|im_start|>assistant\n"
    shared = f"{head}{own}A<|im_end|>\n<|im_start|>user\nR<|im_end|>\n"
    assert [show(r, CHATML) for r in every.render(BRANCHING)] == [
        f"⟦{shared}{own}B<|im_end|>\n⟧",
        f"{shared}⟦{own}C<|im_end|>\n⟧",
        f"{head}⟦{own}D<|im_end|>\n⟧",
    ]
    made = tree(("Q", -1), ("A", 0), ("R", 1), ("B", 2), ("S", 1), ("C", 4))
    thoughts = [replace(n, message=replace(n.message, reasoning="x")) if i % 2 else n for i, n in enumerate(made.nodes)]
    with pytest.raises(RowError, match="template rewrites a message of several threads"):
        Renderer(letters(template=FORGETFUL), train_on="all").render(Tree(tuple(thoughts)))


TREES = st.lists(st.tuples(st.text("aZ 1\n.", min_size=1, max_size=5), st.integers(0, 100)), min_size=1, max_size=9)


def grown(parts):
    """A tree in preorder: each node hangs on the last one, or on an ancestor of it."""
    nodes, path = [("Hi", -1)], [0]
    for text, pick in parts:
        del path[1 + pick % len(path) :]
        path.append(len(nodes))
        nodes.append((f"x{text}", path[-2]))
    return tree(*nodes)


@settings(max_examples=150, deadline=None)
@given(TREES, st.sampled_from([R, Renderer(letters(template=FORGETFUL)), Renderer(merging())]))
def test_every_assistant_message_is_trained_once(parts, renderer):
    made = grown(parts)
    meant = sorted(n.message.content for n in made.nodes if n.message.role == "assistant")
    if not meant:
        with pytest.raises(RowError):
            renderer.render(made)
        return
    found = []
    for r in renderer.render(made):
        spans = [s for s in r.spans if s.trained]
        assert sum(s.end - s.start for s in spans) == sum(r.sample.mask)
        found += [
            renderer.chats.codec.decode(r.sample.tokens[s.start : s.end]).removesuffix("<|im_end|>") for s in spans
        ]
    assert sorted(found) == meant


@settings(max_examples=100, deadline=None)
@given(TREES)
def test_threads_share_all_tokens_of_the_messages_they_share(parts):
    """Distinct prefixes are as many as the tree's own characters: nothing is laid down for a message twice."""
    made = grown(parts)
    if not any(n.message.role == "assistant" for n in made.nodes):
        return
    group = R.render(made)
    prefixes = {tuple(r.sample.tokens[: i + 1]) for r in group for i in range(len(r.sample))}
    marks = Counter(p[-1] for p in prefixes)
    trained = sum(sum(r.sample.mask) for r in group)
    ends = marks[CHATML.convert_tokens_to_ids("<|im_end|>")]
    texts = {path_texts(made, i) for i in range(len(made.nodes))}
    assert ends <= len(texts)
    own = [n.message for n in made.nodes if n.message.role == "assistant"]
    assert trained == sum(len(m.content) + 1 for m in own)


def path_texts(made, i):
    found = []
    while i >= 0:
        found.append(made.nodes[i].message.content)
        i = made.nodes[i].parent
    return tuple(reversed(found))


def test_the_forest_lays_every_message_down_once():
    long = "a question that is long enough to be shared"
    made = tree((long, -1), (f"{long} A", 0), (f"{long} R", 1), (f"{long} B", 2), (f"{long[::-1]} C", 2), ("D", 0))
    tokenizer = tiny_tokenizer()
    group = [r.sample for r in Renderer(tokenizer).render(made)]
    batch = pack([group], totals([group]))
    text = tokenizer.decode(batch.inputs_N.tolist())
    for node in made.nodes[1:5]:
        assert text.count(node.message.content) == 1
    assert text.count(f"user\n{long}<") == 1
    assert totals([group])["tokens", "main"] == sum(
        len(n.message.content) + 1 for n in made.nodes if n.message.role == "assistant"
    )


def test_the_gradient_is_that_of_the_messages_one_by_one():
    long = "the question that all of them share"
    made = tree((long, -1), ("An answer", 0), (long, 1), ("Both of", 2), ("See", 2), ("Done", 0))
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama").double()
    policy = Policy(model, "forest")

    def gradients(groups):
        model.zero_grad()
        for g in groups:
            batch = pack([g], totals([g]))
            logprobs = policy(batch)["logprobs"][batch.score]
            (-(logprobs * batch.weights).sum()).backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    forest = gradients([[r.sample for r in Renderer(tokenizer).render(made)]])
    alone = []
    for i, node in enumerate(made.nodes):
        if node.message.role == "assistant":
            path = [i]
            while (parent := made.nodes[path[0]].parent) >= 0:
                path.insert(0, parent)
            chat = Chat(tuple(made.nodes[j].message for j in path))
            alone += [[r.sample] for r in Renderer(tokenizer, train_on="last").render(chat)]
    assert len(alone) == 4
    for a, b in zip(forest, gradients(alone), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)


def test_threads_behind_the_limit_are_left_out_and_counted():
    (first,) = Renderer(CHATML).render(tree(("Q", -1), ("D", 0)))
    group = Renderer(CHATML, max_length=len(first.sample)).render(BRANCHING)
    assert [r.sample.stop for r in group] == ["length", "stop"] and group.dropped == {"emptied by truncation": 1}
    with pytest.raises(RowError, match="emptied by truncation"):
        Renderer(CHATML, max_length=5).render(BRANCHING)
    with pytest.raises(RowError, match="nothing to train"):
        R.render(tree(("Q", -1)))
