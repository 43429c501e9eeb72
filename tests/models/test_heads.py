"""Scalar heads: what is drawn, where they are read, and that nothing but the path to a read has a say in it."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from espalier.config.sections import ModelConfig
from espalier.errors import ConfigError, ModelError
from espalier.forest.pack import pack, totals
from espalier.models import heads
from espalier.models.adapters import add_adapter, merged_state, plain_names
from espalier.models.export import export
from espalier.models.freeze import freeze
from espalier.models.heads import Calibration, calibrate
from espalier.models.layout import choose
from espalier.models.policy import Policy
from espalier.models.router import balance_loss
from espalier.models.tokens import add_control_tokens
from espalier.types import Sample
from samples import Groups, sample, tree_groups
from tiny import tiny_model, tiny_tokenizer

FAMILIES = ("llama", "qwen2", "qwen3_moe", "mistral", "gemma2", "gemma3_text", "phi3", "smollm3", "gpt2", "gpt_neox")


def rewarding(family: str = "llama", dimensions: int = 2, *, seed: int = 3, **over: Any) -> Any:
    model = tiny_model(family, **over)
    heads.attach(model, dimensions, seed=seed)
    return model


def read_last(groups: Groups) -> Groups:
    """Every sample is read at its last token."""
    for s in (s for g in groups for s in g):
        s.reads = [len(s.tokens) - 1]
    return groups


def scores(model: Any, groups: Groups, layout: str = "auto") -> Tensor:
    """Scores [R, K] through a Policy, in the order of the samples and their reads."""
    chosen, _ = choose(model, layout)
    batch = pack(groups, totals(groups), share=chosen == "forest", says="reads")
    out = Policy(model, chosen, says="reads")(batch)
    assert set(out) == {"scores_RK"} and batch.sources_U.numel() == 0
    result: Tensor = out["scores_RK"]
    return result


def one_by_one(model: Any, groups: Groups) -> Tensor:
    """The same by the architecture's own attention: a sample a forward, the hidden state after token `read` times W."""
    model.set_attn_implementation("eager")
    backbone = getattr(model, model.base_model_prefix)
    out = []
    for s in (s for g in groups for s in g):
        hidden = backbone(input_ids=torch.tensor([s.tokens]), use_cache=False).last_hidden_state[0]
        out.extend(hidden[read] @ model.score.weight.T for read in s.reads)
    return torch.stack(out)


# -------------------------------------------------------------------------------------------------------- what it is


def test_the_head_is_a_function_of_the_seed_of_deviation_one_over_root_width_plus_one() -> None:
    model = tiny_model("llama", hidden_size=512, num_attention_heads=4, head_dim=8, num_hidden_layers=1)
    torch.manual_seed(1)
    heads.attach(model, 64, seed=3)
    again, other = rewarding(seed=3), rewarding(seed=4)
    weight = model.score.weight
    assert weight.shape == (64, 512) and weight.dtype == torch.float32 and weight.requires_grad
    assert weight.std().item() == pytest.approx(1 / math.sqrt(513), rel=0.02)
    assert abs(weight.mean().item()) < 4 / math.sqrt(513 * 64 * 512)
    assert torch.equal(again.score.weight, rewarding(seed=3).score.weight)
    assert not torch.equal(again.score.weight, other.score.weight)
    assert isinstance(model.score, nn.Linear) and model.score.bias is None


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma2"])
def test_the_token_head_leaves_and_a_tied_embedding_stays(family: str) -> None:
    before = tiny_model(family)
    model = rewarding(family)
    assert model.get_output_embeddings() is None
    gone = set(dict(before.named_parameters())) - set(dict(model.named_parameters()))
    assert gone == ({"lm_head.weight"} if family in ("llama", "gpt_neox") else set())
    assert torch.equal(model.get_input_embeddings().weight, before.get_input_embeddings().weight)
    scores(model, read_last(tree_groups())).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert set(plain_names(model)) == {n for n, _ in merged_state(model)}


def test_a_score_by_hand() -> None:
    """Layers that add nothing leave rmsnorm(embedding): for (3, 4, 0, ...) of width 32, x / (5 / sqrt 32)."""
    model = rewarding("llama")
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "embed_tokens.weight", "score.weight")):
                p.zero_()
        model.model.norm.weight.fill_(1)
        model.model.embed_tokens.weight[7, :2] = torch.tensor([3.0, 4.0])
        model.model.embed_tokens.weight[8, 2] = 1.0
        model.score.weight[0, :3] = torch.tensor([1.0, -2.0, 0.5])
        model.score.weight[1, 1] = 10.0
    group = [sample([5, 6], [8, 7], reads=[2, 3])]
    # token 8: (0, 0, 1) * sqrt(32); token 7: (3, 4) / 5 * sqrt(32)
    want = math.sqrt(32) * torch.tensor([[0.5, 0.0], [(3 - 8) / 5, 8.0]])
    torch.testing.assert_close(scores(model, [group]), want, rtol=1e-4, atol=0)  # the norm adds 1e-6 to the square


def test_what_cannot_be_exported_is_refused_by_name_before_training() -> None:
    for family in ("granite", "mamba", "lfm2"):
        model = tiny_model(family)
        with pytest.raises(ModelError, match=f"model_type {family}.*no sequence-classification class.*llama"):
            heads.check(model)
        with pytest.raises(ModelError, match="cannot be a reward model"):
            heads.attach(model, 1, seed=0)
        assert model.get_output_embeddings() is not None
    with pytest.raises(ModelError, match="has a scalar head of 2 dimensions already"):
        heads.attach(rewarding(), 1, seed=0)
    with pytest.raises(ConfigError, match="one for each"):
        heads.attach(tiny_model("llama"), 2, seed=0, names=["helpful"])
    with pytest.raises(ModelError, match="has no scalar head"):
        heads.calibration_of(tiny_model("llama"))


def test_a_class_that_computes_more_than_the_backbone_and_a_matrix_is_refused() -> None:
    from transformers import CTRLConfig, CTRLLMHeadModel

    model = CTRLLMHeadModel(CTRLConfig(vocab_size=64, n_embd=32, n_layer=1, n_head=4, dff=32))
    with pytest.raises(ModelError, match=r"CTRLForSequenceClassification.*classifier\.weight"):
        heads.check(model)


def test_a_policy_and_its_model_agree_on_the_head() -> None:
    with pytest.raises(ModelError, match="has no scalar head; expected one"):
        Policy(tiny_model("llama"), "forest", says="reads")
    with pytest.raises(ModelError, match="has a scalar head; expected a token head"):
        Policy(rewarding(), "forest")
    groups = read_last(tree_groups())
    policy = Policy(rewarding(), "forest", says="reads")
    assert policy.says == "reads" and Policy(tiny_model("llama"), "forest").says == "tokens"
    with pytest.raises(ValueError, match="no entropy"):
        policy(pack(groups, totals(groups), says="reads"), entropy=True)


# --------------------------------------------------------------------------------------------------- where it is read


@pytest.mark.parametrize("layout", ["forest", "chain", "padded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_layout_says_what_the_models_own_forward_says(family: str, layout: str) -> None:
    model = rewarding(family)
    groups = read_last(tree_groups())
    groups[0][1].reads = [3, 20, 29, len(groups[0][1].tokens) - 1]  # steps, the first of them in the shared prefix
    got = scores(copy.deepcopy(model), groups, layout)
    assert got.shape == (9, 2) and got.dtype == torch.float32
    torch.testing.assert_close(got, one_by_one(model, groups), rtol=0, atol=3e-5)


def test_what_carries_state_is_read_in_a_padded_batch() -> None:
    model = rewarding("qwen3_next")
    groups = read_last(tree_groups())
    assert choose(model, "auto")[0] == "padded"
    torch.testing.assert_close(scores(copy.deepcopy(model), groups), one_by_one(model, groups), rtol=0, atol=3e-5)


def test_the_last_token_counts_whatever_it_is_and_whatever_stands_before_it() -> None:
    """</s> (2) and a pad-like 0 in the middle, and three of them at the end, do not move the read."""
    model = rewarding()
    base = [9, 2, 11, 0, 12]
    groups = read_last([[sample([5, 6], base), sample([5, 6], [*base, 2, 2, 2]), sample([5, 6], [9, 2])]])
    got = scores(copy.deepcopy(model), groups)
    torch.testing.assert_close(got, one_by_one(model, groups), rtol=0, atol=2e-6)
    assert (got[0] - got[1]).abs().min() > 1e-3 and (got[0] - got[2]).abs().min() > 1e-3
    changed = scores(model, read_last([[sample([5, 6], [*base[:-1], 13])]]))  # the read token itself is part of it
    assert (changed[0] - got[0]).abs().min() > 1e-3


def test_batch_mates_and_sibling_order_do_not_move_a_score() -> None:
    model = rewarding()
    groups = read_last(tree_groups(4))
    got = scores(model, groups)
    order = [2, 0, 3, 1]
    turned = scores(model, [groups[2], [groups[0][i] for i in order], groups[1]])
    torch.testing.assert_close(turned[1:5], got[order], rtol=0, atol=5e-6)
    torch.testing.assert_close(turned[0], got[5], rtol=0, atol=5e-6)
    alone = [scores(model, [[s]]) for g in groups for s in g]
    torch.testing.assert_close(torch.cat(alone), got, rtol=0, atol=5e-6)
    again = [scores(model, [[s]]) for g in reversed(groups) for s in reversed(g)]
    assert all(torch.equal(a, b) for a, b in zip(alone, reversed(again), strict=True))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_gradients_of_head_and_backbone_are_those_of_separate_forwards(family: str) -> None:
    model = rewarding(family).double()
    model.score.double()
    groups = read_last(tree_groups())
    own = copy.deepcopy(model)

    def loss(x: Tensor) -> Tensor:  # Bradley-Terry of neighbours
        return -torch.nn.functional.logsigmoid(x[1:] - x[:-1]).sum()

    loss(scores(model, groups)).backward()
    loss(one_by_one(own, groups)).backward()
    want = dict(own.named_parameters())
    floor = max(p.grad.abs().max() for p in want.values()) * 1e-6
    for name, p in model.named_parameters():
        error = (p.grad - want[name].grad).abs().max() / torch.maximum(want[name].grad.abs().max(), floor)
        assert error < 2e-5, (name, error)
    assert model.score.weight.grad.abs().max() > 0.1


def test_a_batch_without_reads_joins_the_backward_pass_and_adds_nothing() -> None:
    model = rewarding()
    said = scores(model, [[Sample([5, 6], [False, True], [0.0, 0.0])]])
    assert said.shape == (0, 2)
    torch.autograd.backward(said, torch.zeros_like(said))
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_the_router_loss_goes_on_beside_the_reads() -> None:
    model = rewarding("qwen3_moe")
    groups = read_last(tree_groups())
    policy = Policy(model, "forest", says="reads", router_loss=True)
    out = policy(pack(groups, totals(groups), says="reads", count_uses=True))
    rows = [s for g in groups for s in g]
    model.set_attn_implementation("eager")
    logits = [
        model.model(input_ids=torch.tensor([s.tokens]), use_cache=False, output_router_logits=True).router_logits
        for s in rows
    ]
    joined = tuple(torch.cat(layer) for layer in zip(*logits, strict=True))
    want = balance_loss(joined, 2, torch.ones(sum(len(s.tokens) for s in rows)))
    torch.testing.assert_close(out["router"], want, rtol=1e-5, atol=1e-6)
    assert out["scores_RK"].shape == (6, 2)


# ----------------------------------------------------------------------------------------- beside adapters and freezing


@pytest.mark.parametrize("first", ["head", "adapter"])
def test_under_lora_the_head_is_trained_whole_and_nothing_adapts_it(first: str) -> None:
    model: Any = tiny_model("llama")
    config = ModelConfig(model="m", lora_rank=4)
    if first == "head":
        heads.attach(model, 2, seed=3)
    add_adapter(model, config)
    if first == "adapter":
        heads.attach(model, 2, seed=3)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n for n in trained if "lora_" not in n} == {"score.weight"}
    assert not any("score" in n for n in trained if "lora_" in n)
    assert freeze(model, config).names == [n for n, p in model.named_parameters() if p.requires_grad]
    groups = read_last(tree_groups())
    plain = rewarding()
    torch.testing.assert_close(scores(model, groups), scores(plain, groups), rtol=0, atol=1e-6)
    with torch.no_grad():
        for name in trained:
            model.get_parameter(name).add_(0.05)
    plain.load_state_dict(dict(merged_state(model)))  # strict: the head is among them, the token head is not
    torch.testing.assert_close(scores(model, groups), scores(plain, groups), rtol=0, atol=2e-5)


def test_an_adapter_of_the_causal_model_is_continued_under_a_head(tmp_path: Path) -> None:
    first: Any = tiny_model("llama")
    add_adapter(first, ModelConfig(model="m", lora_rank=4))
    with torch.no_grad():
        for p in first.parameters():
            if p.requires_grad:
                p.add_(0.05)
    export(first, tiny_tokenizer(), tmp_path / "adapter", source_dtype=torch.float32, adapter_only=True)
    model = rewarding()
    add_adapter(model, ModelConfig(model="m", adapter=str(tmp_path / "adapter")))
    assert model.score.weight.requires_grad
    heads.attach(first, 2, seed=3)
    groups = read_last(tree_groups())
    assert torch.equal(scores(model, groups), scores(first, groups))


def test_freezing_and_new_tokens_work_without_a_token_head() -> None:
    model = rewarding("llama", tie_word_embeddings=True, vocab_size=102)
    summary = freeze(model, ModelConfig(model="m", freeze_layers=0.5))
    assert "score.weight" in summary.names and "model.embed_tokens.weight" not in summary.names
    assert not any(n.startswith("model.layers.0.") for n in summary.names)
    model = rewarding("llama", tie_word_embeddings=True, vocab_size=102)
    assert add_control_tokens(model, tiny_tokenizer(), ["<|new|>"]) == [102]
    assert model.get_input_embeddings().weight.shape[0] == 103 and model.get_output_embeddings() is None
    add_adapter(model, ModelConfig(model="m", lora_rank=4), [102])
    said = scores(model, read_last([[sample([5, 102], [7])]]))
    said.sum().backward()
    rows = [p for n, p in model.named_parameters() if "trainable_tokens_delta" in n]
    assert len(rows) == 1 and rows[0].grad is not None and rows[0].grad.any()


# --------------------------------------------------------------------------------------------------------- calibration


def test_calibration_by_hand() -> None:
    """1, 2, 3, 6: mean 3, deviation sqrt((4 + 1 + 0 + 9) / 4) = 1.8708; the second dimension is -10 times the first."""
    first = torch.tensor([1.0, 2.0, 3.0, 6.0])
    given = torch.stack([first, -10 * first], 1)
    full = calibrate(given, scale=True)
    assert full.scale == pytest.approx((0.534522, 0.0534522), abs=1e-6)
    assert full.bias == pytest.approx((-1.603567, 1.603567), abs=1e-6)
    said = full.apply(given)
    torch.testing.assert_close(said.mean(0), torch.zeros(2), rtol=0, atol=1e-6)
    torch.testing.assert_close(said.std(0, correction=0), torch.ones(2), rtol=0, atol=1e-6)
    assert said[3].tolist() == pytest.approx([1.603567, -1.603567], abs=1e-5)  # 3 / 1.8708: the order is kept
    shifted = calibrate(given, scale=False)
    assert shifted == Calibration((-3.0, 30.0), (1.0, 1.0))
    assert shifted.apply(given)[:, 0].tolist() == [-2.0, -1.0, 0.0, 3.0]


def test_calibration_belongs_to_the_model() -> None:
    model = rewarding()
    assert heads.calibration_of(model) == Calibration((0.0, 0.0), (1.0, 1.0))
    heads.set_calibration(model, Calibration((1.0, 2.0), (3.0, 4.0)))
    assert heads.calibration_of(copy.deepcopy(model)) == Calibration((1.0, 2.0), (3.0, 4.0))
    assert heads.calibration_of(model).apply(torch.tensor([[1.0, -1.0]])).tolist() == [[4.0, -2.0]]
    with pytest.raises(ModelError, match="2 dimensions, the calibration 1"):
        heads.set_calibration(model, Calibration((0.0,), (1.0,)))


def test_calibrating_what_is_calibrated_already_starts_from_what_it_says() -> None:
    """Raw 1, 2, 3, 6 said as 10 x + 7: mean 37 and deviation 18.708, so raw scores end where they would have."""
    model = rewarding(dimensions=1)
    raw = torch.tensor([[1.0], [2.0], [3.0], [6.0]])
    heads.set_calibration(model, Calibration((7.0,), (10.0,)))
    heads.recalibrate(model, heads.calibration_of(model).apply(raw), scale=True)
    found = heads.calibration_of(model)
    assert found.scale == pytest.approx((0.534522,), abs=1e-6) and found.bias == pytest.approx((-1.603567,), abs=1e-5)
    assert Calibration((1.0,), (2.0,)).then(Calibration((3.0,), (10.0,))) == Calibration((13.0,), (20.0,))
    with pytest.raises(ModelError, match="1 dimensions, the scores 2"):
        heads.recalibrate(model, torch.randn(4, 2), scale=False)


@pytest.mark.parametrize(
    ("given", "why"),
    [([[1.0], [1.0]], "do not differ"), ([[1.0], [math.nan]], "finite"), ([[1.0], [math.inf]], "finite")],
)
def test_references_that_say_nothing_are_refused(given: list[list[float]], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        calibrate(torch.tensor(given), scale=True)
    with pytest.raises(ValueError, match="finite"):
        calibrate(torch.zeros(0, 1), scale=False)


def test_a_calibration_never_turns_the_order() -> None:
    for bias, scale in (((0.0,), (-1.0,)), ((0.0,), (0.0,)), ((math.nan,), (1.0,)), ((0.0, 1.0), (1.0,))):
        with pytest.raises(ValueError, match="expected"):
            Calibration(bias, scale)
    with pytest.raises(ValueError, match="1 dimensions, the scores 2"):
        heads.identity(1).apply(torch.zeros(3, 2))
