"""Responses in flight, and the requests that wait for room."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from espalier.engines.protocols import Drawn, Request
from espalier.engines.sampler.draw import filters
from espalier.engines.sampler.stops import TextWatch
from espalier.engines.sampler.store import Held, Store
from espalier.errors import ConfigError
from espalier.models.attention.decode import Prompts
from espalier.types import Sample


@dataclass(slots=True, eq=False)
class Row:
    """A response in flight. `base` is the position of its first own key; `own` are the keys that it holds. `ks` are the
    samples that it stands for. `seen` [V]: which tokens prompt and response have, if there is a penalty on repetition;
    `text` watches for stop strings."""

    request: Request
    ks: tuple[int, ...]
    order: int
    held: Held | None
    base: int
    own: int = 0
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    masses: list[float] = field(default_factory=list)
    stopped: bool = False
    seen: Tensor | None = None
    text: TextWatch | None = None

    def take(self, token: int, logprob: float, mass: float) -> bool:
        """Grow by a token; returns whether the response ends with it."""
        self.tokens.append(token)
        self.logprobs.append(logprob)
        self.masses.append(mass)
        if self.seen is not None:
            self.seen[token] = True
        params = self.request.params
        self.stopped = token in params.stop or (self.text is not None and self.text.feed(token))
        return self.stopped or len(self.tokens) == params.max_tokens

    def drawn(self, version: int) -> list[Drawn]:
        """The response as a sample, one for each of `ks`."""
        return [Drawn(self.request, k, self._sample(k, version)) for k in self.ks]

    def _sample(self, k: int, version: int) -> Sample:
        request = self.request
        temperature = request.params.temperature or 1.0
        sample = Sample(group=request.group, key=sample_key(request.row, k), temperature=temperature, version=version)
        sample.append(request.prompt, trained=False)
        sample.append(self.tokens, trained=True, logprobs=self.logprobs)
        if filters(request.params):
            # Nothing of the prompt was drawn, so nothing was left out.
            sample.streams["mass"] = [1.0] * len(request.prompt) + self.masses
        sample.stop = "stop" if self.stopped else "length"
        return sample


def sample_key(row: int, k: int) -> int:
    """`Sample.key` of sample k of a task: distinct for all of them, up to 65,536 samples a task."""
    return (row << 16) + k


@dataclass(slots=True, eq=False)
class Waiting:
    """What of a request is still to be admitted: `ks` by response, more than one if all are the same."""

    request: Request
    ks: deque[tuple[int, ...]]
    held: Held | None = None


def waiting(request: Request) -> Waiting:
    """A request in full. Greedy responses to a prompt are all the same, so one is drawn for every k."""
    if request.params.temperature == 0:
        return Waiting(request, deque([request.ks]))
    return Waiting(request, deque((k,) for k in request.ks))


def check_request(request: Request, limit: int | None, original_limit: int | None) -> None:
    """Raise ConfigError for a request that the model cannot serve; see `Sampler.submit`."""
    length, most = len(request.prompt), request.params.max_tokens
    name = f"the prompt of task {request.row}"
    if not length:
        raise ConfigError(f"{name} is empty; expected at least one token, such as the tokenizer's BOS", key="prompt")
    if limit is not None and length + most > limit:
        raise ConfigError(
            f"{name} has {length} tokens, and max_tokens is {most}; the model takes {limit} in all. Shorten the prompt "
            f"or set max_tokens to at most {limit - length}",
            key="max_tokens",
        )
    if original_limit and original_limit != limit and length <= original_limit < length + most:
        raise ConfigError(
            f"{name} has {length} tokens, and max_tokens is {most}: they cross {original_limit} tokens, at which the "
            "model changes its rotary embedding, so that keys held from before would be wrong. Set max_tokens to at "
            f"most {original_limit - length}",
            key="max_tokens",
        )
    if not request.ks:
        raise ConfigError(f"the request of task {request.row} has no ks; expected at least one sample", key="ks")


def readers(store: Store, rows: Sequence[Row]) -> list[Prompts]:
    """Which rows read which prompts, shelf by shelf."""
    shelves = []
    for shelf in store.shelves.values():
        places = {id(prompt): prompt.place for prompt in shelf.prompts}
        slots = [slot for slot, row in enumerate(rows) if id(row.held) in places]
        if not slots:
            continue
        counts = [0] * len(places)
        spots = []
        for slot in slots:
            place = places[id(rows[slot].held)]
            spots.append((place, counts[place]))
            counts[place] += 1
        width = max(counts)
        cells = [place * width + number for place, number in spots]
        lengths = [len(prompt.tokens) for prompt in shelf.prompts]
        chosen = slots if len(slots) < len(rows) else None
        shelves.append(Prompts(shelf.keys, shelf.values, lengths, width, cells, chosen))
    return shelves
