"""Rendering: what is trained, where samples are cut, and that training sees the tokens that sampling sees."""

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.data.render.control import Codec
from espalier.data.render.renderer import Renderer
from espalier.errors import ConfigError, ModelError, RowError
from espalier.types import Chat, Completion, Text
from tiny import tiny_tokenizer
from toys import (
    FORGETFUL,
    SWITCHED,
    TWO_TURNS,
    assistant,
    letters,
    merging,
    minimind,
    show,
    spaced,
    stories,
    system,
    tool,
    user,
    words,
)

CHATML = letters(template="chatml")
R = Renderer(CHATML)


def shown(renderer, example, tokenizer=CHATML):
    return [show(r, tokenizer) for r in renderer.render(example)]


def reason(renderer, example):
    with pytest.raises(RowError) as caught:
        renderer.render(example)
    return caught.value.reason


# ------------------------------------------------------------------------------------------------------ what is trained


def test_train_on_chooses_turns():
    head, middle = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "\n<|im_start|>user\nOk<|im_end|>\n"
    chat = Chat((user("Hi"), assistant("Yo"), user("Ok"), assistant("By")))
    last = "<|im_start|>assistant\n"
    assert shown(R, chat) == [f"{head}⟦Yo<|im_end|>⟧{middle}{last}⟦By<|im_end|>⟧"]
    assert shown(Renderer(CHATML, train_on="last"), chat) == [f"{head}Yo<|im_end|>{middle}{last}⟦By<|im_end|>⟧"]
    every = Renderer(CHATML, train_on="all")
    assert shown(every, chat) == [f"⟦{head}Yo<|im_end|>{middle}{last}By<|im_end|>\n⟧"]


def test_a_weight_goes_before_train_on():
    chat = Chat((user("Q"), assistant("A", weight=0), user("R"), assistant("B", weight=0.5), user("S"), assistant("C")))
    (r,) = R.render(chat)
    columns = r.sample.tokens, r.sample.weights, r.sample.mask
    trained = [(CHATML.decode([t]), w) for t, w, m in zip(*columns, strict=True) if m]
    assert trained == [("B", 0.5), ("<|im_end|>", 0.5), ("C", 1.0), ("<|im_end|>", 1.0)]
    assert all(w == 0 for w, m in zip(r.sample.weights, r.sample.mask, strict=True) if not m)
    (r,) = Renderer(CHATML, train_on="last").render(chat)
    assert [w for w in r.sample.weights if w] == [0.5, 0.5, 1.0, 1.0]


def test_a_weighted_question_is_trained_with_its_markup():
    chat = Chat((system("S"), user("Q", weight=2.0), assistant("A")))
    (r,) = R.render(chat)
    question = "<|im_start|>user\nQ<|im_end|>\n"
    assert show(r, CHATML) == f"<|im_start|>system\nS<|im_end|>\n⟦{question}⟧<|im_start|>assistant\n⟦A<|im_end|>⟧"
    assert [w for w in r.sample.weights if w] == [2.0] * 9 + [1.0] * 2  # im_start u s e r \n Q im_end \n; A im_end
    every = Renderer(CHATML, train_on="all")
    chat = Chat((user("Q", weight=0), assistant("A", weight=0.5)))
    (r,) = every.render(chat)
    assert show(r, CHATML) == ("<|im_start|>user\nQ<|im_end|>\n⟦<|im_start|>assistant\nA<|im_end|>\n⟧")
    assert r.sample.weights[-3:] == [0.5, 0.5, 1.0]


def test_a_sample_ends_with_its_last_trained_turn():
    chat = Chat((user("Q"), assistant("A"), user("R"), assistant("B", weight=0), user("S")))
    assert shown(R, chat) == ["<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n⟦A<|im_end|>⟧"]


def test_nothing_to_train_is_refused():
    assert reason(R, Chat((user("Q"),))) == "nothing to train"
    assert reason(R, Chat((user("Q"), assistant("A", weight=0)))) == "nothing to train"
    assert reason(R, Text("")) == "nothing to train"
    assert reason(R, Completion("a", "")) == "nothing to train"
    assert reason(R, Chat((user("Q"), assistant("A", weight=-1.0)))) == "impossible weight"


@pytest.mark.parametrize("bos", [False, True])
def test_text_and_completions(bos):
    tokenizer = letters(template="chatml", bos=bos)
    r, s = Renderer(tokenizer), "<s>" * bos
    assert r.bos_id == (1 if bos else None)
    assert shown(r, Text("ab"), tokenizer) == [f"⟦{s}ab</s>⟧"]
    assert shown(r, Completion("ab", " c"), tokenizer) == [f"{s}ab⟦ c</s>⟧"]
    assert shown(r, Completion("", "c"), tokenizer) == [f"{s}⟦c</s>⟧"]
    assert shown(r, Text("</s><s>"), tokenizer) == [f"⟦{s}</s><s></s>⟧"]  # the first two are characters
    assert [r.render(Text("</s><s>"))[0].sample.tokens.count(i) for i in (1, 2)] == [int(bos), 1]


# ------------------------------------------------------------------------------------------------- training == sampling


def test_tokens_are_those_of_a_sampler_and_its_response():
    (r,) = R.render(TWO_TURNS)
    tokens, mask = r.sample.tokens, r.sample.mask
    ends = [i for i, t in enumerate(tokens) if t == R.stop_ids[0] and mask[i]]
    starts = [i for i in range(1, len(mask)) if mask[i] and not mask[i - 1]]
    for turn, start, end in zip((2, 4), starts, ends, strict=True):
        assert tokens[:start] == R.prompt(TWO_TURNS.messages[:turn])
        assert CHATML.decode(tokens[start:end]) == TWO_TURNS.messages[turn].content
    assert R.stop_ids == (CHATML.convert_tokens_to_ids("<|im_end|>"), CHATML.eos_token_id)


@pytest.mark.real_data
@pytest.mark.parametrize("make", [minimind, stories])
def test_prompts_are_what_transformers_would_encode(make, shared):
    tokenizer = make(shared)
    renderer = Renderer(tokenizer)
    for messages in (TWO_TURNS.messages[:2], TWO_TURNS.messages[:4], (user(" Naïve  question\n\n"),)):
        plain = [{"role": m.role, "content": m.content} for m in messages]
        assert (
            renderer.prompt(messages) == tokenizer.apply_chat_template(plain, add_generation_prompt=True)["input_ids"]
        )


def test_a_response_that_merges_with_its_prompt_stays_apart():
    tokenizer = merging()
    renderer = Renderer(tokenizer)
    chat = Chat((user("Q"), assistant("\nA"), user("R"), assistant("B")))  # "assistant\n" + "\nA" would merge
    group = renderer.render(chat)
    assert len(group) == 2  # as text, the second prompt holds other tokens than were trained in the first turn
    for r, turn in zip(group, (1, 3), strict=True):
        start = r.sample.mask.index(True)
        assert r.sample.tokens[:start] == renderer.prompt(chat.messages[:turn])
        response = chat.messages[turn].content + "<|im_end|>"
        assert r.sample.tokens[start:] == tokenizer.encode(response, add_special_tokens=False)
        assert all(r.sample.mask[start:])


@pytest.mark.parametrize("scheme", ["first", "always"])
def test_spaces_stay_where_a_vocabulary_marks_words_by_them(scheme):
    tokenizer = spaced(scheme)
    assert Codec(tokenizer).lossless == (scheme == "first")  # then the mask is checked to the letter
    turns = "{% if m.role == 'user' %}{{ '[' + m.content + ']' }}{% else %}{{ ' ' + m.content + eos_token }}{% endif %}"
    tokenizer.chat_template = "{% for m in messages %}" + turns + "{% endfor %}"
    (r,) = Renderer(tokenizer).render(Chat((user("a b"), assistant("c d"), user("e"), assistant("f"))))
    pieces = tokenizer.convert_ids_to_tokens(r.sample.tokens)
    second = "▁[e]" if scheme == "always" else "[e]"  # a section behind an added token
    assert "".join(pieces) == f"▁[a▁b]▁c▁d</s>{second}▁f</s>"
    assert [p for p, m in zip(pieces, r.sample.mask, strict=True) if m] == [*"▁c▁d", "</s>", *"▁f", "</s>"]
    assert Renderer(tokenizer).prompt([user("a b")]) == r.sample.tokens[:6]


@pytest.mark.real_data
def test_a_sentencepiece_continuation_gets_no_second_space(shared):
    tokenizer = stories(shared)
    (r,) = Renderer(tokenizer).render(Completion("Once upon", " a time"))
    pieces = tokenizer.convert_ids_to_tokens(r.sample.tokens)
    assert pieces == ["<s>", "▁Once", "▁upon", "▁a", "▁time", "</s>"]


# ----------------------------------------------------------------------------------------------- templates that rewrite


def test_turns_that_are_rewritten_become_one_sample_each():
    tokenizer = letters(template=FORGETFUL)
    chat = Chat((user("Q"), assistant("A", reasoning="x"), user("R"), assistant("B", reasoning="y")))
    renderer = Renderer(tokenizer)
    first = "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"
    group = renderer.render(chat, key=7)
    assert [show(r, tokenizer) for r in group] == [
        f"{first}⟦<think>x</think>A<|im_end|>⟧",
        f"{first}A<|im_end|>\n<|im_start|>user\nR<|im_end|>\n<|im_start|>assistant\n⟦<think>y</think>B<|im_end|>⟧",
    ]
    assert [(r.sample.group, r.sample.key, r.sample.stop) for r in group] == [(7, 7, "stop")] * 2
    without = Chat((user("Q"), assistant("A"), user("R"), assistant("B", reasoning="y")))
    assert len(renderer.render(without)) == 1  # nothing was dropped
    (only,) = Renderer(tokenizer, train_on="last").render(chat)
    assert show(only, tokenizer) == show(group[1], tokenizer)
    (whole,) = Renderer(tokenizer, train_on="all").render(chat)
    assert show(whole, tokenizer) == f"⟦{show(group[1], tokenizer).replace('⟦', '').replace('⟧', '')}\n⟧"


def test_a_weight_on_rewritten_messages_is_refused():
    renderer = Renderer(letters(template=FORGETFUL), train_on="all")
    chat = Chat((user("Q"), assistant("A", reasoning="x", weight=0.5), user("R"), assistant("B")))
    assert reason(renderer, chat) == "template rewrites a weighted message"


def test_the_reasoning_switch_that_fits_the_turn_is_used():
    tokenizer = letters(template=SWITCHED)
    renderer = Renderer(tokenizer)
    head = "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"
    assert shown(renderer, Chat((user("Q"), assistant("A"))), tokenizer) == [f"{head}<think></think>⟦A<|im_end|>⟧"]
    thought = Chat((user("Q"), assistant("A", reasoning="x")))
    assert shown(renderer, thought, tokenizer) == [f"{head}<think>⟦x</think>A<|im_end|>⟧"]
    rigid = letters(template=SWITCHED.replace("enable_thinking is defined and enable_thinking", "false"))
    assert reason(Renderer(rigid), thought) == "prompt is no prefix of the turn"
    assert len(Renderer(rigid).render(Chat((user("Q"), assistant("A"))))) == 1


@pytest.mark.real_data
def test_minimind_trains_reasoning_behind_an_open_thought(shared):
    tokenizer = minimind(shared)
    chat = Chat((user("Q"), assistant("A"), user("R"), assistant("B", reasoning="y")))
    (r,) = Renderer(tokenizer).render(chat)
    assert show(r, tokenizer) == (
        "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n⟦A<|im_end|>⟧\n"
        "<|im_start|>user\nR<|im_end|>\n<|im_start|>assistant\n<think>\n⟦y\n</think>\n\nB<|im_end|>⟧"
    )


# ----------------------------------------------------------------------------------------------- stop tokens and length


@pytest.mark.parametrize("pad", [None, "</s>"])
def test_the_stop_token_is_trained_also_when_it_pads(pad):
    tokenizer = letters(template="plain")
    if pad:
        tokenizer.pad_token = pad
    (r,) = Renderer(tokenizer).render(TWO_TURNS)
    assert [m for t, m in zip(r.sample.tokens, r.sample.mask, strict=True) if t == tokenizer.eos_token_id] == [True] * 2


def test_truncation_keeps_the_head_and_invents_no_stop():
    (whole,) = R.render(TWO_TURNS)
    size, first = len(whole.sample), whole.sample.mask.index(True)
    for limit in range(1, size + 2):
        renderer = Renderer(CHATML, max_length=limit)
        if limit <= first:
            assert reason(renderer, TWO_TURNS) == "emptied by truncation"
            continue
        (cut,) = renderer.render(TWO_TURNS)
        kept = min(limit, size)
        assert cut.sample.tokens == whole.sample.tokens[:kept]
        assert cut.sample.mask == whole.sample.mask[:kept] and cut.sample.weights == whole.sample.weights[:kept]
        assert cut.sample.stop == ("stop" if limit >= size else "length")
        assert all(0 <= s.start < s.end <= kept for s in cut.spans)
    assert (
        Renderer(CHATML, max_length=3).render(Text("abc"))[0].sample.tokens
        == R.render(Text("abc"))[0].sample.tokens[:3]
    )


def test_exactly_one_bos():
    own = "{{ bos_token }}{% for m in messages %}{{ m.role[0] + m.content + eos_token }}{% endfor %}"
    tokenizer = letters(template=own, bos=True)
    assert Renderer(tokenizer).render(TWO_TURNS)[0].sample.tokens.count(1) == 1
    tokenizer.chat_template = own.replace("{{ bos_token }}", "")
    (r,) = Renderer(tokenizer).render(TWO_TURNS)
    assert r.sample.tokens[0] == 1 and r.sample.tokens.count(1) == 1
    assert Renderer(tokenizer).prompt(TWO_TURNS.messages[:2])[:2] == r.sample.tokens[:2]
    quiet = letters(template=own)  # the tokenizer adds none, the template writes one
    assert Renderer(quiet).bos_id == 1 and Renderer(quiet).render(TWO_TURNS)[0].sample.tokens.count(1) == 1
    assert Renderer(letters(template="chatml")).bos_id is None


def test_a_template_without_a_stop_token_is_refused():
    tokenizer = letters(template="{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}")
    with pytest.raises(ModelError, match=r"no token that ends an assistant turn.*--template"):
        Renderer(tokenizer).render(TWO_TURNS)
    assert len(Renderer(tokenizer).render(Text("a"))) == 1  # text needs no template
    with pytest.raises(ModelError, match=r"no chat template.*--template chatml"):
        Renderer(letters(template=None)).render(TWO_TURNS)


def test_a_turn_that_ends_without_its_stop_token_is_refused():
    tokenizer = letters(
        template="{% for m in messages %}{{ m.role[0] + m.content + ('' if m.content == 'cut' else eos_token) }}"
        "{% endfor %}{% if add_generation_prompt %}a{% endif %}"
    )
    assert reason(Renderer(tokenizer), Chat((user("Q"), assistant("cut")))) == "turn without a stop token"


# ------------------------------------------------------------------------------------------------------ what is checked


def test_the_mask_is_checked_by_decoding():
    tokenizer = letters(template="chatml", markup=())
    renderer = Renderer(tokenizer)
    renderer.chats.codec.decode = lambda ids: tokenizer.decode(ids[1:])  # a tokenizer that loses a token
    assert reason(renderer, Chat((user("Q"), assistant("Ab")))) == "trained tokens decode to other text"


def test_what_a_template_would_drop_is_refused():
    turns = (
        "{% for m in messages if m.role in ('user', 'assistant') %}{{ m.role[0] + m.content + eos_token }}{% endfor %}"
    )
    renderer = Renderer(letters(template=turns + "{% if add_generation_prompt %}a{% endif %}"))
    q, a = user("Q"), assistant("A")
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    assert reason(renderer, Chat((system("S"), q, a))) == "chat template drops system messages"
    assert reason(renderer, Chat((q, assistant("A", reasoning="x")))) == "chat template drops reasoning"
    assert reason(renderer, Chat((q, assistant("A", tool_calls=(call,))))) == "chat template drops tool calls"
    assert reason(renderer, Chat((q, tool("T"), a))) == "chat template drops tool messages"
    assert reason(renderer, Chat((q, a), (call,))) == "chat template drops tools"
    assert len(renderer.render(Chat((q, a)))) == 1


def test_a_template_that_refuses_a_row_says_why():
    tokenizer = letters(
        template="{% if messages[0].role == 'user' %}{{ raise_exception('no ' + messages[0].role) }}{% endif %}"
    )
    with pytest.raises(RowError, match="chat template refuses the conversation; got no user"):
        Renderer(tokenizer).render(Chat((user("Q"), assistant("A"))))


def test_arguments_and_tokenizers_are_checked():
    with pytest.raises(ConfigError, match="train_on got 'user'; expected assistant, last, all"):
        Renderer(CHATML, train_on="user")
    with pytest.raises(ConfigError, match="max_length got -1"):
        Renderer(CHATML, max_length=-1)
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no end-of-text token"):
        Renderer(tokenizer)


def test_the_fingerprint_is_about_all_that_decides():
    prints = [R.fingerprint, Renderer(CHATML, train_on="all").fingerprint, Renderer(CHATML, max_length=9).fingerprint]
    prints += [Renderer(letters(template=t)).fingerprint for t in ("llama3", None)]
    prints += [Renderer(letters(template="chatml", markup=("<x>",))).fingerprint]
    assert len(set(prints)) == len(prints)
    assert Renderer(letters(template="chatml")).fingerprint == R.fingerprint
    copy = pickle.loads(pickle.dumps(R))
    assert copy.render(TWO_TURNS) == R.render(TWO_TURNS)


def test_the_date_of_today_is_a_fixed_one():
    source = "{{ strftime_now('%Y') }}{% for m in messages %}{{ m.role[0] + m.content + eos_token }}{% endfor %}"
    tokenizer = letters(template=source + "{% if add_generation_prompt %}a{% endif %}")
    assert shown(Renderer(tokenizer), Chat((user("Q"), assistant("A"))), tokenizer) == ["2024uQ</s>a⟦A</s>⟧"]


# ---------------------------------------------------------------------------------------------------------------- spans


def test_spans_say_whose_tokens_they_are():
    chat = Chat((system("Sys"), user("Hi?"), assistant("A"), tool("T"), assistant("By")))
    (r,) = R.render(chat)
    found = [(CHATML.decode(r.sample.tokens[s.start : s.end]), s.role, s.trained) for s in r.spans]
    assert found == [
        ("Sys", "system", False),
        ("Hi?", "user", False),
        ("A<|im_end|>", "assistant", True),
        ("T", "tool", False),
        ("By<|im_end|>", "assistant", True),
    ]
    assert [s[2:] for s in R.render(Completion("p", "c"))[0].spans] == [("prompt", False), ("completion", True)]
    assert R.render(Text("ab"))[0].spans == [(0, 3, "text", True)]


def test_words_that_templates_write_are_not_taken_for_content():
    (r,) = R.render(Chat((user("s"), assistant("e"))))
    assert [(CHATML.decode(r.sample.tokens[s.start : s.end])) for s in r.spans] == ["s", "e<|im_end|>"]


WORDS = st.text("aZ 1\n.", max_size=6)
ROLES = st.sampled_from(["user", "assistant", "tool"])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(ROLES, WORDS, st.sampled_from([None, 0.0, 1.0, 0.5])), min_size=1, max_size=6))
def test_every_trained_turn_is_trained_once(turns):
    """Under a template that rewrites and one that does not: the trained turns are the same, each in one place."""
    make = {"user": user, "assistant": assistant, "tool": tool}
    turns = [("user", "Q", None), *turns]  # what becomes of other beginnings is in test_bad_turns.py
    messages = tuple(make[role](f"x{text}", weight=w if role == "assistant" else None) for role, text, w in turns)
    meant = [m.content for m in messages if m.role == "assistant" and m.weight != 0]
    reasoned = tuple(
        assistant(m.content, reasoning="r", weight=m.weight) if m.role == "assistant" else m for m in messages
    )
    for renderer, chat, stem in ((R, messages, ""), (FORGETS, reasoned, "<think>r</think>")):
        if not meant:
            assert reason(renderer, Chat(chat)) == "nothing to train"
            continue
        found = []
        for r in renderer.render(Chat(chat)):
            s = r.sample
            assert len(s.tokens) == len(s.mask) == len(s.weights) and s.mask[-1]
            assert all((w > 0) == m for w, m in zip(s.weights, s.mask, strict=True))
            found += [CHATML.decode(s.tokens[x.start : x.end]) for x in r.spans if x.trained]
        assert found == [f"{stem}{text}<|im_end|>" for text in meant]


FORGETS = Renderer(letters(template=FORGETFUL))


def test_a_vocabulary_that_loses_spaces_and_words_is_served():
    tokenizer = words()
    (r,) = Renderer(tokenizer).render(Chat((user("hello </s> END"), assistant("world nowhere"))))
    assert r.sample.tokens.count(tokenizer.eos_token_id) == 1 and r.sample.mask[-1]
    assert tokenizer.convert_tokens_to_ids("END") not in r.sample.tokens
