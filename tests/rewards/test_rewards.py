"""docs/rewards.md: its table is the catalogue, and its examples run."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from espalier.config.rollout_sections import RewardsConfig
from espalier.outcomes import Outcome
from espalier.rewards.build import plan
from espalier.rewards.builtin import BUILTIN
from espalier.rewards.graders import WorkerGraders
from espalier.rewards.reward import Reward, Setting
from espalier.types import Message, Prompt, Sample, Task

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "rewards.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n# rewards/(\w+\.py)\n(.*?)^```", DOCUMENT, re.M | re.S)
GRADED = {
    # function: (response, answer, level, what it must come to)
    "concise": ("It is 4." + " " * 93, "4", 3, Outcome(0.9)),
    "manners": ("Four, please.", "4", 3, Outcome(2.0)),
    "equations": ("1+1=2\nso 2", "2", 3, Outcome(0.0, steps=((5, 1.0), (9, 0.0)))),
    "shouting": ("FOUR", "4", 3, Outcome(-1.0)),
    "remote": ("It is 4.", "4", 3, Outcome(1.0)),
    "marked": ("So\n#### 4", "4", 3, Outcome(1.0)),
    "compute_score": ("4 ", "4", 3, Outcome(1.0)),
}


def cells(reward: Reward) -> list[str]:
    needs = ", ".join(f"`{need}`".replace("|", "` or `") for need in reward.needs)
    best = "none" if reward.best is None else f"{reward.best:g}"
    settings = "; ".join(f"`{key}` {shown(setting)}" for key, setting in reward.settings.items())
    row = [f"`{reward.name}`", needs or "nothing", reward.about, best, "yes" if reward.gold else "", settings]
    return [plain(cell) for cell in row]


def plain(cell: str) -> str:
    """A cell without marks of code, inside which blanks are needed around a fence."""
    return " ".join(cell.replace("`", "").split())


def shown(setting: Setting) -> str:
    choices = f" ({', '.join(choice or 'empty' for choice in setting.choices)})" if setting.choices else ""
    return value(setting.default) + choices


def value(default: float | int | bool | str) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    return (default or "empty") if isinstance(default, str) else f"{default:g}"


def test_the_document_has_the_catalogue() -> None:
    table = DOCUMENT.split("## The catalogue")[1].split("\n\n")[1]
    rows = [[plain(cell) for cell in line[1:-1].split("|")] for line in table.splitlines()[2:]]
    assert rows == [cells(reward) for reward in BUILTIN.values()]


@pytest.fixture(scope="module")
def graders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerGraders]:
    folder = tmp_path_factory.mktemp("rewards")
    for name, source in EXAMPLES:
        (folder / name).write_text(source, encoding="utf-8")
    names = [f"{folder / file}:{function}" for file, source in EXAMPLES for function in functions(source)]
    graders = plan(RewardsConfig(reward=tuple(names), reward_workers=1)).start(decode, stop=(0,))
    yield graders
    graders.close()


def functions(source: str) -> list[str]:
    return re.findall(r"^(?:async )?def (\w+)", source, re.M)


def decode(ids: Sequence[int]) -> str:
    return "".join(map(chr, ids))


def graded(graders: WorkerGraders, function: str, response: str, answer: str, level: int) -> Outcome:
    task = Task((Message("user", "2 + 2?"),), answer=answer, columns={"level": level})
    prompt, s = Prompt(0, [1, 2], task), Sample(stop="stop")
    s.append(prompt.tokens, trained=False)
    s.append([*map(ord, response), 0], trained=True)
    graders.submit_names(prompt, s, [function])
    while True:
        for _, outcome in graders.finished(wait=True):
            return outcome


def test_every_example_is_tried() -> None:
    assert [name for _, source in EXAMPLES for name in functions(source)] == list(GRADED)


@pytest.mark.parametrize("function", GRADED)
def test_an_example_comes_to_what_it_says(function: str, graders: WorkerGraders) -> None:
    response, answer, level, expected = GRADED[function]
    outcome = graded(graders, function, response, answer, level)
    assert (outcome.error, outcome.invalid) == ("", "")
    assert outcome.score == pytest.approx(expected.score) and outcome.steps == expected.steps


def test_what_does_not_apply_and_what_does_not_qualify(graders: WorkerGraders) -> None:
    assert graded(graders, "concise", "It is 4.", "", 1).error == "concise: does not apply to this task"
    assert graded(graders, "manners", " ", "4", 1).invalid == "manners: empty"
    assert graded(graders, "equations", "", "4", 1).invalid == "equations: empty"
    assert graded(graders, "compute_score", "4", "4", 1).parts["compute_score.characters"].weight == 0
