"""The check of trained text: the content of each answer and one stop token, once, with its weight, and nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from espalier.checks import data
from espalier.checks.expected import Expected, Plain, begins, leading, squash
from espalier.checks.table import Outcome, failed, passed, skipped
from espalier.config.sections import TurnsConfig
from espalier.data.render.bad_turns import usable
from espalier.data.render.drafts import RenderedGroup
from espalier.data.render.form import Form
from espalier.data.render.trees import path
from espalier.errors import EspalierError, RowError
from espalier.models.stops import stops_of
from espalier.types import Chat, Completion, Example, Message, Sample, Steps, Text, TrainOn, Tree, TreeNode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from espalier.checks.evidence import Evidence
    from espalier.data.render.drafts import Rendered
    from espalier.data.render.renderer import Renderer

LIMIT = "content and one stop token"
_LENGTH = 24  # tokens to which made rows are cut


def check_mask(evidence: Evidence) -> Outcome:
    """The trained tokens of the first rows: content on the right side, and the exact text of each run."""
    sides, texts = data.check_mask(evidence), check_text(evidence)
    if sides.verdict == "fail" or texts.verdict == "skipped":
        return sides
    if texts.verdict == "fail" or sides.verdict == "skipped":
        return texts
    return passed(f"{sides.value}; {texts.value}", sides.limit)


def check_text(evidence: Evidence) -> Outcome:
    """The trained text of the first rows, and of rows made for the purpose."""
    session = evidence.session
    stops = stops_of(session.model.loaded.folder, session.model.loaded.adapter)
    rows = [(row.example, row.rendered) for row in evidence.rows]
    tokenizer = session.model.loaded.tokenizer
    turns = session.renderer.form.turns
    own = exact(rows, tokenizer, stops, session.renderer.train_on, turns)
    if own.verdict == "fail":
        return own
    made = exact(list(made_rows(tokenizer, stops, turns)), tokenizer, stops, "assistant", turns)
    return made if made.verdict == "fail" else own


def check_conversations(evidence: Evidence) -> Outcome:
    """The trained text of the first given conversations."""
    session = evidence.session
    assert session.conversations is not None
    stops = stops_of(session.model.loaded.folder, session.model.loaded.adapter)
    rows = [(row.example, row.rendered) for row in evidence.given_rows]
    form = session.conversations.renderer.form
    return exact(rows, session.model.loaded.tokenizer, stops, "assistant", form.turns)


def exact(
    rows: Sequence[tuple[Example, Sequence[Rendered]]],
    tokenizer: PreTrainedTokenizerBase,
    known: Sequence[int],
    train_on: TrainOn,
    turns: TurnsConfig | None = None,
) -> Outcome:
    """Each example's samples against what transformers alone renders of it, see `expected.Plain`.

    Of conversations: what is trained in one run is what an answer says (reasoning and calls too) through one stop
    token, each answer once and with its message's weight; the sample through there is the beginning of the
    conversation with a further message, or, if the template rewrites answers then, of its own rendering; no control
    token is there more often than the template writes it. Of texts and completions: their own text and the end-of-text
    token. Samples that are cut must be the beginning of the whole.
    """
    turns_config = turns or TurnsConfig()
    reader = Reader(Plain(tokenizer, known, turns_config.template_values), train_on, turns_config)
    count = unknown = 0
    for example, group in rows:
        try:
            right = reader.check(example, group)
        except Fault as fault:
            value = f"{example.origin}: {fault}"
            return failed(value, LIMIT, "Look at the row with `espalier inspect`, and choose another --template.")
        count += right
        unknown += not right
    if not count:
        return skipped("nothing that transformers renders alike", LIMIT)
    note = f", {unknown} rows not comparable" if unknown else ""
    return passed(f"{count} trained turns, each its content and one stop token{note}", LIMIT)


class Fault(Exception):
    """What is wrong with a sample."""


@dataclass(slots=True)
class Run:
    """Trained tokens in a row: their text, and that of the sample through them, both squashed; `lead` is the white
    space they begin with."""

    text: str
    through: str
    lead: str
    weights: frozenset[float]
    cut: bool


@dataclass(slots=True)
class Wanted:
    """A turn that is to be trained."""

    expected: Expected
    weight: float
    content: str


@dataclass(slots=True)
class Reader:
    """Compares samples with the examples they are made of."""

    plain: Plain
    train_on: TrainOn
    turns: TurnsConfig
    _bos: set[int] = field(init=False)

    def __post_init__(self) -> None:
        bos = self.plain.tokenizer.bos_token_id
        self._bos = set() if bos is None else {bos}

    def check(self, example: Example, group: Sequence[Rendered]) -> int:
        """The number of trained turns that are right; 0 if the example cannot be compared. Raises Fault."""
        samples = [rendered.sample for rendered in group]
        lost = isinstance(group, RenderedGroup) and bool(group.dropped)  # said and counted elsewhere
        if isinstance(example, Text | Completion):
            return self._text(example, samples)
        if self.plain.tokenizer.chat_template is None or self.train_on == "all":
            return 0
        if isinstance(example, Tree):
            return self._turns(self._tree(example), samples, lost)
        if isinstance(example, Chat):
            return self._chat(example, samples, lost)
        if isinstance(example, Steps):
            answer = Message("assistant", example.separator.join(example.steps))
            return self._chat(Chat((*example.prompt, answer)), samples, lost, only_last=True)
        count = 0
        for rendered in group:
            if rendered.response is not None:
                messages = (*example.prompt, rendered.response.message)
                chat = Chat(messages, example.tools, template_args=example.template_args)
                count += self._chat(chat, [rendered.sample], lost, only_last=True)
        return count

    # -------------------------------------------------------------------------------------------------- what is wanted

    def _chat(self, example: Chat, samples: Sequence[Sample], lost: bool, only_last: bool = False) -> int:
        """The number of trained turns of a conversation that are right. lost: some of its turns were left out."""
        try:
            fitting = usable(example.messages, self.turns, self.train_on)
        except RowError:
            return 0
        if fitting.leading:  # whether such turns are kept and trained depends on the template
            return 0
        example = replace(example, messages=self._unstopped(fitting.messages))
        if not self.turns.parse_control:
            self._controls(example, samples)
        messages = example.messages
        last = max((i for i, m in enumerate(messages) if m.role == "assistant"), default=-1)
        wanted = []
        for i, message in enumerate(messages):
            answer = message.role == "assistant" and (self.train_on != "last" or i == last)
            weight = float(answer) if message.weight is None else message.weight
            if only_last:
                weight = float(i == last)
            if not weight:
                continue
            expected = self.plain.turn(messages, i, example.tools, example.template_args)
            if expected is None or message.role != "assistant":
                return 0  # a trained question, or a turn that transformers does not render
            wanted.append(Wanted(expected, weight, message.content))
        return self._turns(wanted, samples, lost)

    def _tree(self, example: Tree) -> list[Wanted] | None:
        """The answers of a tree, each wanted once; None if one cannot be compared."""
        if self.train_on == "last":
            return None
        wanted = []
        for i, node in enumerate(example.nodes):
            answer = node.message.role == "assistant"
            weight = float(answer) if node.message.weight is None else node.message.weight
            if not weight:
                continue
            thread = [example.nodes[place].message for place in path(example, i)]
            try:
                fitting = usable(thread, self.turns, self.train_on)
            except RowError:
                return None
            if fitting.messages != tuple(thread) or fitting.leading or not answer:
                return None
            expected = self.plain.turn(thread, len(thread) - 1, (), {})
            if expected is None:
                return None
            wanted.append(Wanted(expected, weight, node.message.content))
        return wanted

    # ------------------------------------------------------------------------------------------------- what is trained

    def _runs(self, sample: Sample) -> Iterator[Run]:
        cut = sample.stop == "length"
        start = None
        for at, trained in enumerate([*sample.mask, False]):
            if trained and start is None:
                start = at
            elif not trained and start is not None:
                weights = frozenset(sample.weights[start:at])
                text, through = self._decode(sample.tokens[start:at]), self._decode(sample.tokens[:at])
                lead = leading(text)
                yield Run(squash(text), squash(through), lead, weights, cut and at == len(sample.tokens))
                start = None

    def _decode(self, ids: Sequence[int]) -> str:
        kept = list(ids[1:] if ids and ids[0] in self._bos else ids)
        return str(self.plain.tokenizer.decode(kept, clean_up_tokenization_spaces=False))

    def _turns(self, wanted: list[Wanted] | None, samples: Sequence[Sample], lost: bool) -> int:
        """Match each trained run with a wanted turn, each once. Raises Fault."""
        if not wanted:
            return 0
        unknown = self.plain.tokenizer.unk_token_id
        left = list(wanted)
        whole = True
        for sample in samples:
            if unknown is not None and unknown in sample.tokens:
                return 0
            whole &= sample.stop != "length"
            for run in self._runs(sample):
                left = _without(left, run, self.plain)
        if left and whole and samples and not lost:
            raise Fault(f"{left[0].content[:40]!r} is trained in no sample")
        return len(wanted) - len(left)

    def _controls(self, example: Chat, samples: Sequence[Sample]) -> None:
        """No sample has a control token more often than the template writes it, but for the stop token of an open turn.
        Raises Fault."""
        names = {**self.plain.special, **self.plain.markup}
        if not any(name.casefold() in m.content.casefold() for m in example.messages for name in names):
            return
        written = self.plain.controls(example.messages, example.tools, example.template_args)
        if written is None:
            return
        texts = {i: name for name, i in names.items()}
        for sample in samples:
            counts = Counter(token for token in sample.tokens[:-1] if token in texts and token not in self._bos)
            for token, count in counts.items():
                if count > written[token]:
                    raise Fault(f"content becomes the control token {texts[token]}")

    def _text(self, example: Text | Completion, samples: Sequence[Sample]) -> int:
        """A text's windows together train all of it, a completion itself; through the end-of-text token."""
        tokens: list[int] = []
        for sample in samples:
            first = int(bool(sample.tokens) and sample.tokens[0] in self._bos)
            pairs = zip(sample.tokens[first:], sample.mask[first:], strict=True)
            tokens += [token for token, trained in pairs if trained]
        eos = squash(str(self.plain.tokenizer.eos_token))
        content = example.text if isinstance(example, Text) else example.completion
        text = squash(str(self.plain.tokenizer.decode(tokens, clean_up_tokenization_spaces=False)))
        expected = squash(content) + eos
        if ("text" if isinstance(example, Text) else "completion") in self.turns.parse_control:
            expected = self._parsed(content, tokens, eos)
        unknown = self.plain.tokenizer.unk_token_id
        if unknown is not None and unknown in tokens:
            return 0
        if isinstance(example, Completion) and samples[-1].stop == "length":
            if not begins(expected, text):
                raise Fault(f"the cut text {text[:40]!r} is no beginning of {expected[:40]!r}")
            return 1
        if text != expected:
            sizes = f"{len(text)} characters, expected {len(expected)}"
            raise Fault(f"trained text of {sizes}: {_difference(text, expected)}")
        return 1

    def _unstopped(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """Messages without the control tokens that answers end in, if those are tokens: the template writes its own."""
        if "completion" not in self.turns.parse_control:
            return tuple(messages)
        result = []
        for message in messages:
            content, before = message.content, ""
            while message.role == "assistant" and content != before:
                before = content
                for name in self.plain.special:
                    if content.rstrip().endswith(name):
                        content = content.rstrip().removesuffix(name)
            result.append(replace(message, content=content))
        return tuple(result)

    def _parsed(self, content: str, tokens: Sequence[int], eos: str) -> str:
        """What is trained of a text whose control strings become tokens: one begin-of-text token, which `_text` leaves
        out, and the stop token that it ends in, or else the end-of-text token."""
        bos = str(self.plain.tokenizer.bos_token or "")
        if bos:
            content = content.removeprefix(bos)
        for name, i in self.plain.special.items():
            if content.rstrip().endswith(name) and tokens and tokens[-1] == i:
                return squash(content)
        return squash(content) + eos


def _without(left: list[Wanted], run: Run, plain: Plain) -> list[Wanted]:
    """The turns that are still to be trained once `run` is. Turns whose headers are empty stand in one run. Raises
    Fault."""
    if run.cut and not run.text:  # white space in front of what was cut
        return left
    for first in range(len(left)):
        rest, size = run.text, first
        while rest and size < len(left):
            body = _body(left[size], rest, cut=run.cut)
            if body is None:
                break
            rest, size = rest[len(body) :], size + 1
        if rest or size == first:
            continue
        matched = left[first:size]
        for wanted in matched:
            if run.weights != {wanted.weight}:
                raise Fault(
                    f"{wanted.content[:40]!r} has the weights {sorted(run.weights)}, expected {wanted.weight:g}"
                )
        lead = matched[0].expected.lead
        if plain.keeps_space and not run.cut and len(run.lead) < len(lead):
            raise Fault(f"the first token of {matched[0].content[:40]!r} is not trained: a white space")
        if len(run.lead) > len(plain.spare + lead):
            got = f"{run.lead + run.text[:20]!r}"
            raise Fault(f"a token of the prompt is trained: {got}, expected {matched[0].content[:20]!r}")
        through = matched[-1].expected.through
        if not any(begins(text, run.through) if run.cut else text == run.through for text in through):
            difference = _difference(run.through, through[0])
            raise Fault(f"the text through {matched[-1].content[:40]!r} is not the template's: {difference}")
        return left[:first] + left[size:]
    closest = left[0].expected.bodies[0] if left else "nothing"
    raise Fault(f"trained {run.text[-60:]!r}, expected {closest[-60:]!r}")


def _body(wanted: Wanted, text: str, *, cut: bool) -> str | None:
    """The body of a turn with which `text` begins; of a cut one, `text` itself if it begins the body."""
    for body in sorted(wanted.expected.bodies, key=len, reverse=True):
        if text.startswith(body):
            return body
        if cut and begins(body, text):
            return text
    return None


def _difference(got: str, expected: str) -> str:
    at = next((i for i, (a, b) in enumerate(zip(got, expected, strict=False)) if a != b), min(len(got), len(expected)))
    return f"{got[at : at + 30]!r} where {expected[at : at + 30]!r} is expected"


# ------------------------------------------------------------------------------------------------------------ made rows


def made_rows(
    tokenizer: PreTrainedTokenizerBase, known: Sequence[int], turns: TurnsConfig | None = None
) -> Iterator[tuple[Example, list[Rendered]]]:
    """Rows with what the first rows may lack: a user who writes every markup token, a weight of 0.5, threads that share
    answers, a text above the limit, a conversation that is cut. Those that the template refuses are left out."""
    # NumPy comes with it, and the help names the checks.
    from espalier.data.render.renderer import Renderer

    markup = [t.content for t in tokenizer.added_tokens_decoder.values() if not t.special and not t.content.isspace()]
    first, second = Message("user", "one two"), Message("user", "three four five")
    answer, weighed = Message("assistant", "six seven"), Message("assistant", "eight nine ten", weight=0.5)
    marked = replace(first, content=f"one {' '.join(markup)} two")
    plain = Chat((first, answer, second, weighed))
    nodes = [(first, -1), (answer, 0), (second, 1), (replace(answer, content="nine"), 2), (second, 1)]
    nodes.append((replace(answer, content="ten"), 4))
    tree = Tree(tuple(TreeNode(message, parent) for message, parent in nodes))
    form = Form(turns=turns or TurnsConfig())
    whole = Renderer(tokenizer, known_stops=known, form=form)
    yield from _rendered(whole, Chat((marked, answer, second, weighed)))
    yield from _rendered(whole, tree)
    text = Text(" ".join(f"word {i}" for i in range(3 * _LENGTH)))
    yield from _rendered(Renderer(tokenizer, known_stops=known, form=form, max_length=_LENGTH), text)
    for _, group in _rendered(whole, plain):
        limit = max(2, len(group[-1].sample) - 2)
        yield from _rendered(Renderer(tokenizer, known_stops=known, form=form, max_length=limit), plain)


def _rendered(renderer: Renderer, example: Example) -> Iterator[tuple[Example, list[Rendered]]]:
    try:
        yield example, renderer.render(example)
    except EspalierError:  # the template refuses such a row
        return
