"""Rankings, solutions in steps and trees: one sample a response, a solution or a thread; groups share prefixes."""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from espalier.data.render.drafts import EMPTIED, Draft, Judged, Rendered
from espalier.data.render.rankings import TOO_CLOSE, closer, comparisons, decides, labels, levels, score_weights
from espalier.data.render.steplabels import relabel
from espalier.data.render.trees import threads
from espalier.errors import RowError
from espalier.types import Chat, Message, Ranking, Response, Steps, Tree

if TYPE_CHECKING:
    from espalier.config.sections import PreferenceConfig
    from espalier.data.render.chats import Chats
    from espalier.data.render.form import Form

UNCOMPARED = "in no comparison"
UNJUDGED = "not judged"
NAMELESS = "score"  # the name of a ranking's only dimension, where it has none
_NOBODY = Message("assistant", "")


# ----------------------------------------------------------------------------------------------------------- rankings


@dataclass(slots=True)
class _Answer:
    """A response as tokens. whole: its tokens before the cut to max_length. level: how good it is, or None."""

    rendered: Rendered
    whole: tuple[int, ...]
    level: float | None


def ranking(chats: Chats, example: Ranking, key: int) -> Judged:
    """One sample a response, with that response trained and nothing else; the prompt's ids are the same in all.

    Left out and counted: responses that are empty, whose every token is behind max_length, that are not judged as
    `form.wants` asks, whose tokens equal an earlier response's (all of them, where they are judged differently), and
    that no comparison is left for. Raises RowError where what is left does not offer what the form wants.
    """
    form = chats.form
    group = Judged("ranking")
    group.judged_by = _decides(example, form)
    answers = _answers(chats, example, key, group)
    if form.reads or form.wants == "grades":
        _grade(example, answers, group)
    if form.wants == "grades":
        group.learned = True
        known = [a for a in answers if not all(math.isnan(x) for grade in a.rendered.sample.grades for x in grade)]
        group.drop(UNJUDGED, len(answers) - len(known))
        answers = known
    else:
        if form.wants == "labels":
            answers = _labelled(answers, group, form.preference)
        judged = [a for a in answers if a.level is not None]
        group.drop(UNJUDGED, len(answers) - len(judged))
        answers = _distinct(judged, group)
    if form.wants == "labels":
        said = Ranking((), tuple(Response(_NOBODY, good=a.level == 1.0) for a in answers))
        for answer, good in zip(answers, labels(said, form.preference, _draw_key(answers), form.seed), strict=True):
            answer.level = float(bool(good))
    for answer in answers:
        answer.rendered.sample.label = answer.level
    if form.wants in ("pairs", "comparisons"):
        answers = _compared(chats, answers, group)
    if not answers:
        missing = {"labels": "no good-or-bad label", "grades": "no score"}.get(form.wants, "")
        graded = "Answers that are compared are for --objective bradley_terry" if form.wants == "grades" else ""
        raise _nothing(group, missing, chats.max_length, fix=graded)
    for answer in answers:
        sample = answer.rendered.sample
        if form.reads or form.wants == "grades":
            sample.reads = [len(sample) - 1]
        group.append(answer.rendered)
    return group


def _answers(chats: Chats, example: Ranking, key: int, group: Judged) -> list[_Answer]:
    prompt = tuple(replace(m, weight=0.0) for m in example.prompt)
    found: list[_Answer] = []
    given: list[int] | None = None
    emptied: RowError | None = None
    how = chats.form.preference
    total = levels(example, score_weights(how), how.judged_by)
    for place, (response, level) in enumerate(zip(example.responses, total, strict=True)):
        m = response.message
        if not (m.content.strip() or m.reasoning or m.tool_calls):
            group.drop("empty response")
            continue
        (draft,) = chats.drafts(Chat((*prompt, replace(m, weight=1.0)), example.tools))
        before = draft.sample.tokens[: draft.turn_at]
        given = before if given is None else given
        if before != given:
            raise RowError(
                "responses have different prompts",
                field=f"responses[{place}]",
                got="a prompt that the chat template writes in another way than that of the responses before it",
                expected="one prompt for all responses",
                fix="Give all responses of a row reasoning, or none, or choose another --template",
            )
        whole = tuple(draft.sample.tokens)
        try:
            found.append(_Answer(draft.finish(chats.max_length, key, response), whole, level))
        except RowError as error:
            if error.reason != EMPTIED:
                raise
            emptied = error
            group.drop(EMPTIED)
    if emptied and not found:
        raise emptied
    return found


def _decides(example: Ranking, form: Form) -> str:
    """Which judgement decides, in the words of `Judged.judged_by`; where labels are wanted, they go first."""
    how = form.preference.judged_by
    if form.wants == "labels" and how == "auto" and any(response.good is not None for response in example.responses):
        return "labels"
    found = decides(example, how)
    return "dimensions" if found == "scores" and example.dimensions else found


def _labelled(answers: list[_Answer], group: Judged, how: PreferenceConfig) -> list[_Answer]:
    """Make levels of labels, 1 good and 0 bad: the responses' own where these decide, else whether they are on the
    better of exactly two levels. Where such two are less than `min_gap` apart, no answer is left."""
    group.labelled = True
    if group.judged_by == "labels":
        for answer in answers:
            good = answer.rendered.response.good if answer.rendered.response else None
            answer.level = None if good is None else float(good)
        return answers
    found = sorted({answer.level for answer in answers if answer.level is not None})
    if len(found) == 2 and closer(found[0], found[1], how.min_gap):
        unjudged = [answer for answer in answers if answer.level is None]
        group.drop(TOO_CLOSE, len(answers) - len(unjudged))
        return unjudged
    for answer in answers:
        answer.level = float(answer.level == found[1]) if len(found) == 2 and answer.level is not None else None
    return answers


def _grade(example: Ranking, answers: Sequence[_Answer], group: Judged) -> None:
    """Fill `grades` where the row has scores, nan where a response has none in a dimension; else leave them empty."""
    if not any(score is not None for response in example.responses for score in response.scores):
        return
    width = max(len(response.scores) for response in example.responses)
    group.dimensions = example.dimensions or (NAMELESS,) * width
    for answer in answers:
        scores = (answer.rendered.response.scores if answer.rendered.response else ()) or (None,) * width
        if len(scores) != len(group.dimensions):
            raise RowError(
                "scores in other dimensions",
                got=f"{len(scores)} scores",
                expected=f"{len(group.dimensions)}, for {', '.join(group.dimensions)}",
            )
        answer.rendered.sample.grades = [tuple(math.nan if score is None else float(score) for score in scores)]


def _distinct(answers: Sequence[_Answer], group: Judged) -> list[_Answer]:
    """Answers of equal tokens are one answer, or none where they are judged differently: no model can tell them
    apart."""
    same: dict[tuple[int, ...], list[_Answer]] = {}
    for answer in answers:
        same.setdefault(tuple(answer.rendered.sample.tokens), []).append(answer)
    kept = []
    for equal in same.values():
        keep = len({a.level for a in equal}) == 1
        kept += equal[:keep]
        for answer in equal[keep:]:
            twin = any(answer.whole == other.whole for other in equal if other is not answer)
            group.drop("identical responses" if twin else CUT)
    return kept


def _compared(chats: Chats, answers: Sequence[_Answer], group: Judged) -> list[_Answer]:
    """The answers that are compared with another, `beats` and `ties` filled. Raises RowError where none is."""
    form = chats.form
    found = comparisons([a.level for a in answers], form.preference, _draw_key(answers), form.seed)
    for reason, count in found.dropped.items():
        group.drop(reason, count)
    used = {
        place for of in (found.beats, found.ties) for i, others in enumerate(of) for place in (i, *others) if others
    }
    if not used or (form.wants == "pairs" and not any(found.beats)):
        missing = "no strict preference" if form.wants == "pairs" else "no comparison"
        raise _nothing(group, missing, chats.max_length, len(answers), _elsewhere(answers))
    place_of = {place: number for number, place in enumerate(sorted(used))}
    for place in place_of:
        sample = answers[place].rendered.sample
        sample.beats = [place_of[other] for other in found.beats[place]]
        sample.ties = [place_of[other] for other in found.ties[place]]
    if len(used) < len(answers):
        group.drop(UNCOMPARED, len(answers) - len(used))
    return [answers[place] for place in place_of]


def _draw_key(answers: Sequence[_Answer]) -> int:
    """What is drawn for a row follows from its tokens, so that it stays when rows are added, and in every command."""
    state = hashlib.blake2b(digest_size=7)
    for answer in answers:
        state.update(np.array([len(answer.whole), *answer.whole], "<i8").tobytes())
    return int.from_bytes(state.digest(), "little")


def _elsewhere(answers: Sequence[_Answer]) -> str:
    """Which command answers are for that cannot be compared, each being judged for itself."""
    responses = [a.rendered.response for a in answers if a.rendered.response is not None]
    if any(r.good is not None for r in responses):
        return "Answers that are labelled good or bad are for `espalier kto` or `espalier bco`"
    if len(responses) == 1 and any(score is not None for score in responses[0].scores):
        return "Single answers with scores are for `espalier reward --objective pointwise`"
    return ""


def _nothing(group: Judged, reason: str, limit: int = 0, left: int = 0, fix: str = "") -> RowError:
    """Why a row is refused: `reason`, or what was wrong with its responses, which are cut to `limit` tokens, where no
    two are `left` that are judged and differ."""
    bad = [name for name in group.dropped if name in _FAULTS and left < 2]
    why = bad[0] if bad else reason
    if why == CUT:
        return RowError(
            CUT,
            got=f"{group.dropped[CUT]} responses that are cut to the same tokens",
            expected=f"responses that differ among the first {limit} tokens, prompt included",
            fix="Raise --max-length, where the model takes more, or leave such rows out with --on-bad-row skip",
        )
    told = ", ".join(f"{name} ({count})" for name, count in group.dropped.items())
    level = {0: "none that is judged" if UNJUDGED in group.dropped else "none", 1: "1 response"}.get(
        left, f"{left} responses, none better than another"
    )
    if not bad and told:
        told = f"{level}; left out: {told}"
    return RowError(why, got=told or level, expected=_EXPECTED.get(reason, ""), fix="" if bad else fix)


CUT = "identical after the cut"
_FAULTS = ("empty response", EMPTIED, "identical responses", CUT)
_EXPECTED = {
    "no strict preference": "a response that is preferred to another one",
    "no comparison": "a preference or a tie between two responses",
    "no good-or-bad label": "labels, or responses on exactly two levels",
    "no score": "a score of one response at least",
}


# -------------------------------------------------------------------------------------------------------------- steps


def steps(chats: Chats, example: Steps, key: int) -> Judged:
    """One sample: the solution as an ordinary turn, labelled as the form says.

    `reads` are where each step's last visible character is; `label` is whether the solution is right.
    The last step, too, is read at its own last token, not at the stop token behind it: all steps are then read alike,
    and a solution that is still being written can be scored before it has a stop token. Reads behind max_length are
    left out and counted. Raises RowError for an empty step, and for two steps that end in one token.
    """
    group = Judged("steps")
    if len(example.labels) != len(example.steps):
        raise RowError("steps without labels", got=f"{len(example.labels)} labels", expected=str(len(example.steps)))
    example = relabel(example, chats.form.labels)
    text = example.separator.join(example.steps)
    prompt = tuple(replace(m, weight=0.0) for m in example.prompt)
    (draft,) = chats.drafts(Chat((*prompt, Message("assistant", text, weight=1.0))))
    reads = _step_ends(draft, example, text)
    grades: list[tuple[float, ...]] = [(math.nan if label is None else float(label),) for label in example.labels]
    rendered = draft.finish(chats.max_length, key)
    sample = rendered.sample
    sample.reads = [read for read in reads if read < len(sample)]
    if not sample.reads:
        raise RowError(
            EMPTIED, got=f"a first step of {reads[0] + 1 - draft.turn_at} tokens", expected="its end before max_length"
        )
    sample.grades = grades[: len(sample.reads)]
    if all(math.isnan(x) for (x,) in sample.grades):
        raise RowError("no label before the cut", got=f"{len(sample.reads)} steps without one", expected="a label")
    if cut := len(reads) - len(sample.reads):
        group.drop("step behind the cut", cut)
    sample.label = None if example.solved is None else float(example.solved)
    group.append(rendered)
    return group


def _step_ends(draft: Draft, example: Steps, text: str) -> list[int]:
    """The token that holds the last visible character of each step."""
    said = draft.said.rstrip()
    for content in (text.rstrip(), text.strip()):  # templates may strip on the left
        if content and said.endswith(content):
            break
    else:
        raise RowError(
            "template changes the solution",
            got=repr(said[-60:]),
            expected=repr(text.rstrip()[-60:]),
            fix="Choose another --template",
        )
    at = len(said) - len(text.rstrip())  # negative by what was stripped
    starts, found = draft.turn.starts(), []
    for number, step in enumerate(example.steps):
        if not step.strip():
            raise RowError("empty step", field=f"steps[{number}]", got=repr(step), expected="some text")
        last = at + len(step.rstrip()) - 1
        found.append(draft.turn_at + bisect_right(starts, last) - 1)
        at += len(step) + len(example.separator)
        if found[1:] and found[-1] == found[-2]:
            raise RowError(
                "two steps end in one token",
                field=f"steps[{number}]",
                got=repr(step[:40]),
                expected="steps that end in tokens of their own",
                fix="Join these steps, or choose another separator",
            )
    return found


# -------------------------------------------------------------------------------------------------------------- trees


def tree(chats: Chats, example: Tree, key: int) -> Judged:
    """One sample a root-to-leaf thread. A message is trained in the first thread, in preorder, that it is in.

    Threads that train nothing of their own are left out; those whose own messages are all behind max_length are
    counted. Raises RowError where no thread is left, or one cannot be rendered.
    """
    group = Judged("tree")
    done: set[int] = set()
    emptied: RowError | None = None
    for thread in threads(example):
        nodes = [example.nodes[i].message for i in thread]
        every = chats.train_on == "all"
        messages = tuple(
            replace(m, weight=0.0) if i in done and not every else m for i, m in zip(thread, nodes, strict=True)
        )
        trained = chats.weights(messages)
        if not any(trained):
            continue
        for draft in chats.drafts(Chat(messages), apart=True):
            if every:
                _mask(draft, chats, messages[: sum(i in done for i in thread)])
            try:
                group.append(draft.finish(chats.max_length, key))
            except RowError as error:
                if error.reason != EMPTIED:
                    raise
                emptied = error
                group.drop(EMPTIED)
        done.update(thread if every else (i for i, weight in zip(thread, trained, strict=True) if weight))
    if not group:
        raise emptied or _nothing(group, "nothing to train")
    return group


def _mask(draft: Draft, chats: Chats, shared: tuple[Message, ...]) -> None:
    """Train nothing of the messages that a thread begins with, their markup included."""
    if not shared:
        return
    sample = draft.sample
    (before,) = chats.drafts(Chat(tuple(replace(m, weight=1.0) for m in shared)), apart=True)
    n = len(before.sample)
    if sample.tokens[:n] != before.sample.tokens:
        raise RowError(
            "template rewrites a message of several threads",
            expected="a chat template under which later messages leave earlier ones as they are",
            fix="Leave train_on out, or choose another template",
        )
    sample.mask[:n], sample.weights[:n] = [False] * n, [0.0] * n
    draft.spans = [span._replace(trained=span.trained and span.start >= n) for span in draft.spans]
