"""The time of a step by the number of processes, deltarun by MPI beside PEFT in torch's DDP (gloo), in one go.

    pip install torch transformers==5.23.0 peft==0.21.2
    cargo build --release --features mpi
    python benches/ranks.py MODEL [--ranks 1 2] [--pairs 3] [--batch 32] [--tokens 64] [--steps 10]

MODEL is the directory of a BERT with a `tokenizer.json` and a `vocab.txt`. Both sides train a LoRA of rank 8 on queries and
values and a classifier, in f32, on texts that fill every sequence, with one thread per process. `--batch` is that of all
processes together. Prints medians of the time of a step, the spread over pairs, and each side's efficiency: the time of
one process over `ranks` times that of `ranks` processes.
"""

import argparse
import json
import pathlib
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
SKIPPED = 2
PIPELINE = """pipeline step
backbone "{model}" {{ max_length = {tokens} }}
data {{ train = tsv("train.tsv") }}
task classify {{ text = text, label = label, labels = ["0", "1"] }}
reparam delta = lora {{ rank = 8, alpha = 16 }} on block.*.attn.{{q,v}}
stage tune {{ train = [delta, head], steps = {steps}, batch = {batch}, optimizer = adamw {{ lr = 5e-4 }}, keep = last }}
"""


def ours(folder, options, ranks):
    out = folder / "run"
    shutil.rmtree(out, ignore_errors=True)
    subprocess.run(["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", str(ranks), ROOT / "target/release/deltarun",
                    folder / "step.delta", "--out", out, "--threads", "1", "--quiet"],
                   check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    lines = (out / "log.jsonl").read_text().splitlines()
    seconds = [json.loads(line)["seconds"] for line in lines if '"lr"' in line]
    return statistics.median(seconds[SKIPPED:])


def theirs(folder, options, ranks):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(ranks), __file__, options.model,
               "--child", folder, "--batch", options.batch, "--tokens", options.tokens, "--steps", options.steps]
    out = subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    return statistics.median(json.loads(out.decode().splitlines()[-1])[SKIPPED:])


def child(options):
    import torch
    import torch.distributed as dist
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=2)
    model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=["query", "value"]))
    model = torch.nn.parallel.DistributedDataParallel(model)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    rows = [line.split("\t") for line in (options.child / "train.tsv").read_text().splitlines()[1:]]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-4, weight_decay=0.0)
    seconds = []
    for step in range(options.steps):
        batch = rows[step * options.batch:][:options.batch][rank::ranks]
        inputs = tokenizer([text for text, _ in batch], truncation=True, max_length=options.tokens, padding=True, return_tensors="pt")
        labels = torch.tensor([int(label) for _, label in batch])
        start = time.perf_counter()
        model(**inputs, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    if rank == 0:
        print(json.dumps(seconds))
    dist.destroy_process_group()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--child", type=pathlib.Path)
    options = parser.parse_args()
    if options.child:
        return child(options)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        words = [word for word in (options.model / "vocab.txt").read_text().split() if word.isalpha() and len(word) > 3]
        draw = random.Random(0)
        rows = [f"{' '.join(draw.choices(words, k=options.tokens))}\t{draw.randrange(2)}" for _ in range(options.batch * options.steps)]
        (folder / "train.tsv").write_text("text\tlabel\n" + "\n".join(rows) + "\n")
        (folder / "step.delta").write_text(PIPELINE.format(
            model=options.model.resolve(), tokens=options.tokens, batch=options.batch, steps=options.steps))
        found = {}
        for _ in range(options.pairs):
            for ranks in options.ranks:
                for side, run in [("deltarun", ours), ("DDP", theirs)]:
                    found.setdefault((side, ranks), []).append(run(folder, options, ranks))
    print("| processes | deltarun, ms | efficiency | DDP, ms | efficiency | DDP / deltarun |\n|---:|---:|---:|---:|---:|---:|")
    middle = {key: statistics.median(values) for key, values in found.items()}
    for ranks in options.ranks:
        cells = []
        for side in ["deltarun", "DDP"]:
            low, high = min(found[side, ranks]), max(found[side, ranks])
            first = options.ranks[0]
            efficiency = first * middle[side, first] / (ranks * middle[side, ranks])
            cells += [f"{1000 * middle[side, ranks]:.0f} ({1000 * low:.0f} to {1000 * high:.0f})", f"{efficiency:.2f}"]
        ratio = middle["DDP", ranks] / middle["deltarun", ranks]
        print(f"| {ranks} | {' | '.join(cells)} | {ratio:.2f} |")


main()
