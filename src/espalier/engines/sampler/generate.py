"""A plain sampler on transformers' `generate`: batches of prompts padded on the left, the trained model itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from espalier.engines.protocols import SamplingParams
from espalier.errors import ConfigError, ModelError
from espalier.models.attention.interface import own_attention
from espalier.models.layout import obstacle
from espalier.models.stops import as_ids
from espalier.types import Sample


class GenerateSampler:
    """Draws responses with transformers' `generate`, from the model that is being trained or any other.

    model: a causal LM in transformers; its mode, attention function and generation config are put back after each call.
    tokenizer: used for its end-of-text token only, if `params.stop` is empty.
    limit: the longest sequence the model takes, in tokens.
    tokens_per_batch: bound on prompts times (longest prompt + max_tokens), padding included.
    dtype: compute dtype under autocast, None for the weights' own.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        limit: int | None = None,
        tokens_per_batch: int = 16384,
        dtype: torch.dtype | None = None,
    ):
        self.model: Any = model
        self.tokenizer = tokenizer
        self.limit = limit
        self.tokens_per_batch = tokens_per_batch
        self.dtype = dtype
        self.version = 0

    def load(self, weights: Iterable[tuple[str, Tensor]] | None, version: int) -> None:
        """Take over weights by Hugging Face name; None if the model is the trained one and has them already.

        Raises ModelError if names or shapes differ from the model's.
        """
        if weights is not None:
            self._copy(weights)
        self.version = version

    def _copy(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        live = dict(self.model.named_parameters(remove_duplicate=False))
        live |= dict(self.model.named_buffers(remove_duplicate=False))
        for name, tensor in weights:
            if name not in live or live[name].shape != tensor.shape:
                got = f"{name} of shape {tuple(tensor.shape)}"
                raise ModelError(f"the sampler got weights {got}, which its {type(self.model).__name__} does not have")
            live[name].data.copy_(tensor)

    def generate(self, prompts: Sequence[list[int]], n: int, params: SamplingParams) -> list[list[Sample]]:
        """`n` samples for each prompt, in order: the prompt untrained, the response (its stop token included) trained.

        A token is the inverse of the cumulative softmax of logits / temperature at one uniform number, which depends on
        (seed, index of the prompt, k, position in the response) and nothing else; temperature 0 takes the likeliest.
        The stream `logprobs` holds log softmax(logits / temperature) of the tokens drawn, in float32 (if greedy, at
        temperature 1, which is then the sample's `temperature`). A response ends at the first of `params.stop`, or, if
        that is empty, at what the tokenizer and the model's generation config name as the end (`stop`), else after
        max_tokens or at the model's limit (`length`). `key` is index * n + k, `group` the prompt's index.

        Raises ConfigError for an empty prompt and one that leaves no room for a token.
        """
        for i, prompt in enumerate(prompts):
            if not prompt:
                raise ConfigError(f"prompt {i} is empty; expected at least one token, such as the tokenizer's BOS")
            if self.limit is not None and len(prompt) >= self.limit:
                raise ConfigError(f"prompt {i} has {len(prompt)} tokens; the model takes {self.limit}. Shorten it")
        stop = set(params.stop)
        if not stop:
            tokenizers = [] if self.tokenizer is None else [self.tokenizer]
            for source in (self.model.generation_config, *tokenizers):
                stop.update(as_ids(getattr(source, "eos_token_id", None)))
        # Greedy responses to a prompt are all the same, so one is computed.
        draws = 1 if params.temperature == 0 else n
        requests = [(i, k, len(prompt)) for i, prompt in enumerate(prompts) for k in range(draws)]
        responses: dict[tuple[int, int], tuple[list[int], list[float]]] = {}
        with self._sampling():
            for rows, room in self._batches(requests, params.max_tokens):
                of_rows = self._batch([prompts[i] for i, _ in rows], rows, room, stop, params)
                responses.update(zip(rows, of_rows, strict=True))
        groups: list[list[Sample]] = []
        for i, prompt in enumerate(prompts):
            groups.append([self._sample(prompt, responses[i, k % draws], i, i * n + k, stop, params) for k in range(n)])
        return groups

    def _sample(
        self,
        prompt: list[int],
        response: tuple[list[int], list[float]],
        group: int,
        key: int,
        stop: set[int],
        params: SamplingParams,
    ) -> Sample:
        tokens, logprobs = response
        sample = Sample(group=group, key=key, temperature=params.temperature or 1.0, version=self.version)
        sample.append(prompt, trained=False)
        sample.append(tokens, trained=True, logprobs=logprobs)
        sample.stop = "stop" if tokens and tokens[-1] in stop else "length"
        return sample

    def _batches(
        self, requests: list[tuple[int, int, int]], max_tokens: int
    ) -> Iterator[tuple[list[tuple[int, int]], int]]:
        """Rows (prompt, k) of similar length, with the number of tokens each may still grow by, from requests (prompt,
        k, length of the prompt).

        All rows of a batch have the same room, and the same prompt length if the model's mixers may read the padding.
        """
        reads_padding = obstacle(self.model) is not None
        rooms: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
        for i, k, length in requests:
            room = max_tokens if self.limit is None else min(max_tokens, self.limit - length)
            rooms.setdefault((room, length if reads_padding else 0), []).append((i, k, length))
        for (room, _), rows in sorted(rooms.items()):
            batch: list[tuple[int, int]] = []
            for i, k, length in sorted(rows, key=lambda row: (row[2], row[0], row[1])):
                if batch and (len(batch) + 1) * (length + room) > self.tokens_per_batch:
                    yield batch, room
                    batch = []
                batch.append((i, k))
            yield batch, room

    def _batch(
        self, prompts: list[list[int]], rows: list[tuple[int, int]], room: int, stop: set[int], params: SamplingParams
    ) -> list[tuple[list[int], list[float]]]:
        device = next(self.model.parameters()).device
        width = max(len(prompt) for prompt in prompts)
        inputs = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
        draw = _Draw(params.seed, rows, width, params.temperature)
        settings = GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=room, do_sample=False, use_cache=True, eos_token_id=sorted(stop) or None, pad_token_id=0
        )
        cast = contextlib.nullcontext() if self.dtype is None else torch.autocast(device.type, dtype=self.dtype)
        with torch.no_grad(), cast:
            out = self.model.generate(
                input_ids=inputs,
                attention_mask=mask,
                generation_config=settings,
                logits_processor=LogitsProcessorList([draw]),
            )
        logprobs = torch.stack(draw.logprobs, 1).tolist()
        responses = []
        for tokens, numbers in zip(out[:, width:].tolist(), logprobs, strict=True):
            # The stop token belongs to the response; what `generate` appends to a row that has
            # ended does not.
            end = next((j + 1 for j, token in enumerate(tokens) if token in stop), len(tokens))
            responses.append((tokens[:end], numbers[:end]))
        return responses

    @contextlib.contextmanager
    def _sampling(self) -> Iterator[None]:
        """Evaluation mode, an attention function that reads a cache, and none of the model's generation defaults."""
        model = self.model
        # Module by module: the caller may have some of them in another mode than the whole.
        modes = [(module, module.training) for module in model.modules()]
        defaults = model.generation_config
        model.eval()
        model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
        try:
            # The attention of packed batches reads no cache, without which every token would cost the whole prefix.
            with own_attention(model):
                yield
        finally:
            model.generation_config = defaults
            for module, mode in modes:
                module.training = mode


class _Draw(LogitsProcessor):
    """Leaves one token possible, the one drawn, and keeps its log-probability."""

    def __init__(self, seed: int, rows: list[tuple[int, int]], width: int, temperature: float):
        self.seed, self.rows, self.width, self.temperature = seed, np.array(rows), width, temperature
        self.logprobs: list[Tensor] = []

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        logprobs_BV = torch.log_softmax(scores.float() / (self.temperature or 1.0), dim=-1)
        if self.temperature == 0:
            token_B = scores.argmax(-1)
        else:
            position = input_ids.shape[1] - self.width
            u = counter_uniform(self.seed, self.rows[:, 0], self.rows[:, 1], position)
            token_B = inverse_cdf(logprobs_BV, torch.from_numpy(u).to(scores.device))
        self.logprobs.append(logprobs_BV.gather(1, token_B[:, None])[:, 0])
        return torch.full_like(scores, -torch.inf).scatter_(1, token_B[:, None], 0.0)


def inverse_cdf(logprobs_BV: Tensor, u_B: Tensor) -> Tensor:
    """The token whose interval of the cumulative distribution holds u, a token id for each row.

    >>> inverse_cdf(torch.tensor([[0.2, 0.3, 0.5]]).log(), torch.tensor([0.45]))
    tensor([1])
    """
    cumulative_BV = logprobs_BV.double().exp().cumsum(-1)
    # The first entry above u times the total: never a token of probability 0, whose interval is
    # empty.
    return torch.searchsorted(cumulative_BV, (u_B * cumulative_BV[:, -1])[:, None], right=True)[:, 0]


def counter_uniform(seed: int, *counters: Any) -> Any:
    """Uniform numbers in (0, 1), a function of the integers alone: float64, of the counters' broadcast shape.

    Each integer in turn is joined to the state, which SplitMix64's finaliser then mixes (Steele et al. 2014). Multiples
    of 2^-40, offset by half of one, so that u times a sum of probabilities stays below the sum.
    """
    state = _mix(np.asarray(seed, np.uint64))
    for counter in counters:
        state = _mix(state ^ np.asarray(counter).astype(np.uint64))
    return ((state >> np.uint64(24)).astype(np.float64) + 0.5) * 2.0**-40


def _mix(z: Any) -> Any:
    # Multiplication modulo 2^64 is meant to overflow.
    with np.errstate(over="ignore"):
        z = z + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
