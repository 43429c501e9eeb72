"""Everything that adds noise in train mode is set to 0 and named."""

from espalier.models.dropouts import zero_dropouts
from tiny import tiny_model


def test_dropouts_held_as_numbers_are_zeroed() -> None:
    model = tiny_model("llama", attention_dropout=0.25)
    model.config.router_jitter_noise = 0.01
    assert model.model.layers[0].self_attn.attention_dropout == 0.25
    assert zero_dropouts(model) == [
        "attention_dropout 0.25 (config)",
        "router_jitter_noise 0.01 (config)",
        "attention_dropout 0.25 (2 modules)",
    ]
    assert model.model.layers[1].self_attn.attention_dropout == 0.0 and zero_dropouts(model) == []


def test_modules_are_named_by_the_part_of_their_path_that_names_the_noise() -> None:
    model = tiny_model("gpt2", attn_pdrop=0.1, resid_pdrop=0.2)
    assert zero_dropouts(model) == [
        "attn_pdrop 0.1 (config)",
        "resid_pdrop 0.2 (config)",
        "attn_dropout 0.1 (2 modules)",
        "dropout 0.2 (2 modules)",
        "resid_dropout 0.2 (2 modules)",
    ]
    assert model.training and zero_dropouts(model) == []
