"""Rebuild the embedded base model from nothing: tokenizer, pretraining on the toy world's text, scores in both forms.

usage: OMP_NUM_THREADS=2 OMP_WAIT_POLICY=PASSIVE python scripts/pretrain_embedded.py [--out src/espalier/embedded/model]

Flat on purpose: torch and transformers only. The world's text holds no chat form, so the score in chat shows what the
form alone costs and the score in text what the model can do. Weights depend on the seed, the torch build and the
threads. Documents are laid whole into rows of 256 tokens, each for itself: its positions begin at 0 and it does not see
the others. In one step of ten a row has 512 tokens and is read as one text, so that positions up to the context length
are trained.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from espalier.toy import document, problems, score

EOS, PAD = "<|endoftext|>", "<|pad|>"
ROLES = "system user assistant tool SYSTEM USER ASSISTANT TOOL im start end"  # whole tokens, which the base never reads
CONTEXT, ROW, LONG_ROW, LONG_SHARE = 512, 256, 512, 0.1
IGNORED = -100


def build_tokenizer(vocab: int, documents: int, seed: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE: every text has tokens, every digit is one token of its own."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[PAD, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [document(f"tokenizer/{seed}/{i}") for i in range(documents)]
    bpe.train_from_iterator([*texts, *["\n".join(ROLES.split())] * 200], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def rows(tokenizer: PreTrainedTokenizerFast, length: int, n: int, seed: str, open_rows: int = 64) -> torch.Tensor:
    """`n` rows [n, length] of whole documents, each ended by EOS; PAD where none fits any more."""
    done: list[list[int]] = []
    filling: list[list[int]] = []
    i = 0
    while len(done) < n:
        batch = [document(f"{seed}/{j}") for j in range(i, i + 1000)]
        i += len(batch)
        for ids in tokenizer(batch)["input_ids"]:
            ids = [*ids, tokenizer.eos_token_id]
            fits = [row for row in filling if len(row) + len(ids) <= length]
            if fits:
                max(fits, key=len).extend(ids)
                continue
            if len(filling) == open_rows:
                filling.sort(key=len)
                done.append(filling.pop())
            filling.append(ids[:length])
    return torch.tensor([row + [tokenizer.pad_token_id] * (length - len(row)) for row in done[:n]])


def positions(batch: torch.Tensor, eos: int) -> torch.Tensor:
    """[B, L] positions that begin anew after each EOS, by which transformers keeps packed documents apart.

    [[5, 6, EOS, 7, EOS]] -> [[0, 1, 2, 0, 1]]
    """
    at = torch.arange(batch.shape[1]).expand_as(batch)
    begins = torch.where(F.pad(batch[:, :-1] == eos, (1, 0)), at, 0)
    return at - begins.cummax(dim=1).values


def generate(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[str]) -> list[str]:
    """Greedy responses of at most 96 tokens, without special tokens."""
    tokenizer.padding_side = "left"
    texts = []
    for at in range(0, len(prompts), 50):
        inputs = tokenizer(prompts[at : at + 50], return_tensors="pt", padding=True, return_token_type_ids=False)
        out = model.generate(**inputs, max_new_tokens=96, do_sample=False)
        texts += tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "src/espalier/embedded/model")
    p.add_argument("--steps", type=int, default=5000)
    p.add_argument("--tokens-per-step", type=int, default=1024)
    p.add_argument("--lr", type=float, default=2e-3)
    p.add_argument("--vocab", type=int, default=1024)
    p.add_argument("--width", type=int, default=128)
    p.add_argument("--layers", type=int, default=6)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--scored", type=int, default=300, help="unseen problems to score the result on")
    a = p.parse_args()

    torch.manual_seed(a.seed)
    began = time.time()
    tokenizer = build_tokenizer(a.vocab, 10_000, a.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=a.width,
        intermediate_size=a.width * 11 // 4,
        num_hidden_layers=a.layers,
        num_attention_heads=a.width // 32,
        num_key_value_heads=a.width // 32,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        # With 0.02 and decayed embeddings the names stay so alike that the model does not learn to copy them.
        initializer_range=0.06,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens in the vocabulary")

    long_steps = int(a.steps * LONG_SHARE)
    stages = ((ROW, a.steps - long_steps), (LONG_ROW, long_steps))
    batches: list[torch.Tensor] = []
    for length, n in stages:
        block = rows(tokenizer, length, n * a.tokens_per_step // length, f"{a.seed}/{length}")
        batches += block.split(a.tokens_per_step // length)
    random.Random(a.seed).shuffle(batches)
    used = sum(int((batch != tokenizer.pad_token_id).sum()) for batch in batches)
    print(f"{used:,} tokens of text in {a.steps} steps, prepared in {time.time() - began:.0f} s", flush=True)

    layers = [w for w in model.model.layers.parameters() if w.ndim > 1]
    others = [w for w in model.parameters() if not any(w is x for x in layers)]
    groups = [{"params": layers, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=a.lr, betas=(0.9, 0.95), fused=True)
    since, seen = time.time(), 0.0
    for step, batch in enumerate(batches, 1):
        warm = min(1.0, step / (0.03 * a.steps))
        for group in optimizer.param_groups:
            group["lr"] = a.lr * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / a.steps)))
        targets = batch[:, 1:].masked_fill(batch[:, 1:] == tokenizer.pad_token_id, IGNORED)
        places = None if batch.shape[1] == LONG_ROW else positions(batch, tokenizer.eos_token_id)
        logits = model(input_ids=batch, position_ids=places, use_cache=False).logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seen += loss.item()
        if step % 200 == 0 or step == len(batches):
            n = step % 200 or 200
            rate, minutes = n * a.tokens_per_step / (time.time() - since), (time.time() - began) / 60
            print(f"step {step}/{a.steps} loss {seen / n:.4f} tokens/s {rate:.0f} minutes {minutes:.1f}", flush=True)
            since, seen = time.time(), 0.0

    model.eval()
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    a.out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(a.out)
    tokenizer.padding_side = "right"
    tokenizer.save_pretrained(a.out)
    for file in a.out.iterdir():  # weights are written readable for their owner only, and would be installed so
        file.chmod(file.stat().st_mode | 0o044)

    unseen = problems(a.scored, seed=1, split="test")
    text = score(lambda prompts: generate(model, tokenizer, prompts), unseen, "text")
    chat = score(lambda ps: generate(model, tokenizer, [f"[USER]\n{q}\n\n[ASSISTANT]\n" for q in ps]), unseen, "chat")
    for name, result in (("text", text), ("chat", chat)):
        print(f"{name}: exact match {result.accuracy:.3f}, marked {result.marked:.3f}, by steps {result.by_steps}")
        print(json.dumps(result.responses[:3]))
    print(f"{(time.time() - began) / 60:.1f} minutes in all")


if __name__ == "__main__":
    main()
