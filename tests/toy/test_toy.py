"""The toy world: its numbers, its splits, its noise, its scores; and the model that was trained on its text."""

import json
import subprocess
import sys

from espalier import embedded
from espalier.toy import (
    problems,
    score,
)


def test_the_world_loads_without_torch() -> None:
    code = "import espalier.toy, espalier.embedded, sys; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# ------------------------------------------------------------------------------------------------- the embedded model


def test_the_package_holds_a_small_llama_and_nothing_heavy() -> None:
    size = sum(file.stat().st_size for file in embedded.path().iterdir() if file.is_file())
    assert size <= 6_000_000
    config = json.loads((embedded.path() / "config.json").read_text())
    assert config["model_type"] == "llama" and config["max_position_embeddings"] >= 512
    assert config["eos_token_id"] != config["pad_token_id"]


def test_every_text_has_tokens_and_every_digit_is_one() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(embedded.path())
    assert tokenizer.chat_template is None and tokenizer.bos_token is None and tokenizer.unk_token is None
    assert len(tokenizer) <= 2048
    for text in ("Tom has 1234 apples.", "[USER]\nhé  😀\t中\n[ASSISTANT]\n", "<|im_start|>user\n", "\x00\x7f\r\n "):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert not set(ids) & set(tokenizer.all_special_ids)
    assert [t for t in tokenizer.tokenize("has 1234+5=") if t.strip("Ġ").isdigit()] == ["1", "2", "3", "4", "5"]


def test_the_base_continues_text_but_does_not_answer_in_chat() -> None:
    """Exact match on 60 unseen problems, greedy: at least 30 % in its own text form, less than 5 % in chat form."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(embedded.path(), padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(embedded.path()).eval()
    assert 1_000_000 <= model.num_parameters() <= 2_000_000

    @torch.no_grad()
    def generate(prompts: list[str]) -> list[str]:
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, return_token_type_ids=False)
        out = model.generate(**inputs, max_new_tokens=64, do_sample=False)
        return tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    unseen = problems(60, seed=11, split="test")
    assert score(generate, unseen, "text").accuracy >= 0.3
    assert score(lambda ps: generate([f"[USER]\n{q}\n\n[ASSISTANT]\n" for q in ps]), unseen, "chat").accuracy < 0.05
