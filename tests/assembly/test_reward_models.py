"""What reward models add to the outcomes of answers, by scores that are set by hand."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from espalier.assembly.reward_choice import Choice, choices_of
from espalier.assembly.reward_models import Member, RewardModels, build_reward_models, difference
from espalier.config.rollout_sections import RewardsConfig
from espalier.data.render.renderer import Renderer
from espalier.engines.processes import OneProcess
from espalier.errors import ConfigError, EspalierError
from espalier.outcomes import Graded, Outcome
from espalier.types import Sample
from scored import reward_model
from tiny import TEMPLATE, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
NEWLINE = 5


def build(*models: str, dimensions: tuple[str, ...] = (), tokenizer: Any = TOKENIZER) -> RewardModels:
    rewards = RewardsConfig(reward_model=models, reward_dimensions=dimensions)
    model = SimpleNamespace(trust_remote_code=False, dtype="auto", layout="auto")
    config: Any = SimpleNamespace(rewards=rewards, model=model, loop=SimpleNamespace(tokens_per_microbatch=256))
    choices = choices_of(config)
    built = build_reward_models(config, choices, tokenizer, Renderer(tokenizer), torch.device("cpu"), OneProcess())
    assert built is not None
    return built


def answer(text: str = "4", *, stop: str = "stop", outcome: Outcome | None = None) -> Sample:
    s = Sample(stop=stop, outcome=outcome or Outcome(0.0))  # type: ignore[arg-type]
    prompt = TOKENIZER.encode("<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False)
    s.append(prompt, trained=False)
    s.append(TOKENIZER.encode(text, add_special_tokens=False) + [4] * (stop == "stop"), trained=True)
    return s


class Fixed:
    """Scores in the order of the answers, whatever these are."""

    rows = 128

    def __init__(self, *scores: float):
        self.given = iter([(x,) for x in scores])
        self.asked: list[Sample] = []

    def scores(self, groups: Any) -> list[tuple[float, ...]]:
        self.asked += [s for group in groups for s in group]
        return [next(self.given) for group in groups for _ in group]


def fixed(*scores: float, share: float = 1.0, name: str = "rm") -> RewardModels:
    choice = Choice(name, name, 1.0, Path(), {"0": 1.0})
    member = Member(choice, SimpleNamespace(), Fixed(*scores), None)  # type: ignore[arg-type]
    return RewardModels([member], Renderer(TOKENIZER), share)


def test_a_model_of_bias_alone_gives_it_to_every_answer(tmp_path: Path) -> None:
    models = build(reward_model(tmp_path / "flat"))
    group = [answer("4"), answer("five"), answer("4", stop="length")]
    assert models.add([group, [answer("6")]]) == 1
    assert [s.reward for s in group] == pytest.approx([0.7] * 3)
    assert group[0].outcome is not None and group[0].outcome.parts == {"flat": Graded(pytest.approx(0.7))}


def test_weights_of_models_and_dimensions_by_hand(tmp_path: Path) -> None:
    one = reward_model(tmp_path / "one", (0.5,))
    two = reward_model(tmp_path / "two", (1.0, -2.0, 8.0), names=("kind", "brief", "long"))
    s = answer(outcome=Outcome(3.0, {"math": Graded(1.5, 2.0)}))
    build(f"{one}=4", f"{two}=-1", dimensions=("kind=3", "brief=0.5")).add([[s]])
    assert s.outcome is not None
    # 3 of the rules, 4 x 0.5, and -1 x (3 x 1 + 0.5 x -2).
    assert s.outcome.score == s.reward == pytest.approx(3 + 2 - 2)
    parts = {name: (graded.alone, graded.weight) for name, graded in s.outcome.parts.items()}
    assert parts == {
        "math": (1.5, 2.0),
        "one": (pytest.approx(0.5), 4.0),
        "two": (pytest.approx(2.0), -1.0),
        "two.kind": (pytest.approx(1.0), 0.0),
        "two.brief": (pytest.approx(-2.0), 0.0),
        "two.long": (pytest.approx(8.0), 0.0),
    }


def test_scores_are_those_of_transformers_behind_the_templates_tail(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    path = reward_model(tmp_path / "rm", (0.25,), weight=1.0)
    group = [answer("4"), answer("forty-four"), answer("4"), answer("fo", stop="length")]
    build(path).add([group])
    plain: Any = AutoModelForSequenceClassification.from_pretrained(path).eval()
    expected = []
    for text, end in (("4", "<|im_end|>\n"), ("forty-four", "<|im_end|>\n"), ("4", "<|im_end|>\n"), ("fo", "")):
        whole = f"<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n{text}{end}"
        with torch.no_grad():
            ids = torch.tensor([TOKENIZER.encode(whole, add_special_tokens=False)])
            expected.append(float(plain(input_ids=ids).logits) + plain.config.espalier_reward_bias[0])
    assert [s.reward for s in group] == pytest.approx(expected, abs=1e-5)
    assert group[0].reward == group[2].reward and len({s.reward for s in group}) == 3


def test_what_a_cut_answer_is_read_as() -> None:
    models = fixed(1.0, 2.0, 3.0)
    whole, cut, at_string = answer("4"), answer("4", stop="length"), answer("4")
    del at_string.tokens[-1], at_string.mask[-1], at_string.weights[-1]
    assert models.add([[whole, cut, at_string]]) == 1
    read = models.members[0].engine.asked  # type: ignore[attr-defined]
    assert read[0].tokens == [*whole.tokens, NEWLINE] == read[2].tokens
    assert read[1].tokens == cut.tokens and [s.reads for s in read] == [[len(s.tokens) - 1] for s in read]


def test_errors_and_invalid_answers_are_not_scored() -> None:
    models = fixed(1.0)
    broken, odd = answer(outcome=Outcome(0.0, error="math: late")), answer(outcome=Outcome(-1.0, invalid="no tag"))
    odd.reward = -1.0
    good = answer()
    assert models.add([[broken, odd, good]]) == 0
    assert (broken.reward, odd.reward, good.reward) == (None, -1.0, 1.0)
    assert broken.outcome == Outcome(0.0, error="math: late") and odd.outcome == Outcome(-1.0, invalid="no tag")
    assert models.add([[broken]]) == 0 == models.add([])


def test_a_score_that_is_not_finite_is_an_error_of_that_answer() -> None:
    models = fixed(1.0, math.nan, math.inf)
    group = [answer(), answer(), answer()]
    models.add([group])
    assert [s.reward for s in group] == [1.0, None, None]
    causes = [s.outcome.error for s in group if s.outcome is not None]
    assert causes == ["", "rm: its score is nan, not a finite number", "rm: its score is inf, not a finite number"]


def test_a_model_that_scores_nothing_stops_the_run() -> None:
    models = fixed(*[math.nan] * 8, share=0.05)
    message = r"8 of the last 8 answers .* first: rm: its score is nan.* 8 x rm.*--dtype float32"
    with pytest.raises(EspalierError, match=message):
        models.add([[answer() for _ in range(8)]])


def test_a_token_that_the_model_does_not_have_is_an_error() -> None:
    models = fixed(1.0)
    odd, good = answer(), answer()
    odd.tokens[-2] = 200
    models.add([[odd, good]])
    assert (odd.reward, good.reward) == (None, 1.0)
    assert odd.outcome is not None and odd.outcome.error == "rm: the answer has a token beyond its 128"


def test_other_tokens_are_refused_with_what_differs(tmp_path: Path) -> None:
    path = reward_model(tmp_path / "rm")
    more = tiny_tokenizer()
    more.add_tokens(["<extra>"])
    swapped = tiny_tokenizer(template=TEMPLATE.replace("user", "human").replace("\n'", "'"))
    rows = ((more, r"numbers 1 of the policy's 103 tokens in another way, such as '<extra>'"),
            (swapped, "has another chat template than the policy"))  # fmt: skip
    for tokenizer, what in rows:
        with pytest.raises(ConfigError, match=rf"reward_model: .*rm {what}\. .*--reward PATH\.py:FUNCTION") as caught:
            build(path, tokenizer=tokenizer)
        assert caught.value.key == "reward_model"
    assert difference(tiny_tokenizer(), more) == "has 1 tokens that the policy does not have, such as '<extra>'"
    padded = tiny_tokenizer()
    padded.add_special_tokens({"pad_token": "<|pad|>"})
    assert difference(tiny_tokenizer(), padded) == ""


def test_longer_answers_than_the_model_takes_are_refused(tmp_path: Path) -> None:
    models = build(reward_model(tmp_path / "rm"))
    models.check_room(254)
    with pytest.raises(ConfigError, match=r"rm takes 256 tokens, and .* may have 257; lower --max-tokens"):
        models.check_room(255)


def test_what_is_said_of_a_model(tmp_path: Path) -> None:
    models = build(reward_model(tmp_path / "rm") + "=2")
    size = models.members[0].model.frozen.total
    first, *_ = models.lines()
    assert first == f"reward model rm x 2: {tmp_path / 'rm'}, {size:,} parameters, 4 bytes a weight, 0.00 GiB"
    assert models.bytes(2) == size * 2
