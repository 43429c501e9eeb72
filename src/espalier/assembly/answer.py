"""Text in, text out: a model behind its chat template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from espalier.assembly.model import compute_dtype
from espalier.assembly.rollouts import params_of
from espalier.assembly.sampling import Kind, build_sampler, draw_groups, room
from espalier.config.sampling import SamplingConfig
from espalier.config.sections import ModelConfig, TurnsConfig
from espalier.data.render.form import Form
from espalier.data.render.renderer import Renderer
from espalier.data.render.templates import apply_template, complete
from espalier.engines.processes import pick_device
from espalier.errors import ConfigError, RowError
from espalier.models.load import Loaded, load_model
from espalier.models.merge import load_merged
from espalier.models.stops import stops_of
from espalier.types import Message

GREEDY = SamplingConfig(temperature=0.0)


class Chatter:
    """Answers prompts with a model, through the template that its training uses. `note` says which sampler draws."""

    def __init__(self, loaded: Loaded, turns: TurnsConfig | None = None, sampler: Kind = "auto"):
        self.tokenizer = loaded.tokenizer
        form = Form(turns=turns or TurnsConfig())
        stops = stops_of(loaded.folder, loaded.adapter)
        self.renderer = Renderer(loaded.tokenizer, form=form, known_stops=stops)
        built = build_sampler(loaded, kind=sampler)
        self.sampler, self.note = built.sampler, built.note
        self.limit, self.original_limit = loaded.limit, loaded.original_limit

    @classmethod
    def load(
        cls,
        config: ModelConfig,
        device: str | None = None,
        turns: TurnsConfig | None = None,
        sampler: Kind = "auto",
    ) -> Chatter:
        """Read a model for answering, with its adapter merged into it; `turns` says what its chat template is given.
        Raises ModelError and ConfigError."""
        read = load_merged if config.adapter else load_model
        loaded = read(config, device=pick_device() if device is None else device)
        apply_template(loaded.tokenizer, config.template)
        complete(loaded.tokenizer)
        model: Any = loaded.model
        model.to(compute_dtype(config.dtype, loaded.model.device))
        return cls(loaded, turns, sampler)

    def answer(
        self,
        prompts: Sequence[str],
        sampling: SamplingConfig = GREEDY,
        *,
        chat: bool = True,
        system: str = "",
        seed: int = 0,
    ) -> list[str]:
        """One response per prompt, without special tokens. With `chat` a prompt is a user's message; otherwise it is
        text to be continued.

        An answer ends at a stop token, after max_tokens, or at the model's limit. sampling: how it is drawn, by the
        sampler of this object. Raises ConfigError if `chat` is on and the model has no template, and if a prompt leaves
        no room for an answer.
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
        params = params_of(sampling, self.renderer.stop_ids, seed)
        each = [replace(params, max_tokens=self._room(prompt, params.max_tokens)) for prompt in ids]
        out = []
        for prompt, (response,) in zip(ids, draw_groups(self.sampler, ids, 1, each), strict=True):
            out.append(str(self.tokenizer.decode(response.tokens[len(prompt) :], skip_special_tokens=True)))
        return out

    def _room(self, prompt: list[int], most: int) -> int:
        """The most tokens of the answer to a prompt."""
        tokens = room(len(prompt), most, self.limit, self.original_limit)
        if tokens < 1:
            raise ConfigError(
                f"a prompt has {len(prompt)} tokens; the model takes {self.limit}. Shorten it", key="prompt"
            )
        return tokens
