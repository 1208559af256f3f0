"""Epochs and predictions on real texts, deltarun beside PEFT, alternately on the same machine, in one go.

    pip install torch transformers==5.23.0 peft==0.21.2 accelerate
    cargo build --release
    python benches/peft/epoch.py MODEL DATA [--pairs 7] [--examples 1728] [--rows epoch top predict start]

DATA has SST-2's `train.tsv` and `dev.tsv` (`sentence`, `label`). Rows of the table:

- `epoch`: LoRA on q and v of all blocks, batch 32, dropout as in config.json; PEFT with transformers' Trainer,
  its default padding (the longest of a batch).
- `top`: LoRA on the top 2 blocks, dropout off; deltarun's second epoch beside an epoch of PEFT's.
- `predict`: the dev set, sentences a second; PEFT in eval mode, batches of 32 in order.
- `start`: seconds from the command to the end of the first training step, and of `deltarun plan`.

`--examples` takes so many sentences of the training set (all with 0).
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

from side import ROOT, measured, middle, spread

PIPELINE = """pipeline epoch
backbone "{model}" {{ max_length = 128{settings} }}
data {{ train = tsv("train.tsv") }}
task classify {{ text = sentence, label = label, labels = ["0", "1"] }}
reparam delta = lora {{ rank = 8, alpha = 16 }} on {site}
stage tune {{ train = [delta, head], epochs = {epochs}, batch = 32, optimizer = adamw {{ lr = 5e-4 }} }}
"""
DELTARUN = ROOT / "target/release/deltarun"


def epochs(folder, threads, name, count):
    """Seconds of each epoch's steps, and peak memory."""
    out = folder / "run"
    _, memory = measured([DELTARUN, folder / f"{name}.delta", "--out", out, "--threads", threads, "--quiet"])
    lines = (out / "log.jsonl").read_text().splitlines()
    steps = [json.loads(line)["seconds"] for line in lines if '"lr"' in line]
    shutil.rmtree(out)
    each = len(steps) // count
    return [sum(steps[i * each:(i + 1) * each]) for i in range(count)], memory


def theirs(folder, options, kind):
    out, memory = measured([sys.executable, __file__, options.model, folder, "--threads", options.threads, "--child", kind])
    return float(out.splitlines()[-1]), memory


def child(options):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    off = {} if options.child == "epoch" else dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=2, **off)
    layers = list(range(model.config.num_hidden_layers))[-2:] if options.child == "top" else None
    config = LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=["query", "value"], layers_to_transform=layers)
    model = get_peft_model(model, config)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    name = "dev.tsv" if options.child == "predict" else "train.tsv"
    rows = [line.split("\t") for line in (options.data / name).read_text().splitlines()[1:]]
    encoded = [tokenizer(text, truncation=True, max_length=128) | {"labels": int(label)} for text, label in rows]
    collate = DataCollatorWithPadding(tokenizer)
    if options.child == "predict":
        model.eval()
        start = time.perf_counter()
        with torch.inference_mode():
            for i in range(0, len(rows), 32):
                batch = tokenizer([text for text, _ in rows[i:i + 32]], truncation=True, max_length=128, padding=True, return_tensors="pt")
                model(**batch).logits.argmax(-1).tolist()
        return print(time.perf_counter() - start)
    arguments = TrainingArguments(folder := tempfile.mkdtemp(), num_train_epochs=1, per_device_train_batch_size=32, learning_rate=5e-4,
                                  report_to=[], save_strategy="no", logging_strategy="no", use_cpu=True, disable_tqdm=True, seed=0)
    trainer = Trainer(model=model, args=arguments, train_dataset=encoded, data_collator=collate)
    start = time.perf_counter()
    trainer.train()
    print(time.perf_counter() - start)
    shutil.rmtree(folder, ignore_errors=True)


def predict(folder, threads):
    """Seconds of `deltarun predict` less those for one sentence: reading the model and packing it."""
    times = []
    for name in ("dev", "one"):
        start = time.perf_counter()
        _, memory = measured([DELTARUN, "predict", folder / "trained", "--input", folder / f"{name}.jsonl", "--threads", threads])
        times.append(time.perf_counter() - start)
    return times[0] - times[1], memory


def start(folder, threads):
    """Seconds until the log has its first step, and seconds of `plan`."""
    out = folder / "first"
    begun = time.perf_counter()
    run = subprocess.Popen([DELTARUN, folder / "one.delta", "--out", out, "--threads", str(threads)],
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    run.wait()
    first = time.perf_counter() - begun
    shutil.rmtree(out)
    begun = time.perf_counter()
    subprocess.run([DELTARUN, "plan", folder / "epoch.delta"], stdout=subprocess.DEVNULL, check=True)
    return first, time.perf_counter() - begun


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--examples", type=int, default=1728)
    parser.add_argument("--rows", nargs="+", default=["epoch", "top", "predict", "start"])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(options)
    options.model = options.model.resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        prepare(folder, options)
        print("| | deltarun | peer | peer / deltarun | deltarun, MB | peer, MB | memory |\n|---|---:|---:|---:|---:|---:|---:|")
        for row in options.rows:
            if row == "start":
                found = [start(folder, options.threads) for _ in range(options.pairs)]
                print(f"| a run of one step, and `plan`, s | {middle(f for f, _ in found):.2f}, {middle(p for _, p in found):.3f} | | | | | |")
                continue
            pairs = [(mine(folder, options, row), theirs(folder, options, row)) for _ in range(options.pairs)]
            a, b = middle(o[0] for o, _ in pairs), middle(t[0] for _, t in pairs)
            ratio = spread(t[0] / o[0] for o, t in pairs)
            ma, mb = middle(o[1] for o, _ in pairs), middle(t[1] for _, t in pairs)
            print(f"| {row}, s | {a:.2f} | {b:.2f} | {ratio} | {ma:.0f} | {mb:.0f} | {ma / mb:.2f} |", flush=True)


def mine(folder, options, row):
    if row == "predict":
        return predict(folder, options.threads)
    seconds, memory = epochs(folder, options.threads, row, 1 if row == "epoch" else 2)
    return seconds[-1], memory


def prepare(folder, options):
    lines = (options.data / "train.tsv").read_text().splitlines()
    lines = lines[:options.examples + 1] if options.examples else lines
    (folder / "train.tsv").write_text("\n".join(lines) + "\n")
    (folder / "few.tsv").write_text("\n".join(lines[:33]) + "\n")
    shutil.copy(options.data / "dev.tsv", folder / "dev.tsv")
    dev = [line.split("\t")[0] for line in (options.data / "dev.tsv").read_text().splitlines()[1:]]
    for name, texts in (("dev", dev), ("one", dev[:1])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"sentence": text}) + "\n" for text in texts))
    write = lambda name, **more: (folder / f"{name}.delta").write_text(PIPELINE.format(model=options.model, **more))
    write("epoch", settings="", site="block.*.attn.{q,v}", epochs=1)
    write("top", settings=", dropout = off", site="block[last 2].attn.{q,v}", epochs=2)
    (folder / "one.delta").write_text((folder / "epoch.delta").read_text().replace("train.tsv", "few.tsv"))
    measured([DELTARUN, folder / "one.delta", "--out", folder / "trained", "--quiet"])


if __name__ == "__main__":
    main()
