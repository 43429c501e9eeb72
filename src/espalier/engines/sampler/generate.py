"""A sampler on transformers' `generate`, for architectures that carry state along a row: batches of whole responses,
prompts padded on the left, the trained model itself."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from espalier.engines.protocols import Drawn, Request, SamplingParams
from espalier.engines.sampler.draw import counter_uniform, draw, penalise
from espalier.engines.sampler.model import Drawable, copy_weights
from espalier.engines.sampler.rows import Row, check_request, waiting
from espalier.engines.sampler.stops import watch
from espalier.models.layout import obstacle


class GenerateSampler:
    """Draws responses with transformers' `generate`, from the model that is being trained or any other.

    model: a `Policy` or a causal LM in transformers; its modes, attention function and generation config are put back
    after each call. limit, original_limit: as in `models.load.Loaded`.
    rows: the most responses of a batch. tokens: bound on rows times (longest prompt + max_tokens), padding included.
    tokenizer: for stop strings. interrupted: asked after every token; once it is true, `finished` returns nothing, and
    the batch is drawn again by a later call. pack: as in `LocalSampler`.
    """

    def __init__(
        self,
        model: Any,
        *,
        limit: int | None = None,
        original_limit: int | None = None,
        rows: int = 64,
        tokens: int = 16384,
        tokenizer: Any = None,
        interrupted: Callable[[], bool] | None = None,
        pack: bool = True,
    ):
        self.drawable = Drawable(model, forest=False, pack=pack)
        self.model: Any = self.drawable.model
        self.limit, self.original_limit = limit, original_limit
        self.rows, self.tokens = rows, tokens
        self.tokenizer = tokenizer
        self.interrupted = interrupted or (lambda: False)
        self.version = 0
        # Mixers that carry state may read what stands left of a prompt.
        self.reads_padding = obstacle(self.model) is not None
        self._waiting: list[Row] = []
        self._order = 0

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests. Raises ConfigError for what `rows.check_request` refuses, and for stop strings without a
        tokenizer."""
        for request in requests:
            check_request(request, self.limit, self.original_limit)
            watch(self.tokenizer, request.params)
        for request in requests:
            for ks in waiting(request).ks:
                self._waiting.append(Row(request, ks, self._order, None, 0))
                self._order += 1

    @property
    def busy(self) -> bool:
        """Whether something that was submitted has not been returned."""
        return bool(self._waiting)

    @torch.no_grad()
    def finished(self) -> list[Drawn]:
        """Draw one batch of responses and return them in the order of their requests; empty if not `busy` and after an
        interruption."""
        if not self._waiting:
            return []
        rows = self._batch()
        with self.drawing():
            self._draw(rows)
        if self.interrupted():
            return []
        chosen = {id(row) for row in rows}
        self._waiting = [row for row in self._waiting if id(row) not in chosen]
        return [drawn for row in rows for drawn in row.drawn(self.version)]

    def cancel(self, groups: Sequence[int]) -> None:
        """Forget all requests of these groups."""
        chosen = set(groups)
        self._waiting = [row for row in self._waiting if row.request.group not in chosen]

    def load(self, weights: Iterable[tuple[str, Tensor]] | None, version: int) -> None:
        """Take over weights by Hugging Face name; None if they are the trained model's own, which it has already.

        Raises ModelError if names or shapes differ from the model's, and ValueError inside `drawing`.
        """
        if self.drawable.inside:
            raise ValueError(f"load got version {version} inside drawing, which holds the old weights; leave it first")
        if weights is not None:
            copy_weights(self.model, weights)
        self.version = version

    @contextlib.contextmanager
    def drawing(self) -> Iterator[None]:
        """Inside, the model is ready to be drawn from; see `Sampler.drawing`."""
        with self.drawable.drawing():
            yield

    def allocate(self, prompts: int, longest: int, max_tokens: int) -> int:
        """Nothing: transformers allocates its cache anew in every call."""
        return 0

    def _batch(self) -> list[Row]:
        """The rows to draw now: the first that waits, and those after it that have its params and fit."""
        first = self._waiting[0]
        params, longest = first.request.params, len(first.request.prompt)
        side = self._side(first)
        batch: list[Row] = []
        for row in self._waiting:
            length = len(row.request.prompt)
            if row.request.params != params or self._side(row) != side:
                continue
            if self.reads_padding and length != len(first.request.prompt):
                continue
            widest = max(longest, length)
            if batch and (len(batch) + 1) * (widest + params.max_tokens) > self.tokens:
                continue
            batch.append(row)
            longest = widest
            if len(batch) == self.rows:
                break
        return batch

    def _side(self, row: Row) -> bool:
        """On which side of a switch of its RoPE a row lies: one forward cannot have both."""
        return bool(self.original_limit) and len(row.request.prompt) > (self.original_limit or 0)

    def _draw(self, rows: Sequence[Row]) -> None:
        """Draw all tokens of the rows, from the start."""
        params, device = rows[0].request.params, self.drawable.device
        width = max(len(row.request.prompt) for row in rows)
        inputs, masks = [], []
        for row in rows:
            row.tokens, row.logprobs, row.masses = [], [], []
            row.text = watch(self.tokenizer, params)
            prompt = row.request.prompt
            inputs.append([0] * (width - len(prompt)) + prompt)
            masks.append([0] * (width - len(prompt)) + [1] * len(prompt))
        settings = GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=params.max_tokens, do_sample=False, use_cache=True, pad_token_id=0
        )
        steps = _Steps(rows, params, self.interrupted)
        defaults = self.model.generation_config
        # None of the model's generation defaults.
        self.model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
        try:
            self.model.generate(
                input_ids=torch.tensor(inputs, device=device),
                attention_mask=torch.tensor(masks, device=device),
                generation_config=settings,
                logits_processor=LogitsProcessorList([steps]),
                stopping_criteria=StoppingCriteriaList([_Ended(steps)]),
            )
        finally:
            self.model.generation_config = defaults


class _Steps(LogitsProcessor):
    """Draws the next token of every row that has not ended, records it, and leaves no other possible."""

    def __init__(self, rows: Sequence[Row], params: SamplingParams, interrupted: Callable[[], bool]):
        self.rows, self.params, self.interrupted = rows, params, interrupted
        self.ended = [False] * len(rows)
        self.seen: Tensor | None = None

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        rows, params = self.rows, self.params
        logits_BV = scores.to(torch.promote_types(scores.dtype, torch.float32), copy=True)
        if params.repetition_penalty != 1:
            penalise(logits_BV, self._seen(logits_BV), params.repetition_penalty)
        u = None
        if params.temperature > 0:
            counters = [
                [row.request.row for row in rows],
                [row.request.epoch for row in rows],
                [row.ks[0] for row in rows],
                [len(row.tokens) for row in rows],
            ]
            u = torch.from_numpy(counter_uniform(params.seed, *counters)).to(scores.device)
        token_B, logprob_B, mass_B = draw(logits_BV, params, u)
        if self.seen is not None:
            self.seen.scatter_(1, token_B[:, None], True)
        masses = [1.0] * len(rows) if mass_B is None else mass_B.tolist()
        for i, drawn in enumerate(zip(token_B.tolist(), logprob_B.tolist(), masses, strict=True)):
            # What `generate` appends to a row that has ended does not belong to it.
            if not self.ended[i]:
                self.ended[i] = rows[i].take(*drawn)
        return torch.full_like(scores, -torch.inf).scatter_(1, token_B[:, None], 0.0)

    def _seen(self, logits_BV: Tensor) -> Tensor:
        if self.seen is None:
            self.seen = torch.zeros_like(logits_BV, dtype=torch.bool)
            for i, row in enumerate(self.rows):
                self.seen[i, torch.tensor(row.request.prompt, device=logits_BV.device)] = True
        return self.seen


class _Ended(StoppingCriteria):
    """Ends the rows that `_Steps` has ended, and all after an interruption."""

    def __init__(self, steps: _Steps):
        self.steps = steps

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        ended = torch.tensor(self.steps.ended, device=input_ids.device)
        return torch.ones_like(ended) if self.steps.interrupted() else ended
