"""`README.md` of an exported model: how it is loaded, prompted and read, in plain words with code that runs."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

README = "README.md"
FIXED_DATE = "2024-07-26"
"""What training gives to templates that write the date of today."""
_MARK = re.compile(r"<!-- written by Espalier; a README that was edited is kept: ([0-9a-f]{16}) -->\n")
_PROBE = [{"role": "user", "content": "Zqu"}, {"role": "assistant", "content": "Zqa"}]


@dataclass(frozen=True, slots=True)
class Facts:
    """What a README says of an export.

    name: the class that loads it. kind: what the model is. stop_ids: what ends an answer. bias: of each dimension of a
    scalar head, named by `dimensions` (empty if nameless). base: of an adapter, the model it belongs on; rows: of its
    base's embedding, if it must grow to that many first (0: it need not). tokenizer: the class that reads
    the tokenizer as training did.
    """

    name: str
    kind: str  # language model, reward model, process reward model or adapter
    stop_ids: Sequence[int] = ()
    bias: Sequence[float] = ()
    dimensions: Sequence[str] = ()
    base: str = ""
    rows: int = 0
    tokenizer: str = "AutoTokenizer"


def write_readme(folder: Path, facts: Facts, tokenizer: PreTrainedTokenizerBase, earlier: Path) -> None:
    """Write `README.md` into `folder`. One in the folder `earlier`, which this export replaces, is kept if a user wrote
    or edited it."""
    kept = edited(earlier)
    if kept is not None:
        (folder / README).write_bytes(kept)
        return
    (folder / README).write_text(marked(readme(facts, tokenizer)), encoding="utf-8")


def edited(folder: Path) -> bytes | None:
    """The README in a folder, if it is not as an export wrote it; None if it is, or there is none."""
    file = folder / README
    if not file.is_file():
        return None
    content = file.read_bytes()
    return None if _ours(content.decode("utf-8", errors="replace")) else content


def marked(body: str) -> str:
    digest = hashlib.sha256(body.encode()).hexdigest()[:16]
    return f"<!-- written by Espalier; a README that was edited is kept: {digest} -->\n{body}"


def _ours(text: str) -> bool:
    """Whether a README is as an export wrote it."""
    mark = _MARK.match(text)
    return mark is not None and marked(text[mark.end() :]) == text


def readme(facts: Facts, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of a README, without the mark."""
    writer = _Writer(facts, tokenizer)
    if facts.kind == "reward model":
        return writer.reward()
    if facts.kind == "process reward model":
        return writer.process()
    return writer.language()


class _Writer:
    """Puts the sections of a README together."""

    def __init__(self, facts: Facts, tokenizer: PreTrainedTokenizerBase) -> None:
        self.facts, self.tokenizer = facts, tokenizer
        self.rendered = _rendered(tokenizer)
        self.bos = _lacks_bos(tokenizer, self.rendered or "Zqu")

    # ------------------------------------------------------------------------------------------------- language models

    def language(self) -> str:
        facts = self.facts
        adapter = facts.kind == "adapter"
        title = "# A LoRA adapter" if adapter else f"# A language model ({facts.name})"
        parts = [f"{title}, trained with Espalier"]
        if adapter:
            parts.append(self._base())
        parts.append("## Load and answer\n\n" + _code([*self._imports("AutoModelForCausalLM"), *self._answer()]))
        parts.append("## Prompt\n\n" + self._prompt())
        parts.append("## Stop\n\n" + self._stop())
        return "\n\n".join(parts) + "\n"

    def _base(self) -> str:
        text = f"This folder holds the adapter alone. It belongs on the model `{self._base_name()}`"
        if self._is_folder():
            text += " (a folder where it was trained)"
        if self.facts.rows:
            text += (
                f", whose embedding must first grow to {self.facts.rows} rows: tokens were added, and the adapter has "
                "their rows"
            )
        return text + ". The tokenizer here is the one to use."

    def _is_folder(self) -> bool:
        return bool(self.facts.base) and Path(self.facts.base).expanduser().is_dir()

    def _base_name(self) -> str:
        """The base as a stranger may know it: of a folder its name, for its path is one machine's."""
        if self._is_folder():
            return Path(self.facts.base).expanduser().resolve().name
        return self.facts.base or "BASE"

    def _imports(self, auto: str) -> list[str]:
        if self.facts.kind != "adapter":
            return [
                "import torch",
                f"from transformers import {auto}, {self.facts.tokenizer}",
                "",
                'folder = "."  # this folder',
                f"tokenizer = {self.facts.tokenizer}.from_pretrained(folder)",
                f'model = {auto}.from_pretrained(folder, dtype="auto").eval()',
            ]
        lines = [
            "import torch",
            "from peft import PeftModel",
            f"from transformers import {auto}, {self.facts.tokenizer}",
            "",
            'folder = "."  # this folder',
            f"tokenizer = {self.facts.tokenizer}.from_pretrained(folder)",
            f'base = "{self._base_name()}"{"  # where that folder stands" if self._is_folder() else ""}',
            f'model = {auto}.from_pretrained(base, dtype="auto")',
        ]
        if self.facts.rows:
            lines.append(f"model.resize_token_embeddings({self.facts.rows}, mean_resizing=False)")
        return [*lines, "model = PeftModel.from_pretrained(model, folder).eval()"]

    def _answer(self) -> list[str]:
        lines = [""]
        if self.rendered is None:
            lines.append('text = "Once upon a time"')
        else:
            lines.append('messages = [{"role": "user", "content": "What is 2 + 2?"}]')
            lines.append("text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)")
        arguments = "inputs.input_ids, attention_mask=inputs.attention_mask, max_new_tokens=100"
        if self.facts.kind == "adapter" and self.facts.stop_ids:
            arguments += f", eos_token_id={list(self.facts.stop_ids)}"
        return [
            *lines,
            *self._inputs(),
            "with torch.no_grad():",
            f"    output = model.generate({arguments})",
            "print(tokenizer.decode(output[0, inputs.input_ids.shape[1] :], skip_special_tokens=True))",
        ]

    def _inputs(self, offsets: bool = False) -> list[str]:
        """Lines that encode `text`, which has its begin-of-text token then, and once."""
        more = ", return_offsets_mapping=True" if offsets else ""
        lines = ["text = tokenizer.bos_token + text"] if self.bos else []
        return [*lines, f'inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt"{more})']

    def _prompt(self) -> str:
        if self.rendered is None:
            return "The tokenizer has no chat template: the model continues plain text." + self._bos_note()
        return (
            "Write conversations with the tokenizer's own chat template (`chat_template.jinja`). One question with one "
            f"answer becomes\n\n{_block(self.rendered)}\n\n"
            "`add_generation_prompt=True` ends the text where an answer begins. Encode it with "
            "`add_special_tokens=False`." + self._bos_note() + self._date_note()
        )

    def _date_note(self) -> str:
        """A sentence for templates that write the date of today."""
        if "strftime_now" not in str(self.tokenizer.chat_template):
            return ""
        return (
            f" The template may write the date of today. In training the date was fixed to {FIXED_DATE}, so that the "
            "model saw no other: put that one in its place to ask or score as in training."
        )

    def _bos_note(self) -> str:
        if not self.bos:
            return ""
        token = self.tokenizer.bos_token
        return (
            f" The begin-of-text token `{token}` stands in front in training and is not in the template: put it "
            "there, as above."
        )

    def _stop(self) -> str:
        if not self.facts.stop_ids:
            return "The stop tokens are those of `generation_config.json`."
        tokens = [f"`{self.tokenizer.convert_ids_to_tokens(i)}` = {i}" for i in self.facts.stop_ids]
        where = "pass them as `eos_token_id`, as above"
        if self.facts.kind != "adapter":
            where = "`generation_config.json` has them as `eos_token_id`"
        return f"An answer ends in {' or '.join(tokens)}; {where}."

    # --------------------------------------------------------------------------------------------------- reward models

    def reward(self) -> str:
        body = [
            *self._imports("AutoModelForSequenceClassification"),
            "",
            "messages = [",
            '    {"role": "user", "content": "What is 2 + 2?"},',
            '    {"role": "assistant", "content": "4"},',
            "]",
            "text = tokenizer.apply_chat_template(messages, tokenize=False)",
            *self._inputs(),
            "with torch.no_grad():",
            "    logits = model(inputs.input_ids, attention_mask=inputs.attention_mask).logits",
            "scores = logits + torch.tensor(model.config.espalier_reward_bias)",
            "print(scores)",
        ]
        return "\n\n".join(
            (
                f"# A reward model ({self.facts.name}), trained with Espalier",
                "## Load and score\n\n" + _code(body),
                "## Where the score is read\n\n" + self._read(),
                "## Bias\n\n" + self._bias(),
                "## Prompt\n\n" + self._prompt().replace("`add_generation_prompt=True` ends the text where an answer "
                                                         "begins. ", "Score it without a generation prompt. "),
            )
        ) + "\n"  # fmt: skip

    def _read(self) -> str:
        pad = f"`{self.tokenizer.pad_token}` = {self.tokenizer.pad_token_id}"
        tail = _tail(self.rendered)
        text = (
            f"At the last token that is not the pad token ({pad}), which is where the class reads it: at the end of "
            "the text that the template writes. "
        )
        if tail:
            text += f"Behind the answer that is {tail!r}: do not cut it off, the model was trained and judged there. "
        return text + (
            "In a batch, pad with this tokenizer, on either side. An answer that a length limit cut is scored at its "
            "last token, without what the template writes behind it."
        )

    def _bias(self) -> str:
        if not any(self.facts.bias):
            return "None: `logits` are the scores."
        names = list(self.facts.dimensions) or [""]
        biases = [f"{name} {bias:+.6g}".strip() for name, bias in zip(names, self.facts.bias, strict=False)]
        return (
            f"The class has no place for a bias, so `logits` lack it: score = logit + bias, with {', '.join(biases)} "
            "(`espalier_reward_bias` in `config.json`). It makes the scores of the reference answers of training 0 on "
            "average. Comparisons of answers do not need it. A scale is in the weights already."
        )

    # ------------------------------------------------------------------------------------------- process reward models

    def process(self) -> str:
        body = [
            *self._imports("AutoModelForSequenceClassification"),
            "",
            'steps = ["2 + 3 = 5.", "5 + 4 = 9."]',
            "messages = [",
            '    {"role": "user", "content": "What is 2 + 3 + 4?"},',
            '    {"role": "assistant", "content": "\\n".join(steps)},',
            "]",
            "text = tokenizer.apply_chat_template(messages, tokenize=False)",
            *self._inputs(offsets=True),
            'spans = inputs["offset_mapping"][0].tolist()',
            'at, ends = text.rindex("\\n".join(steps)), []',
            "for step in steps:",
            "    last = at + len(step) - 1  # the step's last character",
            "    ends.append(next(i for i, (start, end) in enumerate(spans) if start <= last < end))",
            '    at += len(step) + len("\\n")',
            "backbone = getattr(model, model.base_model_prefix)",
            "with torch.no_grad():",
            "    hidden = backbone(inputs.input_ids).last_hidden_state[0, ends]",
            "    scores = model.score(hidden.to(model.score.weight.dtype))[:, 0]",
            "scores = scores + torch.tensor(model.config.espalier_reward_bias)",
            "print(scores.sigmoid())  # of each step, the probability that it is good",
        ]
        read = (
            "At the token that holds the last visible character of each step; the score there is the logit of \"this "
            "step is good\". The class's own `logits` are read once, at the end of the text, and are not what the "
            "model was trained to say: take the hidden states, as above."
        )  # fmt: skip
        return "\n\n".join(
            (
                f"# A process reward model ({self.facts.name}), trained with Espalier",
                "## Load and score steps\n\n" + _code(body),
                "## Where scores are read\n\n" + read,
                "## Prompt\n\n" + self._prompt().replace("`add_generation_prompt=True` ends the text where an answer "
                                                         "begins. ", ""),
            )
        ) + "\n"  # fmt: skip


# ------------------------------------------------------------------------------------------------------- the tokenizer


def _rendered(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """One question with one answer under the tokenizer's template; None without one that takes them."""
    if tokenizer.chat_template is None:
        return None
    try:
        return str(tokenizer.apply_chat_template(_PROBE, tokenize=False))
    # A template is a program, and may raise anything.
    except Exception:
        return None


def _lacks_bos(tokenizer: Any, text: str) -> bool:
    """Whether the tokenizer puts a begin-of-text token in front that `text` has not."""
    if tokenizer.bos_token is None or text.startswith(str(tokenizer.bos_token)):
        return False
    return bool(list(tokenizer(text)["input_ids"])[:1] == [tokenizer.bos_token_id])


def _tail(rendered: str | None) -> str:
    """What a template writes behind an answer."""
    return rendered.rpartition("Zqa")[2] if rendered and "Zqa" in rendered else ""


def _code(lines: Sequence[str]) -> str:
    return "\n".join(("```python", *lines, "```"))


def _block(text: str) -> str:
    """A text as an indented block, its line ends visible."""
    shown = text.replace("Zqu", "QUESTION").replace("Zqa", "ANSWER")
    return "\n".join("    " + line for line in shown.split("\n"))
