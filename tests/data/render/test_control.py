"""Content never becomes a control token, and survives as what it is."""

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from espalier.data.render.control import Codec
from espalier.data.render.renderer import Renderer
from espalier.errors import RowError
from espalier.types import Chat, Completion, Text
from toys import (
    assistant,
    gpt2,
    letters,
    minimind,
    sentencepiece_bpe,
    sentencepiece_unigram,
    show,
    stories,
    system,
    tiktoken,
    tool,
    user,
    with_chatml,
    words,
)

CHATML = letters(template="chatml")
R = Renderer(CHATML)
END = CHATML.convert_tokens_to_ids("<|im_end|>")
THINK = CHATML.convert_tokens_to_ids("<think>")


def tokens(renderer, chat):
    return renderer.render(chat)[0].sample.tokens


def test_a_system_prompt_that_holds_a_stop_token():
    chat = Chat((system("Write <|im_end|> last"), user("Hi"), assistant("Yo")))
    (r,) = R.render(chat)
    assert r.sample.tokens.count(END) == 3  # the three that the template wrote
    assert show(r, CHATML) == (
        "<|im_start|>system\nWrite <|im_end|> last<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n⟦Yo<|im_end|>⟧"
    )
    assert len(r.sample) == len("system\nWrite <|im_end|> last\nuser\nHi\nassistant\nYo") + 6


def test_every_place_of_a_row_is_content():
    bad = "<|im_end|><|im_start|></s>"
    call = {"type": "function", "function": {"name": bad, "arguments": {bad: [bad, {"x": bad}]}}}
    text_call = {"type": "function", "function": {"name": "f", "arguments": f"no json {bad}"}}
    schema = {"type": "function", "function": {"name": bad, "description": bad, "parameters": {bad: {"enum": [bad]}}}}
    chat = Chat(
        (
            system(bad),
            user(bad),
            assistant(bad, reasoning=bad, tool_calls=(call, text_call)),
            tool(bad, name=bad),
            assistant(bad),
        ),
        (schema,),
    )
    (r,) = R.render(chat)
    assert r.sample.tokens.count(END) == 5 and r.sample.tokens.count(CHATML.eos_token_id) == 0
    assert show(r, CHATML).count(bad) == 15
    for example in (Text(bad), Completion(bad, bad)):
        assert tokens(R, example).count(END) == 0 and tokens(R, example).count(CHATML.eos_token_id) == 1


def test_markup_comes_from_assistant_content_only():
    def count(*messages):
        return tokens(R, Chat((*messages, assistant("A")) if messages[-1].role != "assistant" else messages)).count(
            THINK
        )

    assert count(user("<think>")) == count(system("<think>"), user("Q")) == count(user("Q"), tool("<think>")) == 0
    assert count(user("Q"), assistant("<think>x</think>A")) == 1
    assert count(user("Q"), assistant("A", reasoning="<think>")) == 1  # the template's own
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": "</tool_call><think>"}}}
    assert count(user("Q"), assistant("", tool_calls=(call,))) == 0
    assert tokens(R, Text("<think>")).count(THINK) == 0
    ended = tokens(R, Chat((user("Q"), assistant("<think>a<|im_end|>b</think>A"))))
    assert ended.count(END) == 2 and ended.count(THINK) == 1


def test_a_turn_ending_token_of_any_kind_is_a_control_token():
    """`</think>` is no special token; where a template ends turns in it, answers must not hold it."""
    source = "{% for m in messages %}{{ m.role[0] + m.content + '</think>' }}{% endfor %}"
    tokenizer = letters(template=source + "{% if add_generation_prompt %}a{% endif %}")
    renderer = Renderer(tokenizer)
    close = tokenizer.convert_tokens_to_ids("</think>")
    assert renderer.stop_ids == (close, tokenizer.eos_token_id)
    assert tokens(renderer, Chat((user("Q"), assistant("A</think>B")))).count(close) == 2


@pytest.mark.parametrize(
    ("source", "content"),
    [
        ("{{ m.role[0] + '<' + m.content + '>' + eos_token }}", "think"),  # the template writes both ends
        ("{{ m.role[0] + '<|im_' + m.content + eos_token }}", "end|>"),  # the template writes the beginning
        ("{{ m.role[0] + m.content + '>' + eos_token }}", "<|im_end|"),  # the template writes the end
        ("{{ m.role[0] + m.content | trim + '|im_end|>' + eos_token }}", "< "),
        ("{{ m.role[0] + m.content.replace('/no', '') + eos_token }}", "<|im_/noend|>"),  # the template cuts and joins
        ("{{ m.role[0] + m.content | lower + eos_token }}", "<|IM_END|>"),
        ("{{ m.role[0] + m.content | tojson(ensure_ascii=true) + eos_token }}", "<|im_end|>"),
        ("{{ m.role[0] + (m.content ~ m.content) + eos_token }}", "end|><|im_"),
    ],
)
def test_templates_that_build_control_strings_out_of_content(source, content):
    """Of user content; the generation prompt and the answer are the same everywhere."""
    body = "{% for m in messages %}{% if m.role == 'user' %}" + source + "{% else %}{{ 'a' + m.content + eos_token }}"
    tokenizer = letters(template=body + "{% endif %}{% endfor %}{% if add_generation_prompt %}a{% endif %}")
    renderer = Renderer(tokenizer)
    (bad,), (good,) = (renderer.render(Chat((user(c), assistant("A")))) for c in (content, "b"))
    controls = set(tokenizer.added_tokens_decoder) - {tokenizer.unk_token_id}
    assert [i for i in bad.sample.tokens if i in controls] == [i for i in good.sample.tokens if i in controls]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "A"}]
    assert show(bad, tokenizer).replace("⟦", "").replace("⟧", "") == tokenizer.apply_chat_template(
        messages, tokenize=False
    )


def test_a_normaliser_cannot_make_one():
    """Fullwidth and upper-case forms that the vocabulary's normaliser turns into a control string."""
    vocab = {"<unk>": 0, "</s>": 1, "<|end|>": 2, **{chr(c): c for c in range(32, 127)}, "\n": 127}
    core = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    core.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="</s>")
    tokenizer.add_tokens([AddedToken("<|end|>", special=True, normalized=True)], special_tokens=False)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role[0] + m.content + '<|end|>' }}{% endfor %}"
    renderer = Renderer(tokenizer)
    for forged in ("\uff1c|end|\uff1e", "<|END|>", "<|end|>"):
        assert tokenizer.encode(forged, add_special_tokens=False) == [2]
        chat = Chat((user(forged), assistant("a")))
        ids = renderer.prompt(chat.messages[:1])
        assert ids == [ord("u"), *(ord(c) for c in "<|end|>"), 2]


def test_words_of_the_vocabulary_that_are_control_strings():
    tokenizer = words()
    renderer = Renderer(tokenizer)
    control = {tokenizer.convert_tokens_to_ids(t) for t in ("</s>", "<s>", "END")}
    ids = renderer.prompt([user("hello END </s> world")])
    assert control.isdisjoint(ids) and tokenizer.convert_tokens_to_ids("hello") in ids


def test_a_vocabulary_whose_unknown_token_ends_turns_is_refused_by_row():
    vocab = [("</s>", 0.0), ("▁", -1.0), ("a", -1.0), ("u", -1.0)]
    core = Tokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=False))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")
    tokenizer.chat_template = "{% for m in messages %}{{ m.role[0] + m.content + eos_token }}{% endfor %}"
    renderer = Renderer(tokenizer)
    assert renderer.prompt([user("a")]) == [3, 2, 0]
    with pytest.raises(RowError, match="content becomes a control token; got </s> from 'uö'"):
        renderer.prompt([user("ö")])


def test_words_that_begin_like_a_control_string_are_left_alone():
    codec = Codec(words())
    assert codec.seal([("an ENormous one", "none"), ("EN", "none")]) is None
    assert codec.seal([("the END", "none")]).close("the END")[4:] != "END"


def test_private_use_characters_of_a_row_stay_what_they_are():
    vocab_like = "\ue000\ue001\ue002\uf8ff \\ue000 \\ue003"
    tokenizer = letters(template="chatml")
    codec = Codec(tokenizer)
    seal = codec.seal([(vocab_like + "<|im_end|>", "none")])
    closed = seal.close(vocab_like + "<|im_end|>")
    assert seal.open(seal.rendered(closed)) == vocab_like + "<|im_end|>"
    assert seal.chars.isdisjoint(vocab_like) and not list(codec.written(closed))
    every = "".join(map(chr, range(0xE000, 0xF900)))
    assert codec.seal([(every, "none")]) is None  # nothing to seal, nothing needed
    with pytest.raises(RowError, match="too many private-use characters"):
        codec.seal([(every + "</s>", "none")])


def test_ordinary_text_is_encoded_as_the_tokenizer_does():
    for text in ("a < b > c", "<p>x</p>", "im_end|>", "5 <| 6", "</", "<"):
        assert Codec(CHATML).encode(text).ids == CHATML.encode(text, add_special_tokens=False)
        assert R.prompt([user(text)])[6:-11] == CHATML.encode(text + "<|im_end|>\n", add_special_tokens=False)


# ----------------------------------------------------------------------------------------------- many strings at random

MAKES = {
    "minimind": lambda shared, folder: with_chatml(minimind(shared)),  # a template that writes content as it is
    "gpt2": lambda shared, folder: gpt2(shared),
    "stories260k": lambda shared, folder: stories(shared),
    "sentencepiece as merges": sentencepiece_bpe,
    "sentencepiece as unigram": lambda shared, folder: sentencepiece_unigram(shared),
    "tiktoken": lambda shared, folder: tiktoken(shared),
}
WIDE = str.maketrans("<|>/_", "\uff1c\uff5c\uff1e\uff0f\uff3f")


def nasty(controls):
    """Text made of control strings, their parts and near misses, with text of all kinds between."""
    whole = st.sampled_from(sorted(controls))
    part = st.builds(lambda c, a, b: c[min(a, b) : max(a, b)], whole, st.integers(0, 12), st.integers(0, 12))
    near = st.builds(
        lambda c, f: f(c), whole, st.sampled_from([str.upper, lambda c: c.translate(WIDE), lambda c: c[::-1]])
    )
    other = st.one_of(
        st.text(max_size=4), st.sampled_from([" ", "\n", "▁", "\ue000", "\ue001", "\\ue000", "<0x0A>", "é"])
    )
    return st.lists(st.one_of(whole, part, near, other), max_size=6).map("".join)


def row_of(a, b, c, d, e):
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": d}}}
    turns = (system("s" + a), user(b), assistant("c" + c, tool_calls=(call,)), tool(e))
    return Chat(turns, ({"type": "function", "function": {"name": "g", "description": e}},))


def check_content(renderer, tokenizer, texts):
    """Five strings in six places give no control id beyond those of the same row without them."""
    row, harmless = row_of(*texts), row_of("", "", "", "", "")
    ids, without = (renderer.prompt(chat.messages, chat.tools) for chat in (row, harmless))
    codec, encoder = renderer.chats.codec, tokenizer.added_tokens_encoder
    special = {i for i, t in tokenizer.added_tokens_decoder.items() if t.special} - {codec.unknown_id}
    assert [i for i in ids if i in special] == [i for i in without if i in special]
    markup = {i: t.content for i, t in tokenizer.added_tokens_decoder.items() if not t.special}
    allowed = re.findall("|".join(map(re.escape, sorted(markup.values(), key=len, reverse=True))) or "(?!)", texts[2])
    assert sorted(i for i in ids if i in markup) == sorted(
        [i for i in without if i in markup] + [encoder[t] for t in allowed]
    )
    if codec.lossless:
        plain = [{"role": m.role, "content": m.content, "tool_calls": list(m.tool_calls)} for m in row.messages]
        text = tokenizer.apply_chat_template(plain, tools=list(row.tools), tokenize=False, add_generation_prompt=True)
        assert codec.decode(ids) == text


def run(make, shared, folder, strings):
    tokenizer = MAKES[make](shared, folder)
    renderer = Renderer(tokenizer)
    controls = [t.content for t in tokenizer.added_tokens_decoder.values()]
    checked = []

    @settings(max_examples=strings // 5, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.tuples(*[nasty(controls)] * 5))
    def examples(texts):
        check_content(renderer, tokenizer, texts)
        checked.extend(texts)

    examples()
    assert len(checked) >= strings


@pytest.mark.real_data
@pytest.mark.parametrize("make", MAKES)
def test_no_control_token_from_content(make, shared, tmp_path):
    run(make, shared, tmp_path, 350)


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize("make", MAKES)
def test_no_control_token_from_100000_contents(make, shared, tmp_path):
    run(make, shared, tmp_path, 16_700)
