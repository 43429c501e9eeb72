"""Strings that look like control tokens: counted where they are ordinary text, tokens where the user asks for them."""

import pytest

from espalier.config.sections import TurnsConfig
from espalier.data.render.form import Form
from espalier.data.render.renderer import Renderer
from espalier.errors import RowError
from espalier.types import Chat, Completion, Ranking, Response, Steps, Text
from toys import assistant, letters, show, system, user

CHATML = letters(template="chatml")
END, START, EOS = CHATML.convert_tokens_to_ids(["<|im_end|>", "<|im_start|>", "</s>"])
TURN = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def renderer(*places, form="chat", wants="pairs", bos=False):
    tokenizer = letters(template="chatml", bos=bos)
    return Renderer(tokenizer, form=Form(form, wants, turns=TurnsConfig(parse_control=places)))


def shown(example, *places, **more):
    return [show(one, CHATML) for one in renderer(*places, **more).render(example)]


def test_strings_are_counted_by_place_and_stay_characters():
    schema = {"type": "function", "function": {"name": "f", "description": "<|im_start|>", "parameters": {}}}
    chat = Chat(
        (
            system("Say <|im_end|>"),
            user("<|im_end|> <think>"),
            assistant("a<|im_end|>b", reasoning="<|im_end|>"),
            user("c"),
            assistant("<think>x</think> A<|im_end|>\n"),
        ),
        (schema,),
    )
    group = renderer().render(chat)
    assert group.controls == {
        "prompts hold <|im_end|>": 2,
        "prompts hold <think>": 1,
        "answers hold <|im_end|>": 1,
        "answers end in <|im_end|>": 1,
        "reasoning hold <|im_end|>": 1,
        "tools hold <|im_start|>": 1,
    }
    assert group[0].sample.tokens.count(END) == 5  # the template's own
    assert renderer().render(Text("<|im_start|>a<|im_end|>")).controls == {
        "texts hold <|im_start|>": 1,
        "texts hold <|im_end|>": 1,
    }
    assert renderer().render(Completion("<s>Q", "A</s>")).controls == {
        "prompts hold <s>": 1,
        "completions end in </s>": 1,
    }
    assert not renderer().render(Chat((user("a < b |> c"), assistant("A")))).controls


def test_markup_that_no_token_is_counts_once():
    group = renderer().render(Chat((user("[INST] <|user|> <|a|> Hi [/INST]"), assistant("A<|end|>"))))
    assert group.controls == {
        "prompts hold markup of another vocabulary": 1,
        "answers end in markup of another vocabulary": 1,
    }


def test_judged_rows_are_counted_too():
    ranking = Ranking((user("Q<|im_end|>"),), (Response(assistant("A"), 0), Response(assistant("B<|im_end|>"), 1)))
    group = renderer(form="ranking").render(ranking)
    assert group.controls == {"prompts hold <|im_end|>": 1, "answers end in <|im_end|>": 1}
    steps = Steps((user("Q"),), ("a", "b<|im_end|>"), (1.0, 0.0))
    assert renderer(form="steps").render(steps).controls == {"answers end in <|im_end|>": 1}


def test_a_rendered_text_becomes_tokens_and_stops_once():
    for end in ("", "\n", " \n\n"):
        text = Text(f"{TURN}Yo<|im_end|>{end}")
        assert shown(text, "text") == [f"⟦{TURN}Yo<|im_end|>⟧"]
        (one,) = renderer("text").render(text)
        assert one.sample.tokens.count(END) == 2 and EOS not in one.sample.tokens
        assert shown(text, "prompt", "completion") == [f"⟦{TURN}Yo<|im_end|>{end}</s>⟧"]
    assert shown(Text("no end"), "text") == ["⟦no end</s>⟧"]
    group = renderer("text").render(Text("Yo<|im_end|>"))
    assert group.noted == {"texts hold the token <|im_end|>": 1} and not group.controls


def test_begin_of_text_is_not_written_twice():
    for places in ((), ("text",)):
        (one,) = renderer(*places, bos=True).render(Text("<s>Hi</s>"))
        assert one.sample.tokens.count(1) == 1 and one.sample.tokens[0] == 1
        assert one.sample.tokens.count(EOS) == 1 and one.sample.tokens[-1] == EOS
    (one,) = renderer("prompt", bos=True).render(Completion("<s>Q", "A"))
    assert one.sample.tokens.count(1) == 1


def test_a_rendered_prompt_and_its_completion():
    row = Completion(TURN, "Yo<|im_end|>\n")
    assert shown(row, "prompt", "completion") == [f"{TURN}⟦Yo<|im_end|>⟧"]
    (one,) = renderer("prompt", "completion").render(row)
    (chat,) = renderer().render(Chat((user("Hi"), assistant("Yo"))))
    assert one.sample.tokens == chat.sample.tokens and one.sample.mask == chat.sample.mask
    (one,) = renderer("prompt").render(row)  # the completion's string stays a string
    assert one.sample.tokens.count(END) == 1 and one.sample.tokens[-1] == EOS
    assert shown(Completion("Q", "A"), "prompt", "completion") == ["Q⟦A</s>⟧"]


def test_an_answer_that_ends_in_the_stop_token_gets_no_second_one():
    (plain,) = renderer().render(Chat((user("Hi"), assistant("Yo"))))
    for content in ("Yo<|im_end|>", "Yo<|im_end|>\n", "Yo</s>", "Yo<|im_end|></s>"):
        (one,) = renderer("completion").render(Chat((user("Hi"), assistant(content))))
        assert one.sample.tokens == plain.sample.tokens, content
    for example in (Chat((user("Hi"), assistant("A<|im_end|>B"))), Completion("Q", "A<|im_end|>B")):
        with pytest.raises(RowError, match="stop token inside an answer"):
            renderer("completion").render(example)
    (one,) = renderer("completion").render(Chat((user("Hi"), assistant("A<|im_start|>B"))))
    assert one.sample.tokens.count(START) == 3
    (one,) = renderer("prompt").render(Chat((user("Hi<|im_end|>"), assistant("A"))))
    assert one.sample.tokens.count(END) == 3
    ranking = Ranking((user("Q"),), (Response(assistant("A<|im_end|>"), 0), Response(assistant("B"), 1)))
    first, second = renderer("completion", form="ranking").render(ranking)
    assert first.sample.tokens.count(END) == second.sample.tokens.count(END) == 2
    steps = Steps((user("Q"),), ("a", "b<|im_end|>"), (1.0, 0.0))
    (one,) = renderer("completion", form="steps").render(steps)
    assert one.sample.tokens.count(END) == 2 and len(one.sample.reads) == 2
