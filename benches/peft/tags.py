"""Span F1 of a tagger, deltarun beside PEFT and transformers' Trainer.

    pip install torch transformers==5.23.0 peft==0.21.2 accelerate datasets seqeval==1.2.2
    cargo build --release
    python benches/peft/tags.py MODEL TRAIN.conll TEST.conll [--seeds 3] [--epochs 10] [--threads 2]

MODEL is the directory of an encoder such as all-MiniLM-L6-v2. The files have a word and its tag on each line, as WNUT-17 has.
Both train a LoRA of rank 16 on queries and values and the head, with the label at the first token of each word, AdamW, a
linear schedule with 6 % of warm-up, and the model's own dropout. They draw other numbers from their seeds, so the means are
what can be compared. F1 is seqeval's on the Trainer's side, and `deltarun eval` on the other.
"""

import argparse
import json
import math
import pathlib
import statistics
import subprocess
import tempfile
import time

from side import ROOT

BATCH, RATE, LENGTH, WARMUP = 16, 1e-3, 64, 0.06

PIPELINE = """pipeline tags
backbone "{model}" {{ max_length = {length} }}
data {{ train = conll("{train}") }}
task tag {{ tokens = tokens, tags = tags, labels = {labels} }}
reparam low = lora {{ rank = 16, alpha = 32 }} on {{"query", "value"}}
stage tune {{ train = [low, head], epochs = {epochs}, batch = {batch}, optimizer = adamw {{ lr = {rate} }}, schedule = linear {{ warmup = 6% }}, keep = last }}
"""


def sentences(path):
    """The words and the tags of each sentence."""
    blocks = [block.splitlines() for block in path.read_text().split("\n\n")]
    rows = [[line.split("\t") for line in block if "\t" in line] for block in blocks]
    return [([row[0] for row in block], [row[-1] for row in block]) for block in rows if block]


def ours(options, labels, folder, seed):
    """The F1 on the test file of a run of deltarun, and its seconds."""
    text = PIPELINE.format(model=options.model.resolve(), train=options.train.resolve(), labels=json.dumps(labels), length=LENGTH,
                           epochs=options.epochs, batch=BATCH, rate=RATE)
    (folder / "tags.delta").write_text(text)
    out, threads = folder / f"run{seed}", str(options.threads)
    start = time.monotonic()
    command = [options.deltarun, folder / "tags.delta", "--seed", str(seed), "--out", out, "--threads", threads, "--quiet"]
    subprocess.run(command, check=True, capture_output=True)
    seconds = time.monotonic() - start
    command = [options.deltarun, "eval", out, "--data", options.test.resolve(), "--format", "json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)["metrics"]["f1"], seconds


def encoded(tokenizer, rows, labels):
    """The rows as the Trainer wants them: a label at the first token of each word, and none elsewhere."""
    found = []
    for words, tags in rows:
        row = tokenizer(words, is_split_into_words=True, truncation=True, max_length=LENGTH)
        places, before = row.word_ids(), None
        own = []
        for place in places:
            own.append(labels.index(tags[place]) if place is not None and place != before else -100)
            before = place
        found.append({"input_ids": row["input_ids"], "attention_mask": row["attention_mask"], "labels": own})
    return found


def theirs(options, labels, folder, seed):
    """The F1 on the test file of PEFT with the Trainer, and its seconds."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from seqeval.metrics import f1_score
    from transformers import (AutoModelForTokenClassification, AutoTokenizer, DataCollatorForTokenClassification,
                              PrinterCallback, Trainer, TrainingArguments, set_seed)
    torch.set_num_threads(options.threads)
    set_seed(seed)
    start = time.monotonic()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForTokenClassification.from_pretrained(options.model, num_labels=len(labels))
    model = get_peft_model(model, LoraConfig(task_type="TOKEN_CLS", r=16, lora_alpha=32, target_modules=["query", "value"]))
    rows = sentences(options.train)
    steps = math.ceil(len(rows) / BATCH) * options.epochs
    arguments = TrainingArguments(
        output_dir=folder / "trainer", per_device_train_batch_size=BATCH, per_device_eval_batch_size=64, num_train_epochs=options.epochs,
        learning_rate=RATE, lr_scheduler_type="linear", warmup_steps=math.ceil(WARMUP * steps), weight_decay=0.0, seed=seed,
        report_to=[], use_cpu=True, save_strategy="no", logging_strategy="no", disable_tqdm=True)
    trainer = Trainer(model, arguments, train_dataset=Dataset.from_list(encoded(tokenizer, rows, labels)),
                      data_collator=DataCollatorForTokenClassification(tokenizer))
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    seconds = time.monotonic() - start
    tests = encoded(tokenizer, sentences(options.test), labels)
    logits = trainer.predict(Dataset.from_list(tests)).predictions
    gold, guessed = [], []
    for row, scores in zip(tests, logits):
        read = [place for place, label in enumerate(row["labels"]) if label >= 0]
        gold.append([labels[row["labels"][place]] for place in read])
        guessed.append([labels[scores[place].argmax()] for place in read])
    return f1_score(gold, guessed), seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("train", type=pathlib.Path)
    parser.add_argument("test", type=pathlib.Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--deltarun", type=pathlib.Path, default=ROOT / "target/release/deltarun")
    options = parser.parse_args()
    tags = [tag for path in (options.train, options.test) for _, row in sentences(path) for tag in row]
    labels = sorted(set(tags))
    print("| | F1 of each seed | mean | deviation | seconds of a run |\n|---|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as name:
        for side, train in (("deltarun", ours), ("PEFT and Trainer", theirs)):
            found = [train(options, labels, pathlib.Path(name), seed) for seed in range(1, options.seeds + 1)]
            scores = [100 * score for score, _ in found]
            each = ", ".join(f"{score:.1f}" for score in scores)
            seconds = statistics.median(seconds for _, seconds in found)
            print(f"| {side} | {each} | {statistics.mean(scores):.1f} | {statistics.stdev(scores):.1f} | {seconds:.0f} |", flush=True)


main()
