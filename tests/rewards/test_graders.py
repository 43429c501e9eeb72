"""Graders: who grades what, texts and places of tokens, and when errors stop a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from espalier.config.rollout_sections import RewardsConfig
from espalier.errors import EspalierError
from espalier.outcomes import Graded, Key, Outcome
from espalier.rewards.build import plan
from espalier.rewards.graders import ErrorShare, WorkerGraders
from espalier.types import Message, Prompt, Sample, Task

WORDS = {0: "<s>", 1: "</s>", 2: "Two ", 3: "and ", 4: "two. ", 5: "Four", 6: "!", 7: "<b>"}
USER = """
import os

def short(prompt, response, **task):
    return 1.0 if len(response) < 8 else 0.0

def steps(prompt, response, **task):
    end = response.index(". ") + 1
    return {"steps": [(end, 1.0), (len(response), -1.0)], "score": 0.5}

def picky(prompt, response, **task):
    if task["row"] == 3:
        raise ValueError("three")
    if response == "":
        return {"invalid": "empty"}
    return None if "level" not in task else float(task["level"])

def seen(prompt, response, **task):
    return {"prompt": len(prompt), "response": len(response), "ids": len(task["ids"]), "cut": task["stop"] == "length"}
"""


def decode(ids: Sequence[int]) -> str:
    return "".join(WORDS[token] for token in ids)


def task(answer: str = "", verifier: str = "", **columns: object) -> Task:
    prompt = (Message("system", "Add."), Message("user", "2 + 2?"))
    return Task(prompt, answer=answer, verifier=verifier, columns=columns)


def sample(prompt: Prompt, *response: int, stop: str = "stop") -> Sample:
    s = Sample(stop=stop)  # type: ignore[arg-type]
    s.append(prompt.tokens, trained=False)
    s.append(list(response), trained=True)
    return s


def next_of(graders: WorkerGraders) -> Outcome:
    """The outcome of the only response in flight."""
    ready: list[tuple[Key, Outcome]] = []
    while not ready:
        ready = graders.finished(wait=True)
    assert len(ready) == 1
    return ready[0][1]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rewards") / "mine.py"
    path.write_text(USER)
    return path


@pytest.fixture(scope="module")
def graders(file: Path) -> Iterator[WorkerGraders]:
    rewards = ("exact=2", f"{file}:short=0.5", f"{file}:steps", f"{file}:picky", f"{file}:seen")
    config = RewardsConfig(reward=rewards, reward_workers=1, reward_timeout=5.0, invalid_score=-1.0)
    graders = plan(config).start(decode, stop=[1])
    yield graders
    graders.close()


def test_a_task_is_graded_by_all_that_it_has_the_fields_for(graders: WorkerGraders) -> None:
    users = ("short", "steps", "picky", "seen")
    assert graders.grades(task("4")) == ("exact", *users)
    assert graders.grades(task()) == users
    assert graders.grades(task("4", "exact")) == ("exact", *users)
    assert graders.grades(task("4", "short")) == users
    assert graders.grades(task("", "exact")) == () and graders.grades(task("4", "math")) == ()
    assert graders.refusal(task("", "exact")) == "its verifier exact needs answer, which it does not have"
    assert graders.refusal(task("4", "maths")).startswith("its verifier maths is not among the rewards (exact, short")


def test_a_task_that_nobody_grades_says_what_is_missing() -> None:
    grading = plan(RewardsConfig(reward=("exact", "numeric"))).grading
    graders = WorkerGraders(grading, None, decode=decode)  # type: ignore[arg-type]
    assert graders.grades(task()) == ()
    assert graders.refusal(task()) == "no reward grades it: exact needs answer, numeric needs answer"
    assert graders.best == 2.0
    assert graders.grades(task("4", "exact")) == ("exact",) and graders.best == 1.0


def test_a_response_is_graded_without_its_stop_token(graders: WorkerGraders) -> None:
    prompt = Prompt(5, [0, 0], task())
    for stop, ids, characters in (("stop", [7, 5, 1], 7), ("length", [7, 5, 1], 11), ("stop", [7, 5, 6], 8)):
        graders.submit_names(prompt, sample(prompt, *ids, stop=stop), ("seen",))
        outcome = next_of(graders)
        assert outcome.parts["seen.response"] == Graded(characters)
        assert outcome.parts["seen.ids"] == Graded(3) and outcome.parts["seen.prompt"] == Graded(6)
        assert outcome.parts["seen.cut"] == Graded(stop == "length")


def test_outcomes_are_weighted_sums(graders: WorkerGraders) -> None:
    outcomes = graders.grade([(task("Four"), "Four"), (task("Four"), "Four four four")], ("exact", "short"))
    assert outcomes == [
        Outcome(2.5, {"exact": Graded(1.0, 2.0), "short": Graded(1.0, 0.5)}),
        Outcome(0.0, {"exact": Graded(0.0, 2.0), "short": Graded(0.0, 0.5)}),
    ]


def test_each_answer_has_its_own_fate(graders: WorkerGraders) -> None:
    tasks = [(task(level=1), "a"), (task(level=2), ""), (task(), "a"), (task(level=4), "a")]
    scored, invalid, nothing, failed = graders.grade(tasks, ("picky",))
    assert scored == Outcome(1.0, {"picky": Graded(1.0)})
    assert invalid == Outcome(-1.0, invalid="picky: empty")
    assert nothing.error == "picky: does not apply to this task"
    assert failed.error == "picky: ValueError: three (mine.py:13)"


def test_ends_of_steps_become_places_of_tokens(graders: WorkerGraders) -> None:
    prompt = Prompt(0, [0], task())
    # "Two and two. Four!": the first step ends behind the period, which the third token holds.
    graders.submit_names(prompt, sample(prompt, 2, 3, 4, 5, 6, 1), ("steps",))
    outcome = next_of(graders)
    assert (outcome.score, outcome.steps) == (0.5, ((2, 1.0), (4, -1.0)))


def test_a_character_ends_with_the_last_of_its_tokens() -> None:
    from espalier.rewards.graders import Places

    pieces = {1: b"a", 2: b"\xf0\x9f", 3: b"\x98\x80", 4: b"b"}

    def of_bytes(ids: Sequence[int]) -> str:
        return b"".join(pieces[token] for token in ids).decode("utf-8", "replace")

    ids = [1, 2, 3, 4]
    places = Places(of_bytes, ids, of_bytes(ids))
    assert [places(end) for end in (1, 2, 3)] == [0, 2, 3]
    with pytest.raises(ValueError, match="a step ends at character 4; the response has 3"):
        places(4)


def test_finished_without_waiting_returns_what_is_there(graders: WorkerGraders) -> None:
    assert not graders.busy and graders.finished(wait=True) == [] and graders.finished(wait=False) == []
    prompt = Prompt(5, [0], task("Four"))
    for k in range(20):
        graders.submit((5, 0, k), prompt, sample(prompt, 2, 3, 4, 5, 1))
    outcomes = {}
    while graders.busy:
        outcomes |= dict(graders.finished(wait=True))
    assert set(outcomes) == {(5, 0, k) for k in range(20)}
    # Nothing of what they are graded by is in the task: picky does not apply, exact is wrong.
    assert {outcome.parts["exact"] for outcome in outcomes.values()} == {Graded(0.0, 2.0)}


def test_too_many_errors_stop_with_the_first_cause_and_counts() -> None:
    share = ErrorShare(0.05)
    for n in range(190):
        share.count(Outcome(1.0) if n % 20 else Outcome(0.0, error="math: no answer within 10 s"))
    with pytest.raises(EspalierError) as caught:
        share.count(Outcome(0.0, error="judge: HTTPError: 503"))
    assert str(caught.value).startswith(
        "11 of the last 191 answers could not be graded, and max_error_share allows 0.05 of 200; "
        "first: math: no answer within 10 s; all by cause: 10 x math: no answer within 10 s; 1 x judge: HTTPError: 503."
    )


def test_only_the_last_200_answers_count() -> None:
    share = ErrorShare(0.05)
    for n in range(2000):
        share.count(Outcome(0.0, error="x: y") if n % 20 == 0 else Outcome(1.0))
    assert sum(bool(error) for error in share.last) == 10


def test_a_reward_that_never_works_stops_early_and_one_that_may_fail_always_does_not() -> None:
    share = ErrorShare(0.5)
    with pytest.raises(EspalierError, match="8 of the last 8 answers"):
        for _ in range(8):
            share.count(Outcome(0.0, error="x: y"))
    allowed = ErrorShare(1.0)
    for _ in range(300):
        allowed.count(Outcome(0.0, error="x: y"))
    with pytest.raises(EspalierError, match="1 of the last 1 "):
        ErrorShare(0.0).count(Outcome(0.0, error="x: y"))


def test_graders_stop_the_run_when_too_many_fail(file: Path) -> None:
    config = RewardsConfig(reward=(f"{file}:picky",), reward_workers=1)
    graders = plan(config).start(decode)
    try:
        prompt = Prompt(3, [0], task(level=1))
        with pytest.raises(EspalierError, match=r"first: picky: ValueError: three \(mine.py:13\)"):
            for k in range(8):
                graders.submit((3, 0, k), prompt, sample(prompt, 5))
            while graders.busy:
                graders.finished(wait=True)
    finally:
        graders.close()


def test_a_worker_loads_without_torch(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "modules.py"
    path.write_text(
        "import sys\ndef reward(response): return float('torch' in sys.modules or 'numpy' in sys.modules)\n"
    )
    graders = plan(RewardsConfig(reward=("exact", f"{path}:reward"))).start(decode)
    try:
        assert graders.grade([(task("4"), "4")])[0].parts == {"exact": Graded(1.0), "reward": Graded(0.0)}
    finally:
        graders.close()


def test_reward_models_leave_no_task_without_a_grader(file: Path) -> None:
    """Tasks that rules do not grade, and rules that do not apply, come to 0 without parts, for the models to add to."""
    rewards = RewardsConfig(reward=("exact", f"{file}:picky"), reward_model=("m",), reward_workers=1)
    graders = plan(rewards).start(decode, stop=[1])
    try:
        bare, named = task(), task("", "exact")
        assert graders.refusal(bare) == graders.refusal(named) == graders.refusal(task("", "math")) == ""
        assert graders.grades(bare) == graders.grades(named) == ("picky",)
        assert graders.best is None
        graders.submit((0, 0, 0), Prompt(0, [9], bare), sample(Prompt(0, [9], bare), 5))
        assert next_of(graders) == Outcome(0.0)
        graders.submit((0, 0, 0), Prompt(0, [9], bare), sample(Prompt(0, [9], bare)))
        assert next_of(graders).invalid == "picky: empty"
    finally:
        graders.close()
    alone = plan(RewardsConfig(reward_model=("m",))).start(decode)
    alone.submit((0, 0, 1), Prompt(0, [9], bare), sample(Prompt(0, [9], bare), 5))
    assert alone.busy and alone.finished(wait=True) == [((0, 0, 1), Outcome(0.0))] and not alone.busy
    alone.close()


def test_rewards_that_are_asked_alone_are_held_to_apply(file: Path) -> None:
    """Checks ask one reward at a time: reward models do not stand in for one that does not apply."""
    rewards = RewardsConfig(reward=(f"{file}:picky",), reward_model=("m",), reward_workers=1)
    graders = plan(rewards).start(decode, stop=[1])
    try:
        assert graders.grade([(task(), "Four")], ["picky"])[0].error == "picky: does not apply to this task"
        assert graders.grade([(task(), "Four")]) == [Outcome(0.0)]
    finally:
        graders.close()
