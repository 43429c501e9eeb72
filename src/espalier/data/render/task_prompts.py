"""The prompt of a task as tokens: what a sampler is given."""

from __future__ import annotations

from typing import TYPE_CHECKING

from espalier.data.render.bad_turns import check_system, merged
from espalier.data.render.control import closed
from espalier.data.render.drafts import Draft, RenderedGroup
from espalier.errors import RowError
from espalier.types import Chat, Task

if TYPE_CHECKING:
    from espalier.data.render.chats import Chats

TOO_LONG = "no room for an answer"
_WAY_OUT = "Lower --max-tokens, raise --max-length if the model takes more, or skip such rows with --on-bad-row skip"


def prompt_ids(chats: Chats, chat: Chat) -> list[int]:
    """The ids that a sampler is given before an assistant turn that follows a conversation. Raises RowError."""
    sealed = chats.prompt(chat)
    text = sealed.write(len(sealed.messages), generate=True)
    return chats.head(text) + chats.codec.encode(text, sealed.seal).ids


def task_prompt(chats: Chats, task: Task, key: int) -> RenderedGroup:
    """The group of one sample that is a task's prompt, of which nothing is trained.

    A last assistant message is text behind the generation prompt, which the policy goes on with. Raises RowError for a
    prompt that leaves no room for an answer, and for a task that nobody can grade.
    """
    form = chats.form.tasks
    group = RenderedGroup("task")
    group.task = task
    if form is not None:
        problem = form.needs(task)
        if problem:
            named = f"the verifier {task.verifier}" if task.verifier else "no verifier"
            got = f"{named}, {'an answer' if task.answer else 'no answer'}, facts: {', '.join(task.facts) or 'none'}"
            fix = "Give a --reward that grades it, or leave such rows out with --on-bad-row skip"
            raise RowError(problem, got=got, expected="a task that a reward of the run grades", fix=fix)
        group.graders = form.graders(task)
    messages, begun = list(task.prompt), ""
    if messages and messages[-1].role == "assistant":
        begun = messages.pop().content
    if not messages:
        raise RowError("no prompt", got="an assistant turn alone", expected="a turn to answer")
    fitting = merged(messages, chats.form.turns)
    check_system(fitting.messages)
    group.noted = fitting.noted
    draft = Draft()
    draft.add(prompt_ids(chats, Chat(tuple(messages), task.tools, template_args=task.template_args)), 0.0, "prompt")
    draft.add(_begun(chats, begun, draft.sample.tokens), 0.0, "assistant")
    room = form.max_tokens if form is not None else 0
    limit, size = chats.max_length, len(draft.sample)
    if limit and size + max(room, 1) > limit:
        got = f"{size:,} tokens, and {max(room, 1):,} for the answer"
        raise RowError(TOO_LONG, got=got, expected=f"at most {limit:,} together", fix=_WAY_OUT)
    group.append(draft.finish(0, key))
    return group


def _begun(chats: Chats, text: str, before: list[int]) -> list[int]:
    """The ids of the beginning of an answer, behind those of its prompt."""
    if not text:
        return []
    codec, whole = chats.codec, chats.lookout.whole("completion")
    last = codec.added.get(before[-1])
    if last is not None and last.rstrip:
        text = text.lstrip()  # the token before takes the spaces behind it
    seal = codec.seal([(text, whole)])
    return codec.encode(closed(text, seal, whole), seal, "token" if last is not None else "text").ids
