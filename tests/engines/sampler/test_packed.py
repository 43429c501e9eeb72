"""Linear layers laid out in blocks: the same products, put back at the end."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from drawing import PROMPTS, at, draw_all, scored
from espalier.engines.sampler.generate import GenerateSampler
from espalier.engines.sampler.local import LocalSampler
from espalier.engines.sampler.packed import is_packed, packed, packed_bytes, packs, product
from tiny import tiny_model

pytestmark = pytest.mark.skipif(not packs(torch.zeros(2, 2)), reason="this torch lays out no weights")


@pytest.mark.parametrize("rows", [1, 3, 64, 300])
@pytest.mark.parametrize("bias", [True, False])
def test_the_product_is_the_linear_layers(rows: int, bias: bool) -> None:
    """Against float64, on every number of rows, with one and with two leading dimensions."""
    torch.manual_seed(rows)
    layer = nn.Linear(40, 72, bias=bias)
    x = torch.randn(rows, 1, 40)
    with torch.no_grad():
        multiply = product(layer.weight, layer.bias)
        wanted = x.double() @ layer.weight.double().t() + (layer.bias.double() if bias else 0.0)
        torch.testing.assert_close(multiply(x).double(), wanted, atol=1e-5, rtol=0)
        torch.testing.assert_close(multiply(x[:, 0]).double(), wanted[:, 0], atol=1e-5, rtol=0)
        assert multiply(x[:0]).shape == (0, 1, 72)


def test_only_plain_linear_layers_change_and_all_come_back() -> None:
    class Doubled(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    plain, doubled, double = nn.Linear(4, 4), Doubled(4, 4), nn.Linear(4, 4).double()
    replaced = nn.Linear(4, 4)
    replaced.forward = lambda x: x  # type: ignore[method-assign]
    modules = [plain, doubled, double, replaced, nn.Embedding(4, 4)]
    assert packed_bytes(modules) == 4 * 16
    with pytest.raises(RuntimeError, match="stop"), packed(modules):
        assert [is_packed(m) for m in modules] == [True, False, False, False, False]
        raise RuntimeError("stop")
    assert not any(map(is_packed, modules)) and "forward" not in plain.__dict__
    assert replaced(torch.ones(1)) == 1


@pytest.mark.parametrize("adapter", [False, True])
def test_inside_drawing_the_sampler_computes_with_blocks(adapter: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it draws is what it draws without them, up to rounding; a changed weight is seen by the next drawing."""
    model = tiny_model("llama")
    if adapter:
        inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False), model)
    sampler = LocalSampler(model)

    def drawn() -> list[float]:
        with sampler.drawing():
            assert is_packed(model.get_output_embeddings())
            groups = draw_all(sampler, PROMPTS, 2, at(1.0))
        assert not is_packed(model.get_output_embeddings())
        return [x for group in groups for s in group for x in scored(s)]

    first = drawn()
    with torch.no_grad():
        plain = [x for group in draw_all(sampler, PROMPTS, 2, at(1.0)) for s in group for x in scored(s)]
        assert first == pytest.approx(plain, abs=1e-5)
        model.get_output_embeddings().weight.mul_(1.5)
    assert drawn() != pytest.approx(first, abs=1e-3)


@pytest.mark.parametrize("kind", [LocalSampler, GenerateSampler])
def test_without_packing_nothing_is_copied(kind: type[LocalSampler | GenerateSampler]) -> None:
    model = tiny_model("llama")
    with kind(model, pack=False).drawing():
        assert not any(map(is_packed, model.modules()))
    with kind(model).drawing():
        assert is_packed(model.get_output_embeddings())


@pytest.mark.parametrize("kind", [LocalSampler, GenerateSampler])
def test_weights_are_not_replaced_inside_drawing(kind: type[LocalSampler | GenerateSampler]) -> None:
    sampler = kind(tiny_model("llama"))
    with sampler.drawing(), pytest.raises(ValueError, match="load got version 3 inside drawing, which holds the old"):
        sampler.load(None, 3)
