"""An example in the form that a run consumes: conversations, rankings, solutions in steps or tasks."""

from __future__ import annotations

from collections.abc import Sequence

from espalier.data.formats.tasks import as_task
from espalier.data.render.rankings import levels
from espalier.data.render.trees import rankings, threads
from espalier.errors import RowError
from espalier.types import Chat, Consumes, Example, Message, Ranking, Response, Steps, Tree

_KIND: dict[type, str] = {Ranking: "a ranking", Steps: "a solution in steps", Tree: "a conversation tree"}


WRONG = ("no good response", "not known to be right")
"""Reasons of answers that are judged, and not good."""


def expand(example: Example, consumes: Consumes, *, keep_wrong: bool = False) -> Sequence[Example | RowError]:
    """What a run that consumes chats, rankings, steps or tasks makes of an example, at least one thing.

    chat: a ranking is the conversation that ends in its best response, a solution in steps one that is known to be
    right; a tree stays whole. ranking: a tree is its groups of ranked siblings, a solution in steps a response that is
    good or bad as a whole. steps: solutions in steps alone. task: the prompt alone, without the answers that follow it.
    Everything else is a RowError.
    With `keep_wrong`, a chat may end in an answer that is not good.
    """
    if consumes == "task":
        return [_as_task(example)]
    if consumes == "steps":
        return [_as_steps(example)]
    if consumes == "ranking":
        return rankings(example) if isinstance(example, Tree) else [_as_ranking(example)]
    return [_as_chat(example, keep_wrong)]


def _as_task(example: Example) -> Example | RowError:
    try:
        return as_task(example)
    except RowError as error:
        return error


def _as_steps(example: Example) -> Example | RowError:
    if isinstance(example, Steps):
        return example
    return _refused(example, "no steps", "a solution in steps with labels", _command(example))


def _as_ranking(example: Example) -> Example | RowError:
    match example:
        case Ranking():
            return example
        case Steps(solved=bool()):
            response = Response(_joined(example), good=example.solved)
            return Ranking(example.prompt, (response,), origin=example.origin, template_args=example.template_args)
    expected = "a pair, a ranked list, scores, labels or a tree of ranked answers"
    return _refused(example, "no judgement", expected, _command(example))


def _as_chat(example: Example, keep_wrong: bool) -> Example | RowError:
    match example:
        case Ranking():
            return best(example, keep_wrong=keep_wrong)
        case Tree() if not threads(example):
            return _refused(example, "no assistant turn", "an assistant message to learn from")
        case Steps():
            right = example.solved
            if right is None:
                right = all(label is not None and label > 0.5 for label in example.labels)
            if not right and not keep_wrong:
                expected = "a solution that is solved, or whose steps are all good"
                return _refused(example, "not known to be right", expected)
            return Chat((*example.prompt, _joined(example)), origin=example.origin, template_args=example.template_args)
    return example


def best(ranking: Ranking, *, keep_wrong: bool = False) -> Chat | RowError:
    """The conversation that ends in a ranking's best response: of those labelled good if any label is known, the first
    of the highest level (`rankings.levels`, dimensions weighed alike).

    A RowError if the best response is not known: no label is good, or all of several are level, or the only one has a
    score or a rank alone.
    """
    known = levels(ranking, {})
    labelled = any(response.good is not None for response in ranking.responses)
    if keep_wrong and labelled and not any(response.good for response in ranking.responses):
        message = ranking.responses[0].message
        return Chat((*ranking.prompt, message), ranking.tools, ranking.origin, ranking.template_args)
    choice = [i for i, response in enumerate(ranking.responses) if not labelled or response.good]
    if not choice:
        got = f"{_count(ranking)}, none labelled good"
        return RowError("no good response", got=got, expected="one to learn from")
    judged = [level for level in known if level is not None]
    if not labelled and (len(judged) < 2 or min(judged) == max(judged)):
        got = f"{_count(ranking)}, {len(judged)} judged, none better than another"
        return RowError("no best response", got=got, expected="one that is better than another")
    # A response that is not judged comes last; of equals, max keeps the first.
    heights = [float("-inf") if level is None else level for level in known]
    top = max(choice, key=heights.__getitem__)
    messages = (*ranking.prompt, ranking.responses[top].message)
    return Chat(messages, ranking.tools, ranking.origin, ranking.template_args)


def _count(ranking: Ranking) -> str:
    return f"{len(ranking.responses)} response{'' if len(ranking.responses) == 1 else 's'}"


def _joined(steps: Steps) -> Message:
    return Message("assistant", steps.separator.join(steps.steps))


def _refused(example: Example, reason: str, expected: str, fix: str = "") -> RowError:
    got = _KIND.get(type(example), f"a {type(example).__name__.lower()}")
    return RowError(reason, got=got, expected=expected, fix=fix)


def _command(example: Example) -> str:
    """Which command such examples are for."""
    match example:
        case Steps():
            return "Solutions in steps are for `espalier prm`"
        case Ranking(responses=(_,)) if example.responses[0].good is not None:
            return "Answers that are labelled good or bad are for `espalier kto` or `espalier bco`"
        case Ranking():
            return "Pairs, ranks and scores are for `espalier dpo` or `espalier reward`"
        case Tree():
            return "Trees are for `espalier sft` or, with ranks, `espalier dpo` and `espalier reward`"
    return "Conversations and texts without a judgement are for `espalier sft`"
