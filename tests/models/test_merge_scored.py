"""A reward model's adapter, as peft saves it, scores in the model as it does beside it; others are refused."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from adapters import X, lora, make_adapter, save_base, shaken
from espalier.config.sections import ModelConfig
from espalier.errors import ModelError
from espalier.models import heads
from espalier.models.merge import load_merged
from tiny import tiny_config, tiny_tokenizer


def classifier(folder: Path, labels: int = 1) -> str:
    config = tiny_config("llama", num_labels=labels, pad_token_id=0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def adapted(base: str, folder: Path, labels: int = 1, **settings: Any) -> tuple[str, torch.Tensor]:
    """An adapter on the classification class of a base, saved by peft, and what the two score."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels)
    wrapped = shaken(peft.get_peft_model(model, lora(**settings))).eval()
    wrapped.save_pretrained(folder)
    with torch.no_grad():
        hidden = wrapped.base_model.model.model(X).last_hidden_state
        head = wrapped.base_model.model.score
        return str(folder), head(hidden[:, -1])


def scored(base: str, adapter: str) -> tuple[Any, torch.Tensor]:
    loaded = load_merged(ModelConfig(model=base, adapter=adapter), head=True)
    model: Any = loaded.model
    with torch.no_grad():
        return loaded, heads.read(model, model.eval().model(X).last_hidden_state[:, -1])


@pytest.mark.parametrize("labels", [1, 3])
def test_the_head_is_the_adapters(tmp_path: Path, labels: int) -> None:
    base = save_base(tmp_path / "base")
    adapter, expected = adapted(base, tmp_path / "adapter", labels, task_type="SEQ_CLS")
    loaded, scores = scored(base, adapter)
    assert torch.allclose(scores, expected, atol=1e-4)
    assert loaded.folder == Path(base) and loaded.adapter == Path(adapter)
    assert f"merged adapter {adapter} (LORA)" in loaded.notes[-1]


@pytest.mark.parametrize("task", [None, "SEQ_CLS"])
def test_a_reward_model_may_be_the_base(tmp_path: Path, task: str | None) -> None:
    base = classifier(tmp_path / "base")
    adapter, expected = adapted(base, tmp_path / "adapter", task_type=task)
    assert torch.allclose(scored(base, adapter)[1], expected, atol=1e-4)


def test_without_a_head_there_is_nothing_to_score_with(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    adapter = make_adapter(base, lora(), tmp_path / "adapter")
    with pytest.raises(ModelError, match=r"neither adapter .* has a head that scores"):
        scored(base, adapter)


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    adapter, _ = adapted(base, tmp_path / "adapter", task_type="SEQ_CLS")
    for other, over in (("wide", {"hidden_size": 64}), ("shallow", {"num_hidden_layers": 1})):
        with pytest.raises(ModelError, match=r"cannot be merged into .* Pass the model it was trained on"):
            scored(save_base(tmp_path / other, **over), adapter)
