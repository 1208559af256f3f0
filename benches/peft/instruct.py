"""An epoch of instructions from the data set to the adapter, deltarun beside PEFT and TRL, alternately on one machine.

    pip install torch transformers==5.23.0 peft==0.21.2 trl==1.16.0 accelerate datasets
    cargo build --release
    python benches/peft/instruct.py MODEL ROWS.jsonl [--rows 96] [--runs 1] [--threads 2] [--dtypes f32 bf16]

ROWS.jsonl has objects with `question` and `answer`. Both train a LoRA of rank 16 on q, k, v and o with batches of 8, texts
of up to 384 tokens, the loss on the answers alone, without evaluation, and leave an adapter. Times and peak memory are of
whole processes; that TRL imports torch and transformers counts, as its user waits for it.
"""

import argparse
import itertools
import json
import pathlib
import shutil
import statistics
import sys
import tempfile
import time

from side import ROOT, measured

PIPELINE = """pipeline epoch
backbone "{model}" {{ max_length = 384, precision = {dtype} }}
data {{ train = jsonl("rows.jsonl") }}
task instruct {{ prompt = question, answer = answer }}
reparam low = lora {{ rank = 16, alpha = 32 }} on block.*.attn.{{q,k,v,o}}
stage tune {{ train = [low], epochs = 1, batch = 8, optimizer = adamw {{ lr = 2e-4 }}, schedule = constant, clip = 1, recompute = {recompute} }}
"""


def ours(folder, options, dtype, recompute="off"):
    out = folder / "run"
    shutil.rmtree(out, ignore_errors=True)
    (folder / "epoch.delta").write_text(PIPELINE.format(model=options.model.resolve(), dtype=dtype, recompute=recompute))
    program = ROOT / "target/release/deltarun"
    return measured([program, folder / "epoch.delta", "--out", out, "--threads", options.threads, "--quiet"])


def ours_again(folder, options, dtype):
    return ours(folder, options, dtype, "blocks")


def theirs(folder, options, dtype):
    return measured([sys.executable, __file__, options.model, folder / "rows.jsonl", "--threads", options.threads, "--child", dtype])


def child(options):
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer
    torch.set_num_threads(options.threads)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[options.child]
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype)
    rows = [json.loads(line) for line in options.data.read_text().splitlines()]
    turn = lambda role, text: [{"role": role, "content": text}]
    rows = [{"prompt": turn("user", row["question"]), "completion": turn("assistant", row["answer"])} for row in rows]
    config = SFTConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=8, num_train_epochs=1, max_length=384, learning_rate=2e-4,
        lr_scheduler_type="constant", weight_decay=0.0, report_to=[], use_cpu=True, bf16=options.child == "bf16",
        gradient_checkpointing=False, save_strategy="no", logging_strategy="no", disable_tqdm=True, completion_only_loss=True)
    lora = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    trainer = SFTTrainer(model, args=config, train_dataset=Dataset.from_list(rows), peft_config=lora,
                         processing_class=AutoTokenizer.from_pretrained(options.model))
    trainer.train()
    trainer.save_model(tempfile.mkdtemp())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtypes", nargs="+", default=["f32", "bf16"])
    parser.add_argument("--child")
    options = parser.parse_args()
    if options.child:
        return child(options)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        rows = options.data.read_text().splitlines()[:options.rows]
        (folder / "rows.jsonl").write_text("\n".join(rows) + "\n")
        found = {}
        for _, dtype, (who, run) in itertools.product(
                range(options.runs), options.dtypes, [("deltarun", ours), ("deltarun, recompute = blocks", ours_again), ("TRL", theirs)]):
            start = time.perf_counter()
            _, memory = run(folder, options, dtype)
            found.setdefault((who, dtype), []).append((time.perf_counter() - start, memory))
            print(who, dtype, f"{found[who, dtype][-1][0]:.1f} s, {memory:,.0f} MB", flush=True)
    print("\n| | seconds | MB | time of the best TRL | memory of the best TRL |\n|---|---:|---:|---:|---:|")
    middle = {key: [statistics.median(part) for part in zip(*runs)] for key, runs in found.items()}
    best = [min(value[part] for (who, _), value in middle.items() if who == "TRL") for part in (0, 1)]
    for (who, dtype), (seconds, memory) in middle.items():
        print(f"| {who} {dtype} | {seconds:.0f} | {memory:,.0f} | {seconds / best[0]:.2f} | {memory / best[1]:.3f} |")


main()
