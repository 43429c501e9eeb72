"""The embedded sampler: draws from the trained model itself, through the attention function that training uses."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from espalier.engines.protocols import Drawn, Request, SamplingParams
from espalier.engines.sampler.admission import Bounds, plan
from espalier.engines.sampler.draw import counter_uniform, draw, penalise
from espalier.engines.sampler.model import Drawable, copy_weights
from espalier.engines.sampler.packed import is_packed
from espalier.engines.sampler.prefill import prefill
from espalier.engines.sampler.rows import Row, Waiting, check_request, readers, waiting
from espalier.engines.sampler.stops import watch
from espalier.engines.sampler.store import Held, Shapes, Store, padded_length, token_bytes
from espalier.errors import ConfigError
from espalier.models.attention.decode import Decode, Prompts
from espalier.models.layout import obstacle
from espalier.models.policy import backbone_of
from espalier.models.token_head import head_weights, logits, token_head_of

CPU_PREFILL = 2048
CUDA_PREFILL = 8192
"""Packed prompt tokens of one forward."""


class LocalSampler:
    """Draws responses from a model in place, many at a time, and admits waiting requests as others end.

    model: a `Policy` or a causal LM in transformers whose layers call the attention interface.
    limit, original_limit: as in `models.load.Loaded`.
    rows: the most responses in flight. tokens: the most tokens whose keys and values are held, 0 for no bound.
    tokenizer: for stop strings.
    interrupted: asked after every forward pass; once it is true, `finished` returns what has ended, possibly nothing,
    although the sampler is busy. A later call goes on where it stopped.
    pack: inside `drawing` linear layers on CPU compute with a copy of their weights (see `packed`).

    Prompts go through the model as in training: those admitted together are one forest. Their keys and values are held
    once for all rows of a prompt. The order of all work depends on requests and on lengths only, so the same requests
    in the same order give the same bits; with other requests beside it a response's numbers differ by rounding.

    Raises ValueError for an architecture that needs another sampler.
    """

    def __init__(
        self,
        model: Any,
        *,
        limit: int | None = None,
        original_limit: int | None = None,
        rows: int = 256,
        tokens: int = 0,
        tokenizer: Any = None,
        interrupted: Callable[[], bool] | None = None,
        pack: bool = True,
    ):
        self.drawable = Drawable(model, forest=True, pack=pack)
        self.model: Any = self.drawable.model
        reason = obstacle(self.model)
        if reason:
            raise ValueError(f"{reason}; expected an architecture that packs")
        self.limit, self.original_limit = limit, original_limit
        self.rows, self.tokens = rows, tokens
        self.tokenizer = tokenizer
        self.interrupted = interrupted or (lambda: False)
        self.version = 0
        self.backbone = backbone_of(self.model)
        self.head = token_head_of(self.model.config.get_text_config())
        self.device = self.drawable.device
        self.store = Store(self.device)
        self._waiting: deque[Waiting] = deque()
        self._rows: list[Row] = []
        self._held: dict[tuple[int, ...], Held] = {}
        # Hidden states [rows, D] that the next tokens are drawn from; None if those of the last draw are to be fed.
        self._hidden: Tensor | None = None
        self._prompts: list[Prompts] | None = None
        # Weight and bias of the head, while rows are in flight: nothing trains then.
        self._weights: tuple[Tensor, Tensor | None] | None = None
        self._params: dict[SamplingParams, SamplingParams] = {}
        self._order = 0

    # --------------------------------------------------------------------------------------------------------- verbs

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests, which are admitted in this order.

        Raises ConfigError for an empty prompt, one without room for `max_tokens` below the model's limit or within the
        sampler's tokens, one that crosses a switch of its RoPE, and stop strings without a tokenizer.
        """
        entries = []
        for request in requests:
            check_request(request, self.limit, self.original_limit)
            least = padded_length(len(request.prompt)) + request.params.max_tokens
            if self.tokens and least > self.tokens:
                raise ConfigError(
                    f"one response to task {request.row} needs keys and values of {least} tokens, the sampler holds "
                    f"{self.tokens}; raise sampler_tokens or lower max_tokens",
                    key="sampler_tokens",
                )
            watch(self.tokenizer, request.params)
            params = self._params.setdefault(request.params, request.params)
            entries.append(waiting(request if params is request.params else replace(request, params=params)))
        self._waiting.extend(entries)

    @property
    def busy(self) -> bool:
        """Whether something that was submitted has not been returned."""
        return bool(self._rows or self._waiting)

    @torch.no_grad()
    def finished(self) -> list[Drawn]:
        """Work until at least one response ends, and return those that have, by order of admission; empty if not `busy`
        and after an interruption."""
        ended: list[Row] = []
        # Nothing is laid out for a single call.
        with self.drawable.drawing(pack=False):
            while self.busy and not ended:
                if self._rows and self._hidden is None:
                    self._forward()
                    if self.interrupted():
                        break
                self._admit()
                if self.interrupted():
                    break
                ended = self._draw()
        return [drawn for row in sorted(ended, key=lambda row: row.order) for drawn in row.drawn(self.version)]

    def cancel(self, groups: Sequence[int]) -> None:
        """Forget all requests of these groups, whether admitted or waiting."""
        chosen = set(groups)
        for entry in self._waiting:
            if entry.request.group in chosen:
                self._release(entry.held, len(entry.ks))
        self._waiting = deque(entry for entry in self._waiting if entry.request.group not in chosen)
        self._remove([slot for slot, row in enumerate(self._rows) if row.request.group in chosen])

    def load(self, weights: Iterable[tuple[str, Tensor]] | None, version: int) -> None:
        """Take over weights by Hugging Face name; None if they are the trained model's own, which it has already.

        Raises ModelError if names or shapes differ from the model's, and ValueError inside `drawing` and while
        responses are in flight, whose keys the old weights made.
        """
        if self._rows or self._held:
            raise ValueError(f"load got version {version} with {len(self._rows)} responses in flight; cancel them")
        if self.drawable.inside:
            raise ValueError(f"load got version {version} inside drawing, which holds the old weights; leave it first")
        if weights is not None:
            copy_weights(self.model, weights)
        self.version = version

    @contextlib.contextmanager
    def drawing(self) -> Iterator[None]:
        """Inside, the model is ready to be drawn from: evaluation mode, weights whole on every rank, and on CPU laid
        out for it, which takes as long as one decode step and the room of the weights.

        With several processes a rollout must stand inside it on all ranks, which gather weights on entering and drop
        them on leaving; in between, ranks share nothing and may take different numbers of steps.
        """
        with self.drawable.drawing():
            yield

    # -------------------------------------------------------------------------------------------------------- memory

    def bytes_held(self, tokens: int) -> int:
        """Bytes of the keys and values of so many tokens, rows' and prompts' together."""
        return tokens * token_bytes(self.model.config, next(self.model.parameters()).dtype)

    @torch.no_grad()
    def allocate(self, prompts: int, longest: int, max_tokens: int) -> int:
        """Make and write all room that a rollout of so many prompts, each up to `longest` tokens, can need at the same
        time, and keep the rows' part of it. Returns its bytes; memory that is missing is missing now.

        Raises ValueError while responses are in flight. A collective if the model is sharded.
        """
        if self.busy:
            raise ValueError(f"allocate got a sampler with {len(self._rows)} responses in flight; expected none")
        # Inside: what drawing takes beside keys and values is there at the same time.
        with self.drawing():
            _, kept, _ = prefill(self.backbone, [[0]], self.device)
            shapes: Shapes = {i: (k.shape[1], k.shape[3], v.shape[3]) for i, (k, v) in kept.items()}
            dtype = next(iter(kept.values()))[0].dtype
            padded = prompts * padded_length(longest)
            slots = self.rows if not self.tokens else min(self.rows, max(1, (self.tokens - padded) // max_tokens))
            self.store.fit(shapes, dtype, slots, max_tokens, 0, 0, slots)
            size = self.store.touch()
            # Written and given back: the prompts' keys take its place.
            width = sum(heads * (keys + values) for heads, keys, values in shapes.values())
            size += torch.full((padded, width), 1, dtype=dtype, device=self.device).nbytes
        return size

    # ----------------------------------------------------------------------------------------------------- admission

    def _admit(self) -> None:
        """Run the prompts of waiting requests that have room, a forward for every few, and add their rows."""
        if not self._waiting:
            return
        bounds = Bounds(self.rows, self.tokens, self.original_limit)
        planned = plan(self._waiting, self._rows, self._held, self.store.widths(), bounds)
        budget = CUDA_PREFILL if self.device.type == "cuda" else CPU_PREFILL
        wave: list[tuple[Waiting, int]] = []
        size = 0
        for entry, number in planned:
            length = len(entry.request.prompt)
            if wave and size + length > budget:
                self._place(wave)
                if self.interrupted():
                    return
                wave, size = [], 0
            wave.append((entry, number))
            size += length
        if wave:
            self._place(wave)

    def _place(self, wave: Sequence[tuple[Waiting, int]]) -> None:
        """Run the prompts of these requests through the model and add their rows."""
        fresh: dict[tuple[int, ...], int] = {}
        for entry, _ in wave:
            prompt = tuple(entry.request.prompt)
            if prompt not in self._held:
                fresh.setdefault(prompt, len(fresh))
        if fresh:
            hidden_PD, kept, places = prefill(self.backbone, list(fresh), self.device)
            shapes: Shapes = {i: (k.shape[1], k.shape[3], v.shape[3]) for i, (k, v) in kept.items()}
            prompts = [(prompt, hidden_PD[i : i + 1]) for prompt, i in fresh.items()]
            for held in self.store.add(kept, places, prompts):
                self._held[held.tokens] = held
            dtype = next(iter(kept.values()))[0].dtype
        else:
            shapes, dtype = self.store.shapes, self.store.dtype
        count = len(self._rows) + sum(number for _, number in wave)
        requests = [*(entry.request for entry, _ in wave), *(row.request for row in self._rows)]
        capacity = max(request.params.max_tokens for request in requests)
        used, expected = len(self._rows), min(self.rows, sum(len(entry.ks) for entry in self._waiting))
        self.store.fit(shapes, dtype, self._slots(count, capacity), capacity, used, self._longest(), expected)
        states = [] if self._hidden is None else [self._hidden]
        for entry, number in wave:
            held = self._held[tuple(entry.request.prompt)]
            if entry.held is None:
                entry.held = held
                held.uses += len(entry.ks)
            for _ in range(number):
                row = Row(entry.request, entry.ks.popleft(), self._order, held, len(entry.request.prompt))
                row.text = watch(self.tokenizer, entry.request.params)
                if entry.request.params.repetition_penalty != 1:
                    row.seen = self._seen(entry.request.prompt)
                self._order += 1
                self._rows.append(row)
            states.append(held.hidden.expand(number, -1))
            if not entry.ks:
                self._waiting.popleft()
        self._hidden = torch.cat(states)
        self._prompts = None

    def _slots(self, count: int, capacity: int) -> int:
        """For how many rows to make room if `count` are needed: half as many again as there were, so that growing is
        rare, within the bounds."""
        most = self.rows
        if self.tokens:
            most = min(most, (self.tokens - self.store.prompt_tokens) // capacity)
        return max(count, min(most, self.store.slots * 3 // 2)) if count > self.store.slots else count

    def _seen(self, prompt: Sequence[int]) -> Tensor:
        """Which tokens a prompt has: bool [V]."""
        vocabulary = head_weights(self.model.get_output_embeddings())[0].shape[0]
        seen = torch.zeros(vocabulary, dtype=torch.bool, device=self.device)
        seen[torch.tensor(prompt, device=self.device)] = True
        return seen

    # --------------------------------------------------------------------------------------------------------- steps

    def _longest(self) -> int:
        """The most own keys of a row."""
        return max((row.own for row in self._rows), default=0)

    def _forward(self) -> None:
        """Run the last drawn token of every row through the model."""
        rows = self._rows
        if self._prompts is None:
            self._prompts = readers(self.store, rows)
        decode = Decode(
            self.store.keys,
            self.store.values,
            [row.own for row in rows],
            [row.base for row in rows],
            self._prompts,
            self.device,
        )
        out = self.backbone(
            input_ids=torch.tensor([[row.tokens[-1]] for row in rows], device=self.device),
            position_ids=decode.positions[:, None],
            use_cache=False,
            decode=decode,
        )
        self._hidden = out.last_hidden_state[:, 0]
        for row in rows:
            row.own += 1

    def _draw(self) -> list[Row]:
        """Draw the next token of every row; returns the rows that ended with it, which are gone."""
        hidden = self._hidden
        assert hidden is not None
        if self._weights is None:
            weight, bias = head_weights(self.model.get_output_embeddings())
            self._weights = weight.to(hidden.dtype), bias
        module = self.model.get_output_embeddings()
        logits_BV = logits(hidden, *self._weights, self.head, module if is_packed(module) else None)
        self._hidden = None
        # Equal params are one object since `submit`.
        groups: dict[int, list[int]] = {}
        for slot, row in enumerate(self._rows):
            groups.setdefault(id(row.request.params), []).append(slot)
        ended: list[int] = []
        for slots in groups.values():
            part = logits_BV if len(slots) == len(self._rows) else logits_BV[slots]
            ended += self._draw_rows(slots, part)
        done = [self._rows[slot] for slot in ended]
        self._remove(sorted(ended))
        return done

    def _draw_rows(self, slots: Sequence[int], logits_BV: Tensor) -> list[int]:
        """Draw for the rows `slots`, whose params are the same; returns those that ended."""
        rows = [self._rows[slot] for slot in slots]
        params = rows[0].request.params
        if params.repetition_penalty != 1:
            seen_BV = torch.stack([row.seen for row in rows if row.seen is not None])
            penalise(logits_BV, seen_BV, params.repetition_penalty)
        u = None
        if params.temperature > 0:
            keys = [
                [row.request.row for row in rows],
                [row.request.epoch for row in rows],
                [row.ks[0] for row in rows],
                [len(row.tokens) for row in rows],
            ]
            u = torch.from_numpy(counter_uniform(params.seed, *keys)).to(self.device)
        tokens, logprobs, masses = draw(logits_BV, params, u)
        ended = []
        columns = (tokens.tolist(), logprobs.tolist(), [1.0] * len(rows) if masses is None else masses.tolist())
        for slot, row, token, logprob, mass in zip(slots, rows, *columns, strict=True):
            if row.take(token, logprob, mass):
                ended.append(slot)
        return ended

    def _remove(self, slots: Sequence[int]) -> None:
        """Take rows out, in ascending order; the last ones take their places."""
        if not slots:
            return
        moved: dict[int, int] = {}
        order = list(range(len(self._rows)))
        for slot in reversed(slots):
            self._release(self._rows[slot].held, 1)
            last = len(self._rows) - 1
            self._rows[slot] = self._rows[last]
            order[slot] = order[last]
            self._rows.pop()
            order.pop()
        moved = {target: source for target, source in enumerate(order) if target != source}
        if not self._rows:
            self._weights = None
        self.store.move(list(moved.values()), list(moved), self._longest())
        if self._hidden is not None:
            self._hidden = self._hidden[order] if order else None
        self._prompts = None

    def _release(self, held: Held | None, uses: int) -> None:
        """Count down what reads a prompt, and drop one that nothing reads."""
        if held is None:
            return
        held.uses -= uses
        if not held.uses:
            del self._held[held.tokens]
            self.store.drop(held)
