"""Every family: the forest equals its own native forward, one sample at a time, in outputs and gradients."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from espalier.errors import ModelError
from espalier.forest.pack import pack, totals
from espalier.models.dropouts import zero_dropouts
from espalier.models.layout import choose
from espalier.models.policy import Policy
from espalier.types import Batch, Sample
from samples import Groups, sample, tree_groups
from tiny import ATTENTION, STATEFUL, WINDOW, tiny_model

FLOAT32 = ("qwen3_moe", "qwen3_next", "mamba")  # grouped matrix products and the scan have no float64


def precise(family: str, **over: Any) -> nn.Module:
    return tiny_model(family, **over).to(torch.float32 if family in FLOAT32 else torch.float64)


def tolerance(family: str) -> tuple[float, float]:
    """Of log-probabilities and of gradients, the latter relative to the parameter's largest."""
    if family in FLOAT32:
        return 5e-6, 2e-5
    if family in ("gpt2", "gpt_neox", "lfm2"):
        return 1e-12, 1e-12
    return (1e-6 if family == "gemma2" else 1e-12), 1e-6  # float32 inside transformers: softmax (gemma2), RoPE, norms


def loss_of(logprobs: Tensor, batch: Batch) -> Tensor:
    return -(logprobs[batch.score] * batch.weights).sum() / batch.totals["tokens", "main"]


def packed(model: nn.Module, groups: Groups, layout: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probabilities [T] through a Policy, and gradients by name."""
    chosen, _ = choose(model, layout)
    batch = pack(groups, totals(groups), share=chosen == "forest")
    policy = Policy(model, chosen)
    logprobs = policy(batch)["logprobs"]
    loss_of(logprobs, batch).backward()
    return logprobs.detach()[batch.score], gradients(model)


def native(model: Any, groups: Groups) -> tuple[Tensor, dict[str, Tensor]]:
    """The same from the architecture's own forward and logits, sample by sample."""
    out = []
    weights = []
    for s in (s for g in groups for s in g):
        logits = model(input_ids=torch.tensor([s.tokens]), use_cache=False).logits[0]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        tokens, mask = torch.tensor(s.tokens), torch.tensor(s.mask)
        out.append(logits[:-1].log_softmax(-1)[torch.arange(len(tokens) - 1), tokens[1:]][mask[1:]])
        weights.append(torch.tensor(s.weights)[mask])
    logprobs = torch.cat(out)
    (-(logprobs * torch.cat(weights)).sum() / totals(groups)["tokens", "main"]).backward()
    return logprobs.detach(), gradients(model)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def assert_same(got: tuple[Tensor, dict[str, Tensor]], want: tuple[Tensor, dict[str, Tensor]], family: str) -> None:
    forward, backward = tolerance(family)
    torch.testing.assert_close(got[0], want[0], rtol=0, atol=forward)
    assert set(got[1]) == set(want[1])
    floor = max(g.abs().max() for g in want[1].values()) * 1e-6  # key biases move nothing: their gradients are rounding
    for name, expected in want[1].items():
        error = (got[1][name] - expected).abs().max() / torch.maximum(expected.abs().max(), floor)
        assert error < backward, (name, error)


@pytest.mark.parametrize("family", [*ATTENTION, *STATEFUL])
def test_packed_equals_one_by_one(family: str) -> None:
    model = precise(family)
    groups = tree_groups()
    want = native(copy.deepcopy(model), groups)
    chosen, _ = choose(model, "auto")
    assert chosen == ("padded" if family in STATEFUL else "forest")
    assert_same(packed(model, groups, "auto"), want, family)


SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": None,
}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "cohere": ("forest", {"logit_scale": 0.25}),  # scaled logits
    "gpt_neo": ("padded", {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}),
    "gpt_oss": ("padded", {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8}),
    "bloom": ("padded", {"n_layer": 2, "n_head": 4}),  # ALiBi
    "llama4_text": ("padded", {"head_dim": 8, "intermediate_size_mlp": 48, "num_local_experts": 2,
                               "attention_chunk_size": 16}),
    "recurrent_gemma": ("padded", {"logits_soft_cap": 1.0}),
}  # fmt: skip


@pytest.mark.parametrize("family", OTHERS)
def test_what_cannot_be_packed_is_padded_and_heads_are_read_from_the_config(family: str) -> None:
    layout, fields = OTHERS[family]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**SIZES, **fields})).train()
    zero_dropouts(model)
    assert choose(model, "auto")[0] == layout
    assert_same(packed(copy.deepcopy(model), tree_groups(), "auto"), native(model, tree_groups()), "qwen3_moe")


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3_text"])
def test_windows_cross_from_a_branch_into_its_shared_prefix(family: str) -> None:
    """The same samples under a wider window score otherwise, so windows were in force where branches meet the stem."""
    stem = list(range(10, 10 + 2 * WINDOW))
    groups = [[sample(stem, [40 + i, 50, 60, 41 + i, 51]) for i in range(3)]]
    model = precise(family)
    wide = precise(family, sliding_window=100)
    wide.load_state_dict(model.state_dict())
    want = native(copy.deepcopy(model), groups)
    assert_same(packed(model, groups, "auto"), want, family)
    assert (native(wide, groups)[0] - want[0])[:5].abs().min() > 1e-3


@pytest.mark.parametrize("layout", ["chain", "padded"])
def test_layouts_agree(layout: str) -> None:
    model = precise("llama")
    assert_same(packed(copy.deepcopy(model), tree_groups(), layout), packed(model, tree_groups(), "forest"), "llama")


@pytest.mark.parametrize("family", [*ATTENTION, *STATEFUL])
def test_grad_checkpointing_changes_nothing(family: str) -> None:
    model = precise(family)
    other: Any = copy.deepcopy(model)
    other.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    got, want = packed(other, tree_groups(), "auto"), packed(model, tree_groups(), "auto")
    assert torch.equal(got[0], want[0])
    for name, expected in want[1].items():
        torch.testing.assert_close(got[1][name], expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("family", [*ATTENTION, *STATEFUL])
def test_a_changed_sibling_leaves_the_others_bitwise_alone(family: str) -> None:
    model = tiny_model(family)
    layout, _ = choose(model, "auto")
    policy = Policy(model, layout)

    def logprobs(second: list[int]) -> list[Tensor]:
        stem = list(range(20, 45))
        groups = [[sample(stem, [5, 6, 7, 8]), sample(stem, second), sample(stem, [9, 8, 7])], [sample([3, 4], [5, 6])]]
        batch = pack(groups, totals(groups), share=layout == "forest")
        assert len(batch.segments) == (5 if layout == "forest" else 4)
        values = policy(batch)["logprobs"][batch.score]
        return [values[batch.rows == row].detach() for row in range(4)]

    before, after = logprobs([10, 11, 12, 13]), logprobs([99, 98, 97, 96])
    for row in (0, 2, 3):
        assert torch.equal(before[row], after[row])
    assert (before[1] - after[1]).abs().min() > 1e-4


@pytest.mark.parametrize("family", STATEFUL)
def test_what_carries_state_is_refused_with_the_reason(family: str) -> None:
    model = tiny_model(family)
    for asked in ("forest", "chain"):
        with pytest.raises(ModelError, match=rf"got {asked}, but {type(model).__name__}.*state.*padded"):
            choose(model, asked)
    assert choose(model, "padded")[0] == "padded"
    with pytest.raises(ModelError, match="got tree, expected auto"):
        choose(model, "tree")


def test_temperature_divides_the_logits() -> None:
    model: Any = precise("llama")
    s = sample([5, 6], [7], temperature=0.5)
    batch = pack([[s]], totals([[s]]))
    logits = model(input_ids=torch.tensor([s.tokens])).logits[0, 1]
    got = Policy(model, "forest")(batch)["logprobs"]
    torch.testing.assert_close(got[0], (logits / 0.5).log_softmax(-1)[7], rtol=1e-12, atol=1e-12)


def test_entropy_and_correct_are_read_at_the_sources() -> None:
    model: Any = precise("llama")
    tokens = [5, 6, 7, 8]
    logits = model(input_ids=torch.tensor([tokens])).logits[0].detach()
    best = int(logits[2].argmax())
    s = Sample([5, 6, 7, best], [False, False, True, True], [0.0, 0.0, 1.0, 1.0])
    got = Policy(model, "forest")(pack([[s]], totals([[s]])), entropy=True, correct=True)
    log_p = logits[1:3].log_softmax(-1)
    torch.testing.assert_close(got["entropy"], -(log_p.exp() * log_p).sum(-1), rtol=1e-12, atol=1e-12)
    assert got["correct"].tolist() == [float(int(logits[1].argmax()) == 7), 1.0]
