"""Solutions in steps as samples: an ordinary turn, read where each step ends."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.data.render.renderer import Renderer
from espalier.errors import RowError
from espalier.types import Chat
from judged_examples import CHATML, HEAD, reason, solution, stepper
from toys import FORGETFUL, SWITCHED, assistant, letters, merging, show, user


def test_steps_are_read_where_each_of_them_ends():
    group = stepper().render(solution("ab", "c", "def", labels=(1.0, 0.5, None), solved=False))
    (r,) = group
    s = r.sample
    assert show(r, CHATML) == f"{HEAD}⟦ab\nc\ndef<|im_end|>⟧\n"
    assert [CHATML.decode([s.tokens[i]]) for i in s.reads] == ["b", "c", "f"]
    assert s.reads[-1] == len(s) - 3  # in front of the stop token, which the template's line end follows
    assert s.grades[:2] == [(1.0,), (0.5,)] and math.isnan(s.grades[2][0]) and s.label == 0.0
    (ordinary,) = Renderer(CHATML).render(Chat((user("Q"), assistant("ab\nc\ndef"))))
    assert (s.tokens[:-1], s.mask[:-1]) == (ordinary.sample.tokens, ordinary.sample.mask) and not s.mask[-1]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.text("ab é\n<|im_end>", max_size=6).filter(str.strip), min_size=1, max_size=4),
    st.sampled_from(["\n", "\n\n", " ", "<|im_end|>"]),
)
def test_what_is_read_so_far_is_what_was_said_so_far(steps, separator):
    """Decoded up to a read, a solution ends in the last visible character of that step."""
    (r,) = stepper().render(solution(*steps, separator=separator))
    start = r.sample.mask.index(True)
    told = separator.join(steps)
    for number, read in enumerate(r.sample.reads):
        said = CHATML.decode(r.sample.tokens[start : read + 1])
        assert said.replace("<unk>", "é") == separator.join(steps[: number + 1]).rstrip()
        assert told.startswith(separator.join(steps[: number + 1]).rstrip())


@pytest.mark.parametrize(
    "template", ["chatml", "llama3", "plain", FORGETFUL, SWITCHED, FORGETFUL.replace("m.content", "m.content | trim")]
)
def test_reads_are_found_under_every_template(template):
    tokenizer = letters(template=template)
    (r,) = stepper(tokenizer).render(solution(" one ", "think ", "one"))
    assert [tokenizer.decode([r.sample.tokens[i - 1], r.sample.tokens[i]]) for i in r.sample.reads] == [
        "ne",
        "nk",
        "ne",
    ]


def test_tokens_of_several_characters_hold_the_end_of_a_step():
    tokenizer = merging()  # two line ends are one token
    (r,) = stepper(tokenizer).render(solution("a\n", "b", separator="\n"))
    s = r.sample
    assert [tokenizer.decode([s.tokens[i]]) for i in s.reads] == ["a", "b"]
    with pytest.raises(RowError, match="two steps end in one token; field steps\\[1\\]"):
        renderer_of_words().render(solution("a", "b", separator=""))


def renderer_of_words():
    """A vocabulary in which "ab" is one token."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    from toys import with_chatml

    pieces = ["</s>", "\n", "ab", *map(chr, range(32, 127))]
    core = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, [("a", "b")]))
    core.decoder = decoders.Fuse()
    return stepper(with_chatml(PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")))


def test_steps_that_cannot_be_used_are_refused():
    r = stepper()
    assert reason(r, solution("a", " ")) == "empty step"
    assert reason(r, solution("a", "b", labels=(1.0,))) == "steps without labels"
    assert reason(r, solution("a", labels=(None,))) == "no label"
    changing = letters(template=FORGETFUL.replace("m.content", "m.content | replace('x', 'y')"))
    assert reason(stepper(changing), solution("x")) == "template changes the solution"


def test_steps_behind_the_cut_are_left_out_and_counted():
    (whole,) = stepper().render(solution("ab", "cd", "ef"))
    reads = whole.sample.reads
    for limit in range(reads[0], len(whole.sample) + 1):
        r = stepper(limit=limit)
        if limit <= reads[0]:
            assert reason(r, solution("ab", "cd", "ef")) == "emptied by truncation"
            continue
        group = r.render(solution("ab", "cd", "ef"))
        kept = [i for i in reads if i < limit]
        assert group[0].sample.reads == kept and len(group[0].sample.grades) == len(kept)
        assert group.dropped == ({"step behind the cut": 3 - len(kept)} if len(kept) < 3 else {})
    late = solution("ab", "cd", labels=(None, 0.0))
    assert reason(stepper(limit=reads[0] + 1), late) == "no label before the cut"
