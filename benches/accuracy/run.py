"""Dev accuracy on SST-2, several seeds: deltarun's methods, and PEFT with transformers' Trainer.

    pip install torch transformers==5.23.0 peft==0.21.2 accelerate
    cargo build --release
    python benches/accuracy/run.py MODEL DATA --methods peft lora bitfit houlsby head full

MODEL is the directory of a BERT, DATA has SST-2's `train.tsv` and `dev.tsv` (columns `sentence`,
`label`). The same data, batch, learning rate, epochs, schedule and clipping on both sides. Results
are added to `--results FILE` (JSON lines), so that a run that was stopped goes on.
"""

import argparse
import csv
import json
import pathlib
import statistics
import subprocess
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
LEARNING_RATE = {"peft": 5e-4, "lora": 5e-4, "bitfit": 1e-3, "houlsby": 5e-4, "head": 1e-1, "full": 5e-5}
EPOCHS, BATCH, WARMUP, MAX_LENGTH = 1, 32, 0.06, 128


def ours(method, model, data, seed, threads):
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "run"
        command = [
            HERE.parents[1] / "target/release/deltarun", HERE / "sst2.delta",
            "--set", f"model={model}", "--set", f"train_file={data / 'train.tsv'}",
            "--set", f"dev_file={data / 'dev.tsv'}", "--set", f"lr={LEARNING_RATE[method]}",
            "--seed", str(seed), "--out", out, "--threads", str(threads), "--quiet"]
        text = (HERE / "sst2.delta").read_text()
        pipeline = pathlib.Path(folder) / "sst2.delta"
        pipeline.write_text(text.replace("# DELTA", (HERE / f"{method}.part").read_text())
                            .replace("[head]", "[head]" if method == "head" else f"[{method}, head]"))
        command[1] = pipeline
        subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
        stage = json.loads((out / "metrics.json").read_text())["stages"][-1]
        return stage["dev"]["metrics"]["accuracy"], stage["trained"]


def peft(model, data, seed, threads):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import (AutoModelForSequenceClassification, AutoTokenizer,
                              DataCollatorWithPadding, Trainer, TrainingArguments, set_seed)
    torch.set_num_threads(threads)
    set_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(model)
    base = AutoModelForSequenceClassification.from_pretrained(model, num_labels=2)
    tuned = get_peft_model(base, LoraConfig(
        task_type="SEQ_CLS", r=8, lora_alpha=16, lora_dropout=0.0, target_modules=["query", "value"]))

    def read(name):
        with open(data / name, newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        texts = tokenizer([row["sentence"] for row in rows], truncation=True, max_length=MAX_LENGTH)
        return [dict(input_ids=ids, attention_mask=mask, labels=int(row["label"]))
                for ids, mask, row in zip(texts["input_ids"], texts["attention_mask"], rows)]

    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=tuned, train_dataset=read("train.tsv"), eval_dataset=read("dev.tsv"),
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())},
            args=TrainingArguments(
                output_dir=folder, num_train_epochs=EPOCHS, per_device_train_batch_size=BATCH,
                per_device_eval_batch_size=BATCH, learning_rate=LEARNING_RATE["peft"],
                warmup_steps=WARMUP, lr_scheduler_type="linear", weight_decay=0.0, max_grad_norm=1.0,
                seed=seed, report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True))
        trainer.train()
        accuracy = trainer.evaluate()["eval_accuracy"]
    return accuracy, sum(p.numel() for p in tuned.parameters() if p.requires_grad)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("--methods", nargs="+", choices=LEARNING_RATE, default=list(LEARNING_RATE))
    parser.add_argument("--seeds", nargs="+", type=int, default=[13, 21, 42])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=pathlib.Path, default=pathlib.Path("accuracy.jsonl"))
    options = parser.parse_args()
    model, data = options.model.resolve(), options.data.resolve()

    results = {}
    if options.results.exists():
        for line in options.results.read_text().splitlines():
            row = json.loads(line)
            results[row["method"], row["seed"]] = row
    for method in options.methods:
        for seed in options.seeds:
            if (method, seed) in results:
                continue
            start = time.time()
            run = peft if method == "peft" else lambda *args: ours(method, *args)
            accuracy, trained = run(model, data, seed, options.threads)
            row = dict(method=method, seed=seed, accuracy=accuracy, trained=trained, seconds=time.time() - start)
            results[method, seed] = row
            with options.results.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(row, flush=True)

    print("\n| method | trained parameters | dev accuracy, mean | deviation | seeds |")
    print("|---|---:|---:|---:|---|")
    for method in LEARNING_RATE:
        rows = [row for (name, _), row in results.items() if name == method]
        if rows:
            values = [100 * row["accuracy"] for row in rows]
            deviation = statistics.stdev(values) if len(values) > 1 else 0.0
            seeds = ", ".join(f"{row['seed']}: {100 * row['accuracy']:.1f}" for row in rows)
            print(f"| {method} | {rows[0]['trained']:,} | {statistics.mean(values):.1f} | {deviation:.1f} | {seeds} |")


if __name__ == "__main__":
    main()
