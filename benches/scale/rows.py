"""Memory and time from a file of many rows to the first step, deltarun beside `datasets` with the same tokenizer.

    pip install transformers==5.23.0 datasets
    cargo build --release
    python benches/scale/rows.py MODEL [--rows 1000000] [--tokens 64] [--runs 3]

MODEL is the directory of an encoder such as all-MiniLM-L6-v2. The file has one text and one label on each line. deltarun starts,
reads the model, checks, reads and tokenizes the file, and trains one step. Python reads the file with `datasets` (its cache is
empty), tokenizes it in batches of 1,000 with padding off, and takes the first batch of 32; its imports and its model do not
count. Both have two threads for the tokenizer.
"""

import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "peft"))
from side import ROOT, measured, middle, spread

PIPELINE = """pipeline rows
backbone "{model}" {{ max_length = 128 }}
data {{ train = tsv("rows.tsv") }}
task classify {{ text = text, label = label, labels = ["no", "yes"] }}
reparam low = lora {{ rank = 8 }} on {{"query", "value"}}
stage tune {{ train = [low, head], steps = 1, batch = 32, optimizer = adamw {{ lr = 1e-4 }} }}
"""


def write_rows(folder, model, rows, tokens):
    """A file whose texts have `tokens` tokens with those around them: words that the vocabulary has whole."""
    vocabulary = json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]
    words = sorted(word for word in vocabulary if word.isalpha() and word.isascii() and word.islower() and len(word) > 2)
    draw = random.Random(1)
    with open(folder / "rows.tsv", "w") as file:
        file.write("text\tlabel\n")
        for number in range(rows):
            file.write(" ".join(draw.choices(words, k=tokens - 2)) + ("\tyes\n" if number % 2 else "\tno\n"))


def theirs(folder, model):
    """Seconds from the file to the first batch. Runs in a process of its own."""
    os.environ["HF_DATASETS_CACHE"] = str(folder / "cache")
    import datasets
    from transformers import AutoTokenizer
    datasets.disable_progress_bars()
    start = time.monotonic()
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = datasets.load_dataset("csv", data_files=str(folder / "rows.tsv"), sep="\t", split="train")
    rows = rows.map(lambda batch: tokenizer(batch["text"], truncation=True, max_length=128), batched=True, batch_size=1000)
    batch = rows.shuffle(seed=1)[:32]
    tokenizer.pad({"input_ids": batch["input_ids"]}, return_tensors="np")
    print(time.monotonic() - start)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--theirs", type=pathlib.Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.theirs:
        return theirs(options.theirs, options.model)
    found = []
    with tempfile.TemporaryDirectory() as place:
        folder = pathlib.Path(place)
        write_rows(folder, options.model, options.rows, options.tokens)
        (folder / "rows.delta").write_text(PIPELINE.format(model=options.model.resolve()))
        os.environ["RAYON_NUM_THREADS"] = "2"
        for number in range(options.runs):
            start = time.monotonic()
            command = [ROOT / "target/release/deltarun", folder / "rows.delta", "--out", folder / f"run{number}",
                       "--threads", "2", "--quiet"]
            _, memory = measured(command)
            seconds = time.monotonic() - start
            command = [sys.executable, __file__, options.model, "--theirs", folder]
            printed, other_memory = measured(command)
            subprocess.run(["rm", "-rf", folder / "cache"], check=True)
            found.append((seconds, memory, float(printed.split()[-1]), other_memory))
            print(found[-1], flush=True)
    own, memory, other, other_memory = (middle(column) for column in zip(*found))
    print(f"{options.rows} rows of {options.tokens} tokens, medians of {options.runs} runs")
    print(f"| deltarun | {own:.1f} s | {memory:.0f} MB |")
    print(f"| datasets | {other:.1f} s | {other_memory:.0f} MB |")
    print(f"time: {spread(run[0] / run[2] for run in found)}; memory: {spread(run[1] / run[3] for run in found)}")


main()
