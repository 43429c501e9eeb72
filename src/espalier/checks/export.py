"""The check at the end of a run: `model/`, loaded by transformers alone, says what the model in training says.

Nothing of Espalier's loading or writing is used on the side of the export: `AutoModel...`, `AutoTokenizer` and peft
read the folder as a user would.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from espalier.checks.expected import Plain, as_dict
from espalier.checks.exported import Exported, Unloadable, room_for
from espalier.checks.model import LAYOUT_LIMIT, one_by_one
from espalier.checks.table import Outcome, failed, passed, skipped
from espalier.data.render.bad_turns import usable
from espalier.data.render.calls import FORMS
from espalier.errors import RowError
from espalier.types import Chat, Example, Message, Ranking, Sample, Steps, Task

if TYPE_CHECKING:
    from torch import Tensor

    from espalier.assembly.session import Session
    from espalier.checks.evidence import Evidence, Row
    from espalier.data.render.drafts import Rendered
    from espalier.data.render.renderer import Renderer

SAMPLES = 2
AMONG = 16
"""Rows among which the shortest samples are taken."""
FLOAT32_LIMIT = 1e-4
"""Nats a token, or score, between two float32 forwards of the same weights."""
HALF_LIMIT = 0.05
"""The least limit of a model stored in half precision."""
LIMIT = "as the live model: numbers, tokens, template, stop ids"
_WAY_OUT = "The model is in {folder}, and is not what was trained: do not use it. Report this with the run's folder"


def check_export(evidence: Evidence) -> Outcome:
    """What `model/` says of two samples when transformers alone loads it, against what the live model says of them."""
    session, chosen = evidence.session, evidence.chosen
    assert chosen is not None
    folder = Path(session.config.loop.out) / "model"
    rows = list(islice(evidence.few_rows(), AMONG))
    stored = [s for row in rows for s in row.stored]
    if session.rollouts is not None:
        # Nothing of a task's prompt is trained, and all of it can be compared.
        stored = [replace(s, mask=[True] * len(s), weights=[1.0] * len(s)) for s in stored]
    samples = _shortest(stored)
    if not samples:
        return skipped("no row to compare on", LIMIT)
    spoken = _said(session, samples)  # every rank takes part
    if not session.main:
        return skipped("checked by rank 0", LIMIT)
    reason = _not_checked(session)
    if reason:
        return skipped(reason, LIMIT)
    try:
        exported = Exported.load(session, folder)
    except Unloadable as error:
        return failed(f"transformers cannot load it: {error}", LIMIT, _WAY_OUT.format(folder=folder))
    faults = [
        *_checkpoint_faults(session, chosen),
        *_tokenizer_faults(session, exported, [row.example for row in rows]),
        *_stop_faults(session, exported, samples, _answer_ends(rows)),
    ]
    numbers = _compared(session, exported, samples, spoken)
    if numbers.apart > numbers.limit or numbers.apart != numbers.apart:
        faults.append(f"{numbers.shown}, expected at most {numbers.limit:.1e}")
    plain, note = _plain_faults(session, exported, rows, numbers.limit)
    faults += plain
    if faults:
        return failed("; ".join(faults), LIMIT, _WAY_OUT.format(folder=folder))
    return passed("; ".join(part for part in (numbers.shown, exported.summary, note) if part), LIMIT)


def _shortest(samples: Sequence[Sample]) -> list[Sample]:
    """The shortest samples of which something is said, a short forward each."""
    # One by one, they are compared with nothing.
    usable = [replace(s, beats=[], ties=[]) for s in samples if any(s.mask[1:]) or s.reads]
    return sorted(usable, key=len)[:SAMPLES]


def _not_checked(session: Session) -> str:
    """Why an export is not loaded a second time; empty if it is."""
    model: Any = session.learner.policy.model
    if any(getattr(parameter, "quant_state", None) is not None for parameter in model.parameters()):
        return "the base is quantised, and its export is another model by rounding"
    source = model.config
    if getattr(source, "auto_map", None) and not session.config.model.trust_remote_code:
        return "the family runs code of its own"
    return room_for(session)


# ------------------------------------------------------------------------------------------------------ the live model


@dataclass(frozen=True, slots=True)
class Said:
    """What the live model says of every sample, one after the other. judged: in its layout and compute dtype, as
    evaluation sees it. exact: one by one in float32, from the master weights; None if they are sharded."""

    judged: Tensor
    exact: Tensor | None


def _said(session: Session, samples: Sequence[Sample]) -> Said:
    import torch

    from espalier.models.heads import calibration_of

    learner = session.learner
    reads = session.traits.says == "reads"
    numbers: list[float] = []
    outputs_S = learner.say([[s] for s in samples], ["scores" if reads else "logprobs"])
    for outputs, s in zip(outputs_S, samples, strict=True):
        if reads:
            numbers += [x for scores in outputs.scores for x in scores]
        else:
            numbers += [outputs.logprobs[t] for t in range(1, len(s)) if s.mask[t]]
    judged = torch.tensor(numbers, dtype=torch.float64)
    if session.processes.size > 1:
        return Said(judged, None)
    with torch.no_grad(), _masters(learner):
        exact = one_by_one(learner.policy, samples).double().cpu()
    if reads:
        exact = calibration_of(learner.policy.model).apply(exact)
    return Said(judged, exact.flatten())


@contextmanager
def _masters(learner: Any) -> Iterator[None]:
    """Inside, every weight of the model in float32: the optimizer's masters, and what the compute dtype rounded. Read
    from the optimizer itself, not by the way that exports take."""
    import torch

    exact = {**learner.unrounded, **{name: master.data for name, master in learner.optimizer.masters.items()}}
    before: list[tuple[Any, Tensor]] = []
    for name, parameter in learner.policy.model.named_parameters():
        if not parameter.is_floating_point() or (name not in exact and parameter.dtype == torch.float32):
            continue
        before.append((parameter, parameter.data))
        parameter.data = exact.get(name, parameter.data).to(device=parameter.device, dtype=torch.float32)
    try:
        yield
    finally:
        for parameter, data in before:
            parameter.data = data


# ---------------------------------------------------------------------------------------------------------- comparison


@dataclass(frozen=True, slots=True)
class Numbers:
    """The largest difference, its limit, and a line about them."""

    apart: float
    limit: float
    shown: str


def _compared(session: Session, exported: Exported, samples: Sequence[Sample], said: Said) -> Numbers:
    """The export's numbers of the samples against the live model's."""
    import torch

    theirs = exported.numbers(samples)
    limit = FLOAT32_LIMIT
    if exported.stored != torch.float32:
        limit = max(HALF_LIMIT, 3 * exported.spread(samples, theirs))
    unit = "score" if session.traits.says == "reads" else "nats a token"
    distances = []
    if said.exact is not None:
        distances.append(_largest(theirs - said.exact))
    # How the layout rounds was measured before the first step.
    rounding = LAYOUT_LIMIT[str(session.model.compute).removeprefix("torch.")]
    judged = _largest(theirs - said.judged)
    distances.append(judged if said.exact is None else max(0.0, judged - rounding))
    if said.exact is None:
        limit += rounding
    worst = max(distances)
    return Numbers(worst, limit, f"{len(samples)} samples, {worst:.1e} {unit} from the live model")


def _largest(difference: Tensor) -> float:
    """The largest absolute entry; infinite if one is not finite."""
    if not difference.isfinite().all():
        return float("inf")
    return float(difference.abs().max()) if len(difference) else 0.0


def _checkpoint_faults(session: Session, chosen: Path) -> Iterator[str]:
    """Whether the checkpoint that was exported holds the trained weights as they are, to the bit."""
    import torch
    from safetensors import safe_open

    from espalier.engines import fsdp
    from espalier.loop.checkpoint import role_folder

    if session.processes.size > 1:
        return
    learner = session.learner
    live = {name: fsdp.local(parameter.detach()) for name, parameter in learner.optimizer.named.items()}
    live.update({name: master.data for name, master in learner.optimizer.masters.items()})
    with safe_open(str(role_folder(chosen, "policy") / "trained.safetensors"), "pt") as stored:
        names = sorted(stored.keys())
        for name in names[:: max(1, len(names) // 8)]:
            if name in live and not torch.equal(stored.get_tensor(name), live[name].cpu()):
                yield f"{chosen.name} holds {name} other than it was trained"
                return


# ----------------------------------------------------------------------------------- tokenizer, template, stop tokens


def _tokenizer_faults(session: Session, exported: Exported, examples: Sequence[Example]) -> Iterator[str]:
    """Whether the exported tokenizer knows the same tokens and writes the first row as the live one does."""
    live, theirs = session.model.loaded.tokenizer, exported.tokenizer
    vocabulary = theirs.get_vocab()
    other = [token for token, number in live.get_vocab().items() if vocabulary.get(token) != number]
    if other:
        yield f"its tokenizer numbers {len(other)} tokens in another way, such as {other[0]!r}"
    for example in examples:
        chat = as_chat(example)
        if chat is None or live.chat_template is None:
            continue
        ours = _written(live, chat)
        if isinstance(ours, Exception):
            continue
        text = _written(theirs, chat)
        if text != ours:
            shown = f"{type(text).__name__}: {text}" if isinstance(text, Exception) else repr(str(text)[-60:])
            yield f"its chat template writes row 1 in another way ({shown[:120]})"
        elif theirs(ours).input_ids != live(ours).input_ids:
            yield "its tokenizer splits row 1 in another way"
        return


def as_chat(example: Example) -> Chat | None:
    """The conversation that a row ends in, with its first response if it has several; None for a text."""
    match example:
        case Chat():
            return example
        case Ranking():
            return Chat((*example.prompt, example.responses[0].message), example.tools)
        case Task():
            return Chat(example.prompt, example.tools)
        case Steps():
            answer = Message("assistant", example.separator.join(example.steps))
            return Chat((*example.prompt, answer))
    return None


def _written(tokenizer: Any, chat: Chat) -> str | Exception:
    """The conversation under a tokenizer's template, by transformers; the error, if it raises one."""
    messages = []
    for message in chat.messages:
        fields: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.reasoning is not None:
            fields["reasoning_content"] = message.reasoning
        if message.tool_calls:
            fields["tool_calls"] = list(message.tool_calls)
        if message.name is not None:
            fields["name"] = message.name
        messages.append(fields)
    try:
        return str(tokenizer.apply_chat_template(messages, tools=list(chat.tools) or None, tokenize=False))
    # A template is a program, and may raise anything.
    except Exception as error:
        return error


def _answer_ends(rows: Sequence[Row]) -> set[int]:
    """The last trained tokens of the shortest samples that end in a trained answer, not in a question with a weight."""
    ending = []
    for rendered in (r for row in rows for r in row.rendered):
        trained = [i for i, is_trained in enumerate(rendered.sample.mask) if is_trained]
        answers = {span.end for span in rendered.spans if span.role == "assistant" and span.trained}
        if rendered.sample.stop == "stop" and trained and trained[-1] + 1 in answers:
            ending.append((len(rendered.sample), rendered.sample.tokens[trained[-1]]))
    return {token for _, token in sorted(ending)[:SAMPLES]}


def _stop_faults(
    session: Session, exported: Exported, samples: Sequence[Sample], answer_ends: set[int]
) -> Iterator[str]:
    """Whether every token that ends an answer in training ends a generation, and whether the pad token is another one
    in a model that is read at the last token which is not pad."""
    # If everything is trained, what a template writes behind the last turn is, too.
    trained = answer_ends if session.renderer.train_on != "all" else set()
    ends = {*session.renderer.stop_ids, *trained}
    if session.traits.says == "reads":
        last = {s.tokens[-1] for s in samples if s.stop == "stop"}
        pads = {exported.model.config.get_text_config().pad_token_id, exported.tokenizer.pad_token_id}
        if None in pads or len(pads) > 1:
            yield f"its pad tokens are {sorted(map(str, pads))}, expected one, in config and tokenizer"
        if pads & (ends | last):
            yield f"its pad token {sorted(map(str, pads))} ends answers, so that they are read before their end"
        return
    stops = exported.stop_ids
    if stops is not None and not ends <= stops:
        yield f"its stop ids are {sorted(stops)}, without {sorted(ends - stops)}, which answers end in"


# ------------------------------------------------------------------------------------------- scores from text alone


def _plain_faults(session: Session, exported: Exported, rows: Sequence[Row], limit: float) -> tuple[list[str], str]:
    """What a reward model says of the first answer's text, as the exported template writes it and transformers encodes
    and reads it by itself, against what it says of the answer's sample: faults, and a note."""
    if session.traits.consumes != "ranking" or session.traits.says != "reads":
        return [], ""
    plain = Plain(exported.tokenizer, (), session.renderer.form.turns.template_values)
    shown = exported.tokenizer.decode
    for row in rows:
        for rendered, s in zip(row.rendered, row.stored, strict=True):
            texts = plain_texts(plain, session.renderer, row.example, rendered)
            if s.stop != "stop" or not texts:
                continue
            scored = s.tokens[: s.reads[0] + 1]
            encoded = [exported.encode(text) for text in texts]
            if scored in encoded:
                apart = _largest(exported.numbers([s]) - exported.logits(scored))
                if apart > limit:
                    return [f"row 1 scores {apart:.1e} apart as text and as tokens: it is read at another token"], ""
                return [], "row 1 scores the same as plain text"
            own = shown(scored)
            if own in map(shown, encoded):
                return [], "row 1 is split into other tokens as plain text, where prompt and answer meet"
            return [f"row 1 as plain text is not what was scored: {texts[0][-60:]!r}, {own[-60:]!r} in training"], ""
    return [], ""


def plain_texts(plain: Plain, renderer: Renderer, example: Example, rendered: Rendered) -> list[str]:
    """What the template may write of a prompt with one of its answers, first as it writes it by default; empty if turns
    are used in a way that only the renderer knows."""
    if not isinstance(example, Ranking) or rendered.response is None or plain.tokenizer.chat_template is None:
        return []
    turns = renderer.form.turns
    prompt = [replace(message, weight=0.0) for message in example.prompt]
    try:
        fitting = usable([*prompt, replace(rendered.response.message, weight=1.0)], turns, renderer.train_on)
    except RowError:
        return []
    contents = [message.content for message in fitting.messages]
    # Some of these strings are left out, where they stand at the edges of answers.
    if turns.parse_control and any(name in content for name in plain.special for content in contents):
        return []
    if fitting.leading:  # whether such turns are kept depends on the template
        return []
    texts = []
    for form in FORMS if any(message.tool_calls for message in fitting.messages) else FORMS[:1]:
        messages = [as_dict(message) for message in form.written(fitting.messages)]
        for values in plain.variants(example.template_args):
            text = plain.write(messages, example.tools, **values)
            asked = plain.write(messages[:-1], example.tools, generate=True, **values) or ""
            # Where the prompt opens reasoning that the turn does not begin with, training puts them together.
            apart = text is not None and plain.opens_thought(asked) and not text.startswith(asked)
            if text is not None and not apart:
                texts.append(text)
    return texts
