"""The commands that scripts/faults.py runs, by the name of their setting."""

from __future__ import annotations

RUN = (
    "--model {embedded} --template plain --out out --cache cache --lr 1e-3 --seed 3 --steps 3 --samples-per-step 8 "
    "--tokens-per-microbatch 256 --eval-fraction 0.2 --save-every 2"
)
WINDOWED = RUN.replace("{embedded}", "{windowed}")
AGAIN = "--keep 0 --resume --resume-from step-000002"
ANSWERED = (
    "--model {embedded} --template plain --out out --cache cache --lr 1e-3 --seed 3 --steps 2 --prompts-per-step 4 "
    "--group-size 4 --max-tokens 16 --tokens-per-microbatch 512 --data tasks.jsonl --reward-workers 1 "
    "--reward repetition --reward-args repetition.n=1 repetition.unit=tokens "
    "--skip-checks length stop"
)
JUDGED = "--resamples 20 --judged 20"
SETTINGS: dict[str, list[str]] = {
    "sft": [f"sft {RUN} --data chat.jsonl"],
    "sft_all": [f"sft {RUN} --data chat.jsonl --train-on all"],
    "sft_long": [f"sft {RUN} --data chat.jsonl --max-length 40"],
    "sft_epochs": [f"sft {RUN} --data chat.jsonl --steps 0 --epochs 2 --samples-per-step 7"],
    "sft_cut": [f"sft {RUN} --data tree.jsonl --tokens-per-microbatch 48"],
    "sft_windowed": [f"sft {WINDOWED} --data chat.jsonl"],
    "sft_bf16": [f"sft {RUN} --data chat.jsonl --dtype bfloat16 --lr 3e-3"],
    "sft_lora": [f"sft {RUN} --data chat.jsonl --lora-rank 4 --lora-alpha 32"],
    "sft_freeze": [f"sft {RUN} --data chat.jsonl --freeze-layers 0.5"],
    "sft_decay": [f"sft {RUN} --data chat.jsonl --weight-decay 0.1"],
    "sft_bos": [f"sft {RUN} --data chat.jsonl --model {{bos}} --template bos.jinja"],
    "sft_stops": [f"sft {RUN} --data chat.jsonl --model {{stopless}}"],
    "sft_template": [f"sft {RUN} --data chat.jsonl --model {{stops}} --template ''"],
    "sft_markup": [f"sft {RUN} --data markup.jsonl --model {{markup}}"],
    "sft_drops": [f"sft {RUN} --data system.jsonl --on-bad-row skip --template drops.jinja"],
    "sft_pairs": [f"sft {RUN} --data pairs.jsonl"],
    "sft_alpaca": [f"sft {RUN} --data alpaca.jsonl"],
    "sft_tree": [f"sft {RUN} --data tree.jsonl"],
    "text": [f"sft {RUN} --data text.jsonl --max-length 64"],
    "replay": [f"sft {RUN} --data chat.jsonl --replay text.jsonl --replay-fraction 0.3 --replay-coef 0.1"],
    "mix": [f"sft {RUN} --data chat.jsonl=0.9 alpaca.jsonl=0.1"],
    "neftune": [f"sft {RUN} --data chat.jsonl --neftune-alpha 5"],
    "dpo": [f"dpo {RUN} --data pairs.jsonl"],
    "dpo_held": [f"dpo {RUN} --data repeated.jsonl"],
    "dpo_ranked": [f"dpo {RUN} --data ranked.jsonl"],
    "dpo_hh": [f"dpo {RUN} --data hh.jsonl"],
    "dpo_flip": [f"dpo {RUN} --data pairs.jsonl --eval-data hh.jsonl --eval-fraction 0 --flip 0.3"],
    "dpo_smooth": [f"dpo {RUN} --data pairs.jsonl --label-smoothing 0.2"],
    "dpo_ipo": [f"dpo {RUN} --data pairs.jsonl --variant ipo"],
    "dpo_hinge": [f"dpo {RUN} --data pairs.jsonl --variant hinge"],
    "dpo_apo": [f"dpo {RUN} --data pairs.jsonl --variant apo_zero"],
    "dpo_pl": [f"dpo {RUN} --data ranked.jsonl --variant plackett_luce"],
    "dpo_ld": [f"dpo {RUN} --data pairs.jsonl --ld-alpha 0.3"],
    "dpo_sync": [f"dpo {RUN} --data pairs.jsonl --sync-every 1"],
    "dpo_sync_bf16": [f"dpo {RUN} --data pairs.jsonl --sync-every 1 --dtype bfloat16"],
    "dpo_windowed": [f"dpo {WINDOWED} --data pairs.jsonl"],
    "dpo_gpt2": [f"dpo {RUN} --model {{gpt2}} --data pairs.jsonl"],
    "dpo_table_two": [
        f"dpo {RUN} --model {{start}} --data pairs.jsonl --reference precomputed --out first",
        "copy {moved}/model.safetensors {start}/model.safetensors",
        f"dpo {RUN} --model {{start}} --data pairs.jsonl --reference precomputed",
        "copy {embedded}/model.safetensors {start}/model.safetensors",
    ],
    "adapter": [
        f"sft {RUN} --data chat.jsonl --lora-rank 4 --export adapter --out first --lr 1e-2",
        f"sft {RUN} --data chat.jsonl --adapter first/model",
    ],
    "adapter_table": [
        f"dpo {RUN} --data pairs.jsonl --reference precomputed --out before",
        f"sft {RUN} --data chat.jsonl --lora-rank 4 --export adapter --out first --lr 1e-2",
        f"dpo {RUN} --data pairs.jsonl --adapter first/model --reference precomputed",
    ],
    "simpo": [f"simpo {RUN} --data pairs.jsonl"],
    "cpo": [f"cpo {RUN} --data pairs.jsonl"],
    "orpo": [f"orpo {RUN} --data pairs.jsonl"],
    "kto": [f"kto {RUN} --data labels.jsonl"],
    "kto_pairs": [f"kto {RUN} --data pairs.jsonl"],
    "kto_two": [f"kto {RUN} --data labels.jsonl labels2.jsonl"],
    "kto_weights": [f"kto {RUN} --data labels.jsonl --undesirable-weight 2"],
    "bco": [f"bco {RUN} --data labels.jsonl"],
    "bco_one": [f"bco {RUN} --data labels.jsonl"],
    "reward": [f"reward {RUN} --data pairs.jsonl {JUDGED}"],
    "reward_smooth": [f"reward {RUN} --data pairs.jsonl --label-smoothing 0.2 {JUDGED}"],
    "reward_ranked": [f"reward {RUN} --data ranked.jsonl {JUDGED}"],
    "reward_pl": [f"reward {RUN} --data ranked.jsonl --objective plackett_luce {JUDGED}"],
    "reward_margin": [f"reward {RUN} --data scored.jsonl --margin 0.5 {JUDGED}"],
    "reward_flip": [
        f"reward {RUN} --data scored.jsonl --eval-data pairs.jsonl --eval-fraction 0 --margin 0.5 --flip 0.3 {JUDGED}"
    ],
    "reward_ties": [f"reward {RUN} --data ranked.jsonl --ties rao_kupper {JUDGED}"],
    "reward_point": [f"reward {RUN} --data dims.jsonl --objective pointwise --dimensions right short {JUDGED}"],
    "reward_scale": [f"reward {RUN} --data ranked.jsonl --calibrate-scale {JUDGED}"],
    "reward_pad": [f"reward {RUN} --model {{padstop}} --data pairs.jsonl {JUDGED}"],
    "reward_twice": [
        f"reward {RUN} --data pairs.jsonl --calibrate-scale --out first {JUDGED}",
        f"reward {RUN} --model first/model --data pairs.jsonl --calibrate-scale {JUDGED}",
    ],
    "prm": [f"prm {RUN} --data steps.jsonl {JUDGED}"],
    "prm_weight": [f"prm {RUN} --data steps.jsonl --bad-weight 3 {JUDGED}"],
    "prm_bad": [f"prm {RUN} --data steps.jsonl --after-mistake bad {JUDGED}"],
    "resume": [f"sft {RUN} --data chat.jsonl --steps 5 --keep 0", f"sft {RUN} --data chat.jsonl --steps 5 {AGAIN}"],
    "resume_sync": [
        f"dpo {RUN} --data pairs.jsonl --steps 5 --keep 0 --sync-every 1",
        f"dpo {RUN} --data pairs.jsonl --steps 5 --sync-every 1 {AGAIN}",
    ],
    "cache_length": [
        f"sft {RUN} --data chat.jsonl --max-length 40 --out first",
        f"sft {RUN} --data chat.jsonl",
    ],
    "cache_train_on": [
        f"sft {RUN} --data chat.jsonl --train-on last --out first",
        f"sft {RUN} --data chat.jsonl",
    ],
    "cache_form": [
        f"dpo {RUN} --data scored.jsonl --min-gap 2 --out first",
        f"dpo {RUN} --data scored.jsonl",
    ],
    "grpo": [f"grpo {ANSWERED}"],
    "grpo_cold": [f"grpo {ANSWERED} --temperature 0.7"],
    "grpo_kl": [f"grpo {ANSWERED} --beta 0.1"],
    "grpo_epochs": [f"grpo {ANSWERED} --rollout-epochs 2 --minibatches 2"],
    "dapo": [f"dapo {ANSWERED}"],
    "rloo": [f"rloo {ANSWERED} --beta 0.05"],
    "ppo": [f"ppo {ANSWERED}"],
    "ppo_shared": [f"ppo {ANSWERED} --critic shared"],
    "reinforce": [f"reinforce {ANSWERED} --beta 0.05 --group-size 1"],
    "reinforce_pp": [f"reinforce-pp {ANSWERED} --beta 0.05"],
    "raft": [f"raft {ANSWERED} --sft-data chat.jsonl --sft-per-step 2"],
    "ranks": [f"sft {RUN} --data chat.jsonl"],
}
"""The commands of each setting, run one after the other in one folder, `copy FROM TO` too; `ranks` on two processes."""
