"""Text in, text out: a model behind its chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from espalier.assembly.model import compute_dtype
from espalier.config.sections import ModelConfig, TurnsConfig
from espalier.data.render.form import Form
from espalier.data.render.renderer import Renderer
from espalier.data.render.templates import apply_template, complete
from espalier.engines.processes import pick_device
from espalier.engines.protocols import SamplingParams
from espalier.engines.sampler.generate import GenerateSampler
from espalier.errors import ConfigError, RowError
from espalier.models.load import Loaded, load_model
from espalier.models.merge import load_merged
from espalier.models.stops import stops_of
from espalier.types import Message


class Chatter:
    """Answers prompts with a model, through the template that its training uses."""

    def __init__(self, loaded: Loaded, turns: TurnsConfig | None = None):
        self.tokenizer = loaded.tokenizer
        form = Form(turns=turns or TurnsConfig())
        stops = stops_of(loaded.folder, loaded.adapter)
        self.renderer = Renderer(loaded.tokenizer, form=form, known_stops=stops)
        self.sampler = GenerateSampler(loaded.model, loaded.tokenizer, limit=loaded.limit)
        self.limit = loaded.limit

    @classmethod
    def load(cls, config: ModelConfig, device: str | None = None, turns: TurnsConfig | None = None) -> Chatter:
        """Read a model for answering, with its adapter merged into it; `turns` says what its chat template is given.
        Raises ModelError and ConfigError."""
        read = load_merged if config.adapter else load_model
        loaded = read(config, device=pick_device() if device is None else device)
        apply_template(loaded.tokenizer, config.template)
        complete(loaded.tokenizer)
        model: Any = loaded.model
        model.to(compute_dtype(config.dtype, loaded.model.device))
        return cls(loaded, turns)

    def answer(
        self,
        prompts: Sequence[str],
        *,
        chat: bool = True,
        system: str = "",
        max_tokens: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[str]:
        """One response per prompt, without special tokens. With `chat` a prompt is a user's message; otherwise it is
        text to be continued.

        Raises ConfigError if `chat` is on and the model has no template.
        """
        if chat and self.tokenizer.chat_template is None:
            raise ConfigError(
                "the model has no chat template; give --template, or --no-chat to continue the prompt's own text",
                key="chat",
            )
        before = [Message("system", system)] if system else []
        try:
            ids = [
                self.renderer.prompt([*before, Message("user", prompt)]) if chat else self.renderer.text(prompt)
                for prompt in prompts
            ]
        except RowError as error:
            way_out = "" if error.fix else ". Leave out system, or give another template"
            raise ConfigError(f"prompt: {error}{way_out}", key="prompt") from error
        stop = tuple(self.renderer.stop_ids)
        params = SamplingParams(max_tokens=max_tokens, temperature=temperature, stop=stop, seed=seed)
        out = []
        for prompt, (response,) in zip(ids, self.sampler.generate(ids, 1, params), strict=True):
            out.append(str(self.tokenizer.decode(response.tokens[len(prompt) :], skip_special_tokens=True)))
        return out
