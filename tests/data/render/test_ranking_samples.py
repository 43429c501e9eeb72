"""Rankings as samples: the prompt once, every response on its own, judgements at the right places."""

import math
from typing import get_args

import pytest

from espalier.data.render.form import Form
from espalier.data.render.refusals import MISSING
from espalier.data.render.renderer import Renderer
from espalier.errors import RowError
from espalier.types import Ranking, Response, Wants
from judged_examples import CHATML, HEAD, listed, pair, reason, renderer
from toys import FORGETFUL, SWITCHED, assistant, letters, merging, show, system, user


def judgements(group):
    return [(r.sample.label, r.sample.beats, r.sample.ties) for r in group]


# ----------------------------------------------------------------------------------------------------------- rankings


def test_a_pair_is_two_samples_of_one_prompt():
    group = renderer().render(pair("Yes", "No"), key=7)
    assert [show(r, CHATML) for r in group] == [f"{HEAD}⟦Yes<|im_end|>⟧", f"{HEAD}⟦No<|im_end|>⟧"]
    assert judgements(group) == [(0.0, [1], []), (-1.0, [], [])]
    assert [(r.sample.group, r.sample.key, r.sample.reads) for r in group] == [(7, 7, [])] * 2
    assert [r.response.message.content for r in group] == ["Yes", "No"]


def test_a_list_keeps_order_and_ties():
    group = renderer().render(listed(2.0, 5.0, 2.0))
    assert judgements(group) == [(2.0, [], [2]), (5.0, [0, 2], []), (2.0, [], [])]


def test_only_the_response_is_trained_whatever_the_prompt_weighs():
    prompt = (system("S", weight=2.0), user("Q"), assistant("A", weight=3.0), user("R", weight=1.0))
    group = renderer().render(pair("Yes", "No", prompt))
    for r, text in zip(group, ("Yes", "No"), strict=True):
        trained = [t for t, m in zip(r.sample.tokens, r.sample.mask, strict=True) if m]
        assert CHATML.decode(trained) == f"{text}<|im_end|>"
        assert {w for w, m in zip(r.sample.weights, r.sample.mask, strict=True) if m} == {1.0}


@pytest.mark.parametrize(
    "make", [merging, lambda: letters(template="llama3", bos=True), lambda: letters(template="plain")]
)
def test_the_prompt_is_what_a_sampler_is_given(make):
    tokenizer = make()
    r = renderer(tokenizer=tokenizer)
    prompt = (user("Q"), assistant("\nA"), user("R"))
    for one in r.render(pair("\nYes", "No <|im_end|>", prompt)):
        assert one.sample.tokens[: one.sample.mask.index(True)] == r.prompt(prompt)


def test_a_prompt_that_depends_on_the_response_is_refused():
    thoughtful = Ranking((user("Q"),), (Response(assistant("A", reasoning="x"), 0), Response(assistant("B"), 1)))
    switched = renderer(tokenizer=letters(template=SWITCHED))
    assert reason(switched, thoughtful) == "responses have different prompts"
    forgetful = renderer(tokenizer=letters(template=FORGETFUL))
    assert len(forgetful.render(thoughtful)) == 2


def test_a_response_is_read_at_the_end_of_the_templates_own_text():
    for r, answer in zip(renderer(reads=True).render(pair("Yes", "No")), ("Yes", "No"), strict=True):
        told = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": answer}]
        s = r.sample
        assert s.tokens == CHATML.apply_chat_template(told, return_dict=False)
        assert s.reads == [len(s) - 1] and CHATML.decode(s.tokens[-2:]) == "<|im_end|>\n"
        assert s.mask[-2:] == [True, False]  # what the template writes behind the stop token is read, and not trained
    cut = renderer(reads=True, limit=len(HEAD) - 20).render(pair("Yes", "No"))  # a control token is one of its letters
    assert all(r.sample.reads == [len(r.sample) - 1] for r in cut)


def test_a_pad_token_at_the_end_is_not_read_in_a_model_of_others():
    """transformers reads the rightmost token that is not the pad token, wherever the text ends."""
    template = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' }}"
    template += "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    tokenizer = letters(template=template)
    stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
    form = Form("ranking", reads=True, unread=stop)
    for r, answer in zip(Renderer(tokenizer, form=form).render(pair("Yes", "No")), ("Yes", "No"), strict=True):
        assert r.sample.tokens[-1] == stop and r.sample.reads == [len(r.sample) - 2]
        assert tokenizer.decode(r.sample.tokens[r.sample.reads[0]]) == answer[-1]


def test_bad_responses_of_a_pair_refuse_it_and_say_why():
    r = renderer()
    assert reason(r, pair("Yes", " \n")) == "empty response"
    assert reason(r, pair("Yes", "Yes")) == "identical responses"
    assert reason(r, listed(1.0, 1.0)) == "no strict preference"
    assert reason(r, listed(1.0, None)) == "no strict preference"
    size = len(r.render(pair("Yes", "No"))[0].sample.tokens)
    start = size - len("Yes") - 1
    assert reason(renderer(limit=start + 2), pair("Yes", "Yet")) == "identical after the cut"
    assert len(renderer(limit=start + 3).render(pair("Yes", "Yet"))) == 2
    assert reason(renderer(limit=start), pair("Yes", "No")) == "emptied by truncation"
    assert reason(renderer(min_gap=2.0), listed(2.0, 1.0)) == "no strict preference"


def test_bad_responses_of_a_list_are_left_out_and_counted():
    group = renderer().render(listed(3.0, 2.0, 1.0, 4.0, None, texts=["A", " ", "C", "D", "E"]))
    assert judgements(group) == [(3.0, [1], []), (1.0, [], []), (4.0, [0, 1], [])]
    assert group.dropped == {"empty response": 1, "not judged": 1}


def test_equal_answers_count_once_and_contradictory_ones_not_at_all():
    group = renderer().render(listed(3.0, 3.0, 1.0, texts=["A", "A", "C"]))
    assert judgements(group) == [(3.0, [1], []), (1.0, [], [])] and group.dropped == {"identical responses": 1}
    group = renderer().render(listed(3.0, 2.0, 1.0, 0.0, texts=["A", "A", "C", "D"]))
    assert [r.response.message.content for r in group] == ["C", "D"] and group.dropped == {"identical responses": 2}


def test_ties_suffice_where_comparisons_are_wanted():
    group = renderer("comparisons").render(listed(1.0, 1.0))
    assert judgements(group) == [(1.0, [], [1]), (1.0, [], [])]
    assert reason(renderer("comparisons"), listed(1.0)) == "no comparison"


def test_what_no_comparison_is_left_for_is_not_computed():
    group = renderer(min_gap=2.0).render(listed(1.0, 5.0, 4.0, 4.5))
    assert [r.response.message.content for r in group] == ["A", "B", "C", "D"]
    group = renderer(min_gap=3.5).render(listed(1.0, 5.0, 4.0, 4.5))
    assert [r.response.message.content for r in group] == ["A", "B", "D"]
    assert judgements(group) == [(1.0, [], []), (5.0, [0], []), (4.5, [0], [])]
    assert group.dropped == {"gap below min_gap": 4, "in no comparison": 1}
    one = renderer(max_pairs=1).render(listed(1.0, 2.0, 3.0, 4.0))
    assert len(one) == 2 and sum(len(r.sample.beats) for r in one) == 1


def test_draws_do_not_depend_on_where_a_row_stands():
    r = renderer(max_pairs=2, flip=0.5)
    rows = [listed(1.0, 2.0, 3.0, 4.0, texts=[f"{n}{c}" for c in "abcd"]) for n in range(20)]
    first = [judgements(r.render(row, key)) for key, row in enumerate(rows)]
    assert first == [judgements(r.render(row, key + 1)) for key, row in enumerate(rows)]
    assert len({str(j) for j in first}) > 5


# -------------------------------------------------------------------------------------------------------------- labels


def test_labels_come_from_the_rows_own_or_from_two_levels():
    r = renderer("labels")
    single = Ranking((user("Q"),), (Response(assistant("A"), good=False),))
    assert judgements(r.render(single)) == [(0.0, [], [])]
    assert judgements(r.render(pair("Yes", "No"))) == [(1.0, [], []), (0.0, [], [])]
    assert [j[0] for j in judgements(r.render(listed(7.0, 2.0, 7.0)))] == [1.0, 0.0, 1.0]
    some = Ranking((user("Q"),), (Response(assistant("A"), good=True, rank=1), Response(assistant("B"), rank=0)))
    group = r.render(some)
    assert judgements(group) == [(1.0, [], [])] and group.dropped == {"not judged": 1} and group.labelled
    for none in (listed(1.0), listed(1.0, 2.0, 3.0), listed(1.0, 1.0)):
        assert reason(r, none) == "no good-or-bad label"
    assert reason(renderer("labels", min_gap=3.0), listed(1.0, 2.0)) == "no good-or-bad label"
    assert reason(r, pair("Yes", "Yes")) == "identical responses"


def test_pairs_of_right_and_wrong_where_labels_decide():
    told = [(8.0, False), (7.0, True), (9.0, True)]
    row = Ranking(
        (user("Q"),), tuple(Response(assistant(f"A{i}"), scores=(s,), good=g) for i, (s, g) in enumerate(told))
    )
    assert judgements(renderer("pairs", judged_by="labels").render(row)) == [
        (0.0, [], []), (1.0, [0], [2]), (1.0, [0], [])
    ]  # fmt: skip
    assert judgements(renderer("pairs").render(row))[2] == (9.0, [0, 1], [])
    assert reason(renderer("pairs", judged_by="ranks"), row) == "no strict preference"
    assert [j[0] for j in judgements(renderer("labels").render(row))] == [0.0, 1.0, 1.0]
    assert reason(renderer("labels", judged_by="scores"), row) == "no good-or-bad label"  # on three levels


def test_a_share_of_labels_is_flipped():
    r = renderer("labels", flip=0.25)
    rows = [Ranking((user(f"{n}"),), (Response(assistant("A"), good=True),)) for n in range(400)]
    good = sum(one.sample.label == 1.0 for row in rows for one in r.render(row))
    assert 270 <= good <= 330  # 300 expected, a standard deviation is 8.7


# -------------------------------------------------------------------------------------------------------------- grades


def test_grades_stand_in_the_order_of_their_dimensions():
    made = [((4.0, 1.0), "A"), ((None, 2.0), "B"), ((None, None), "C")]
    example = Ranking((user("Q"),), tuple(Response(assistant(t), scores=s) for s, t in made), ("helpful", "brief"))
    group = renderer("grades").render(example)
    (first,), (second,) = (r.sample.grades for r in group)
    assert first == (4.0, 1.0) and math.isnan(second[0]) and second[1] == 2.0
    assert [r.sample.reads for r in group] == [[len(r.sample) - 1] for r in group]
    assert group.dimensions == ("helpful", "brief") and group.dropped == {"not judged": 1}
    assert [r.sample.beats for r in group] == [[], []]
    assert renderer("grades").render(listed(3.0)).dimensions == ("score",)
    assert reason(renderer("grades"), listed(None)) == "no score"
    assert reason(renderer("grades"), pair("Yes", "No")) == "no score"
    assert len(renderer("grades").render(listed(3.0, 4.0, texts=["A", "A"]))) == 2  # two opinions on one answer


# ------------------------------------------------------------------------------------------------------------ refusals


def test_each_thing_a_run_wants_has_a_reason_for_its_lack():
    assert list(MISSING) == list(get_args(Wants))


@pytest.mark.parametrize(
    ("wants", "example", "text"),
    [
        ("pairs", listed(1.0), "no strict preference; got 1 response; .*--objective pointwise"),
        ("pairs", listed(None, None), "no strict preference; got none that is judged; left out: not judged \\(2\\)"),
        ("pairs", listed(1.0, 1.0), "no strict preference; got 2 responses, none better than another"),
        ("pairs", listed(1.0, texts=" "), "empty response; got empty response \\(1\\)"),
        ("pairs", Ranking((user("Q"),), (Response(assistant("A"), good=True),)), "`espalier kto`"),
        ("grades", pair("Yes", "No"), "no score; got none that is judged; .*--objective bradley_terry"),
    ],
)
def test_a_refusal_says_what_is_left_and_where_such_rows_belong(wants, example, text):
    with pytest.raises(RowError, match=text):
        renderer(wants).render(example)
