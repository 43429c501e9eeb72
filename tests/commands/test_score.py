"""`espalier score`: what transformers alone says of the same texts, a line for every row."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from espalier.commands import main as cli
from espalier.errors import ConfigError
from reward_models import source, trained, write


def test_scores_are_those_of_plain_transformers(tmp_path: Path) -> None:
    model = write(trained(source(tmp_path / "base"), 1), tmp_path / "rm")
    rows = [
        {"prompt": "a?", "responses": ["one", "three"], "scores": [1, 3]},
        {"prompt": "no answers"},
        {"prompt": "b?", "responses": ["x", "y"], "ranks": [0, 1]},
    ]
    data, out = tmp_path / "d.jsonl", tmp_path / "s.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = ["--debug", "score", "--model", str(model), "--data", str(data), "--out", str(out)]
    assert cli.main(argv) == 0
    first, second, third = (json.loads(line) for line in out.read_text().splitlines())
    assert [line["line"] for line in (first, second, third)] == [1, 2, 3] and "error" in second
    assert len(first["scores"]) == 2 and len(third["scores"]) == 2
    theirs = AutoModelForSequenceClassification.from_pretrained(model).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    for answer, score in (("one", first["scores"][0]), ("three", first["scores"][1])):
        said = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": answer}]
        ids = tokenizer(tokenizer.apply_chat_template(said, tokenize=False), add_special_tokens=False).input_ids
        with torch.no_grad():
            logit = theirs(torch.tensor([ids])).logits[0, 0].item()
        assert logit + theirs.config.espalier_reward_bias[0] == pytest.approx(score, abs=1e-4)
    with pytest.raises(ConfigError, match=r"exists; choose another file, or give --overwrite"):
        cli.main(argv)
