"""Chat templates of others x shapes of conversations: what is trained, against their own marks or plain rendering.

    python scripts/template_sweep.py FOLDER [--details] [--only NAME]

FOLDER holds Jinja templates. For each, a byte-level tokenizer is made that knows the control tokens the template
writes, and each shape is rendered. `same` means: what is trained is what the template's {% generation %} blocks mark,
up to the stop token; without such blocks, what `checks.exact` expects from transformers' own rendering. `explained`
differs from the marks in what a sampler is given or writes; `refused` rows have a reason; `different` is a fault.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from espalier.checks.exact import exact
from espalier.checks.expected import squash
from espalier.data.render.calls import FORMS
from espalier.data.render.drafts import Rendered
from espalier.data.render.renderer import Renderer
from espalier.data.render.templates import complete
from espalier.errors import EspalierError, RowError
from espalier.types import Chat, Message

CONTROL = re.compile(
    "<[|\uff5c][^<>\\s]{1,40}?[|\uff5c]>|\\[\\|\\w+\\|\\]|\\[/?[A-Z_]{3,}\\]|\\[gMASK\\]|</?(?:s|sop|eop|bos|eos)>"
    "|<(?:start|end)_of_\\w+>|<\\|?[a-z_]+\\|?>(?=')|<\\|turn>|<turn\\|>|<end_of_utterance>"
)
MARKUP = re.compile(r"</?(?:think|tool_call|tool_response|tools|arg_key|arg_value|tool_calls|function|parameter)>")
FAMILIES = {
    # Part of the file's name: the end-of-text token, and what the models' generation configs stop on beside it.
    "glm": ("<|endoftext|>", "<|user|>", "<|observation|>"),
    "gemma": ("<eos>", "<end_of_turn>", "<turn|>"),
    "llama": ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>", "<|eot|>"),
    "phi_4": ("<|im_end|>",),
    "phi": ("<|endoftext|>", "<|end|>", "<|assistant|>"),
    "qwen": ("<|im_end|>", "<|endoftext|>"),
    "deepseek": ("<\uff5cend\u2581of\u2581sentence\uff5c>",),
    "gptoss": ("<|return|>", "<|call|>", "<|endoftext|>"),
    "cohere": ("<|END_OF_TURN_TOKEN|>",),
    "command": ("<|END_OF_TURN_TOKEN|>",),
    "aya": ("<|END_OF_TURN_TOKEN|>",),
    "exaone": ("[|endofturn|]",),
    "idefics": ("<end_of_utterance>",),
}
CALL = {"type": "function", "id": "abcdefghi", "function": {"name": "look", "arguments": {"city": "Rome"}}}


def message(role: str, content: str, **more: Any) -> Message:
    return Message(role, content, **more)  # type: ignore[arg-type]


ASK, TELL = message("user", "What is it?"), message("assistant", "It is red.")
MORE, AGAIN = message("user", "And then?"), message("assistant", "Then blue.")
LAST, END = message("user", "Well?"), message("assistant", "Then green.")
SHAPES: dict[str, tuple[Message, ...]] = {
    "one turn": (ASK, TELL),
    "three turns": (ASK, TELL, MORE, AGAIN, LAST, END),
    "system": (message("system", "Be brief."), ASK, TELL, MORE, AGAIN),
    "two answers": (ASK, TELL, AGAIN, MORE, END),
    "tool": (
        ASK,
        message("assistant", "", tool_calls=(CALL,)),
        message("tool", "Sunny.", name="look", tool_call_id="abcdefghi"),
        TELL,
    ),
    "reasoning": (ASK, message("assistant", "It is red.", reasoning="Colours come to mind.")),
    "untrained": (ASK, message("assistant", "It is red.", weight=0.0), MORE, AGAIN),
    "white space": (
        message("system", ""),
        message("user", " What\n\nis it? "),
        message("assistant", "\n It  is red.\n "),
    ),
}


def tokenizer_of(path: Path) -> tuple[PreTrainedTokenizerFast, list[int]]:
    """A byte-level tokenizer with the control tokens of a template, and the ids that its family stops on."""
    source = path.read_text(encoding="utf-8")
    known = next((stops for part, stops in FAMILIES.items() if part in path.name), ("</s>",))
    markup = set(MARKUP.findall(source))
    controls = [name for name in dict.fromkeys((*known, "<s>", *CONTROL.findall(source))) if name not in markup]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({piece: i for i, piece in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token=known[0])
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in controls], special_tokens=True)
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in sorted(markup)])
    tokenizer.chat_template = source
    complete(tokenizer)  # as a run does
    written = [name for name in known if name in source or name == known[0]]
    return tokenizer, [int(i) for i in tokenizer.convert_tokens_to_ids(written)]


def marked(tokenizer: PreTrainedTokenizerFast, chat: Chat) -> list[str] | None:
    """What the template's generation blocks mark, a text for each answer; None if it has none or refuses the rows."""
    if "generation %}" not in tokenizer.chat_template and "generation -%}" not in tokenizer.chat_template:
        return None
    for form in FORMS if any(m.tool_calls for m in chat.messages) else FORMS[:1]:
        rows = []
        for m in form.written(chat.messages):
            row: dict[str, Any] = {"role": m.role, "content": m.content}
            if m.reasoning is not None:
                row["reasoning_content"] = row["thinking"] = m.reasoning
            for name in ("tool_calls", "name", "tool_call_id"):
                if getattr(m, name):
                    row[name] = getattr(m, name)
            rows.append(row)
        try:
            out = tokenizer.apply_chat_template(rows, return_dict=True, return_assistant_tokens_mask=True)
        except Exception:  # a template is a program; the next form may do
            continue
        return list(runs(tokenizer, out["input_ids"], [bool(m) for m in out["assistant_masks"]]))
    return None


def runs(tokenizer: PreTrainedTokenizerFast, ids: list[int], mask: list[bool]) -> Iterator[str]:
    """The texts of the masked runs."""
    run: list[int] = []
    for token, inside in zip([*ids, -1], [*mask, False], strict=True):
        if inside:
            run.append(token)
        elif run:
            yield str(tokenizer.decode(run))
            run = []


def through_stop(text: str, stops: list[str]) -> str:
    """The text up to its first stop token."""
    ends = [text.index(stop) + len(stop) for stop in stops if stop in text]
    return text[: min(ends)] if ends else text


def verdict(tokenizer: PreTrainedTokenizerFast, known: list[int], chat: Chat) -> tuple[str, str]:
    """same, refused or different, and why."""
    renderer = Renderer(tokenizer, known_stops=known)
    try:
        group = renderer.render(chat)
    except RowError as error:
        return "refused", f"{error.reason}: {error.got}. {error.fix or 'NO WAY OUT'}"
    except EspalierError as error:
        return "refused", str(error)
    found = exact([(chat, group)], tokenizer, known, "assistant")
    if found.verdict == "fail":
        return "different", found.value
    if found.verdict == "skipped":
        return "different", "transformers alone renders nothing like it"
    oracle = marked(tokenizer, chat)
    if oracle is None:
        return "same", ""
    return against(tokenizer, renderer, chat, group, oracle)


def against(
    tokenizer: PreTrainedTokenizerFast, renderer: Renderer, chat: Chat, group: list[Rendered], oracle: list[str]
) -> tuple[str, str]:
    """Whether the trained runs are the marked ones, those of untrained messages aside."""
    stops = [renderer.chats.codec.added[i].text for i in renderer.stop_ids]
    ours: list[str] = []
    for rendered in group:
        ours += [squash(text) for text in runs(tokenizer, rendered.sample.tokens, rendered.sample.mask)]
    theirs = [squash(through_stop(text, stops)) for text in oracle]
    answers = [m for m in chat.messages if m.role == "assistant"]
    if len(theirs) == len(answers):
        theirs = [text for text, m in zip(theirs, answers, strict=True) if m.weight != 0]
    if ours == theirs or "".join(ours) == "".join(theirs):
        return "same", ""
    names = [squash(token.text) for token in renderer.chats.codec.added.values()]
    if len(ours) == len(theirs):
        reasons = {explained(a, b, names) for a, b in zip(ours, theirs, strict=True)}
        if "" not in reasons:
            return "explained", "; ".join(sorted(reasons))
    return "different", f"trained {ours}, marked {theirs}"


def explained(ours: str, theirs: str, names: list[str]) -> str:
    """Why a trained run may differ from the marked one; "" if it may not."""
    if ours == theirs:
        return "same"
    body = ends_before(ours, names)
    if theirs == body:
        return "the marks hold no stop token"
    thought, closed, answer = ours.rpartition("</think>")
    if closed and thought and explained(answer, theirs, names):
        return "the marks leave out the row's reasoning"
    if theirs.endswith(ours):
        return "the marks hold what the generation prompt writes"
    if ends_before(theirs, names).endswith(body):
        return "an earlier answer ends in another token than the last one, which a sampler writes"
    return ""


def ends_before(text: str, names: list[str]) -> str:
    """The text without the control token at its end."""
    for name in sorted(names, key=len, reverse=True):
        if text.endswith(name):
            return text.removesuffix(name)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--details", action="store_true", help="Say why, for all that is not the same.")
    parser.add_argument("--only", default="", help="Templates whose name contains this.")
    options = parser.parse_args()
    totals: Counter[str] = Counter()
    print(f"{'template':34}" + "".join(f"{name:13}" for name in SHAPES))
    for path in sorted(options.folder.glob("*.jinja")):
        if options.only not in path.name:
            continue
        tokenizer, known = tokenizer_of(path)
        verdicts = {name: verdict(tokenizer, known, Chat(messages)) for name, messages in SHAPES.items()}
        print(f"{path.stem:34}" + "".join(f"{word:13}" for word, _ in verdicts.values()), flush=True)
        totals.update(word for word, _ in verdicts.values())
        for name, (word, why) in verdicts.items():
            if options.details and word != "same":
                print(f"    {name}: {word}: {why[:400]}")
    print(", ".join(f"{word} {count}" for word, count in sorted(totals.items())))


if __name__ == "__main__":
    main()
