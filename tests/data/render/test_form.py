"""The forms in which runs read their examples."""

from dataclasses import replace

import pytest

from espalier.data.render.form import Form
from espalier.data.render.renderer import Renderer
from espalier.errors import ConfigError
from espalier.types import Chat
from judged_examples import CHATML, pair, reason, renderer, solution, stepper
from toys import assistant, user


def test_an_example_of_another_form_is_refused():
    chat, ranking, steps = Chat((user("Q"), assistant("A"))), pair("Yes", "No"), solution("a")
    for r, own in ((Renderer(CHATML), chat), (renderer(), ranking), (stepper(), steps)):
        assert len(r.render(own)) >= 1
        for other in (chat, ranking, steps):
            if other is not own:
                assert reason(r, other) == "wrong form"
    with pytest.raises(ConfigError, match="train_on got 'all', but rankings"):
        Renderer(CHATML, train_on="all", form=Form("ranking"))
    assert renderer().fingerprint != renderer("labels").fingerprint != replace_seed().fingerprint


def replace_seed():
    return Renderer(CHATML, form=replace(Form("ranking", "labels"), seed=1))


def test_token_stores_hang_on_the_names_of_a_form() -> None:
    """What enters a renderer's fingerprint: another name, order or default makes every cached token store anew."""
    assert Form().settings() == {
        "consumes": "chat",
        "wants": "pairs",
        "reads": False,
        "preference": {"judged_by": "auto", "min_gap": 0.0, "max_pairs": 0, "flip": 0.0, "score_weights": ()},
        "seed": 0,
        "labels": {"supervision": "process", "neutral": "good", "after_mistake": "ignore", "outcome": "spread"},
        "unread": None,
        "turns": {
            "template_args": (),
            "on_bad_turn": "drop",
            "merge_system": False,
            "merge_turns": False,
            "parse_control": (),
        },
    }
    assert list(Form().settings()) == ["consumes", "wants", "reads", "preference", "seed", "labels", "unread", "turns"]
