"""A prompt that is a transcript is turns; a text that begins like one is not."""

import doctest

import pytest

from conversations import one, turns
from espalier.data.formats import sniff, transcripts
from espalier.types import Ranking

ASKED = [("user", "Hi"), ("assistant", "Hello"), ("user", "Why?")]


def test_worked_examples() -> None:
    assert doctest.testmod(transcripts).failed == 0


@pytest.mark.parametrize(
    "text",
    [
        "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant:",
        "Human: Hi\nAssistant: Hello\nHuman: Why?\nAssistant: ",
        "### Human: Hi### Assistant: Hello### Human: Why?### Assistant:",
        "USER: Hi\n\nASSISTANT: Hello\n\nUSER: Why?\n\nASSISTANT:",
    ],
)
def test_a_transcript_in_a_prompt_is_its_turns(text: str) -> None:
    assert turns("prompt", {"prompt": text, "completion": " So. "}) == [*ASKED, ("assistant", "So.")]
    pair: Ranking = one("pairs", {"prompt": text, "chosen": " So.", "rejected": " No."})
    assert [(m.role, m.content) for m in pair.prompt] == ASKED
    assert [r.message.content for r in pair.responses] == ["So.", "No."]
    ranked = one("ranked", {"prompt": text, "answers": [{"answer": " So.", "rank": 1}, {"answer": "No.", "rank": 2}]})
    assert [(m.role, m.content) for m in ranked.prompt] == ASKED


def test_a_name_inside_a_turn_begins_none() -> None:
    text = "Human: What does\nHuman: mean?\n\nAssistant:"
    assert turns("prompt", {"prompt": text, "completion": "A."})[0] == ("user", "What does\nHuman: mean?")
    text = "Human: what does this mean?"
    assert turns("prompt", {"prompt": text, "completion": " A."}) == [("user", text), ("assistant", " A.")]


def test_a_text_that_is_a_transcript_is_a_conversation() -> None:
    row = {"text": "### Human: Hi### Assistant: Hello### Human: Why?### Assistant: So."}
    assert sniff(row) == "transcript" and turns("transcript", row) == [*ASKED, ("assistant", "So.")]
    assert sniff({"text": "Human: an animal that asks."}) == "text"


def test_speakers_of_other_names_are_turns() -> None:
    for text in ("user: Hi\nassistant: Hello!\nuser: Bye\nassistant:", "Human: Hi\nAI: Hello!\nHuman: Bye\nAI:"):
        turns = transcripts.prompt_of(text)
        assert turns is not None
        roles = [(turn.role, turn.content) for turn in turns]
        assert roles == [("user", "Hi"), ("assistant", "Hello!"), ("user", "Bye")]


def test_words_before_the_first_turn_are_the_system_turn_only_if_the_answer_is_waited_for() -> None:
    turns = transcripts.prompt_of("Be kind.\n\nHuman: Hi\n\nAssistant:")
    assert turns is not None and [turn.role for turn in turns] == ["system", "user"]
    assert transcripts.prompt_of("A play.\n\nHuman: Hi\n\nAssistant: Hello!\n\nWho speaks first?") is None


def test_a_chat_with_results_of_functions() -> None:
    chat = (
        "USER: Weather?\n\n\nASSISTANT: <functioncall> {} <|endoftext|>\n\n\nFUNCTION RESPONSE: 3\n\n\nASSISTANT: Cold."
    )
    row = {"system": "SYSTEM: Be kind.", "chat": chat}
    assert sniff(row) == "transcript"
    assert turns("transcript", row) == [
        ("system", "Be kind."),
        ("user", "Weather?"),
        ("assistant", "<functioncall> {}"),
        ("tool", "3"),
        ("assistant", "Cold."),
    ]
