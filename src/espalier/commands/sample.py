"""`espalier sample`: answers to prompts."""

from __future__ import annotations

from rich.text import Text

from espalier.assembly.answer import Chatter
from espalier.config.sections import ModelConfig, SampleConfig, TurnsConfig
from espalier.loop.terminal import Terminal


def run(config: SampleConfig) -> None:
    """Answer prompts, each as a user's message unless `chat` is off."""
    model = ModelConfig(
        model=config.model,
        adapter=config.adapter,
        dtype=config.dtype,
        template=config.template,
        trust_remote_code=config.trust_remote_code,
    )
    turns = TurnsConfig(template_args=config.template_args)
    chatter = Chatter.load(model, turns=turns, sampler=config.sampler)
    console = Terminal(highlight=False)
    console.print(Text(chatter.note, style="dim"))
    answers = chatter.answer(list(config.prompt), config, chat=config.chat, system=config.system, seed=config.seed)
    for prompt, answer in zip(config.prompt, answers, strict=True):
        console.print(Text(prompt, style="bold"))
        console.print(answer + "\n", markup=False, emoji=False)
