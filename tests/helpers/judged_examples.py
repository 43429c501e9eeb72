"""Judged examples by letters, and renderers of them."""

import pytest

from espalier.config.sections import PreferenceConfig, StepLabelsConfig
from espalier.data.render.form import Form
from espalier.data.render.renderer import Renderer
from espalier.errors import RowError
from espalier.types import Ranking, Response, Steps
from toys import assistant, letters, user

CHATML = letters(template="chatml")
HEAD = "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"
QUESTION = (user("Q"),)
KEEP = StepLabelsConfig(neutral="half", after_mistake="keep")


def renderer(wants="pairs", *, reads=False, limit=0, tokenizer=CHATML, consumes="ranking", **preference):
    form = Form(consumes, wants, reads, PreferenceConfig(**preference))
    return Renderer(tokenizer, max_length=limit, form=form)


def pair(chosen, rejected, prompt=QUESTION):
    return Ranking(tuple(prompt), (Response(assistant(chosen), rank=0), Response(assistant(rejected), rank=1)))


def listed(*levels, texts="ABCDEFGH", **more):
    """A ranking whose responses "A", "B" ... have scores."""
    made = [Response(assistant(t), scores=(s,)) for t, s in zip(texts, levels, strict=False)]
    return Ranking((user("Q"),), tuple(made), **more)


def reason(r, example):
    with pytest.raises(RowError) as caught:
        r.render(example)
    return caught.value.reason


def stepper(tokenizer=CHATML, limit=0, labels=KEEP):
    return Renderer(tokenizer, max_length=limit, form=Form("steps", reads=True, labels=labels))


def solution(*steps, separator="\n", labels=None, solved=None, prompt=QUESTION):
    return Steps(tuple(prompt), steps, labels or (1.0,) * len(steps), solved, separator)
