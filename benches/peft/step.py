"""One training step, deltarun beside PEFT, alternately on the same machine, in one go.

    pip install torch transformers peft
    cargo build --release
    python benches/peft/step.py MODEL [--pairs 7] [--shapes 32x64 32x128]

MODEL is the directory of a BERT. Both sides train LoRA rank 8 on q and v and a classifier, AdamW, in f32,
on texts that fill every sequence, so that there is no padding on either side. A pair is one process of
each, one after the other; a process runs 12 steps, of which the last 10 count. Prints medians of the
time of a step and of the peak memory, and the median of the ratios pair by pair.
"""

import argparse
import json
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS, SKIPPED = 12, 2

PIPELINE = """pipeline step
backbone "{model}" {{ max_length = {tokens}{dropout} }}
data {{ train = tsv("train.tsv") }}
task classify {{ text = text, label = label, labels = ["0", "1"] }}
reparam low_rank = lora {{ rank = 8, alpha = 16 }} on block.*.attn.{{q,v}}
stage tune {{ train = [low_rank, head], steps = {steps}, batch = {batch}, optimizer = adamw {{ lr = 5e-4 }} }}
"""


def measured(command, **more):
    """Seconds of a step and peak memory in MB, from a child process that prints JSON or leaves a log."""
    before = time.time()
    child = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, **more)
    out = child.stdout.read()
    _, status, usage = __import__("os").wait4(child.pid, 0)
    assert status == 0, f"{command} ended with {status}"
    return out, usage.ru_maxrss / 1024, time.time() - before


def ours(folder, threads, number):
    out = folder / f"run{number}"
    _, memory, _ = measured([ROOT / "target/release/deltarun", folder / "step.delta", "--out", out,
                             "--threads", threads, "--quiet"])
    seconds = [json.loads(line)["seconds"] for line in (out / "log.jsonl").read_text().splitlines() if '"lr"' in line]
    return statistics.median(seconds[SKIPPED:]), memory


def theirs(folder, threads, model, batch, tokens, dropout):
    out, memory, _ = measured([sys.executable, __file__, model, "--child", folder, "--threads", threads,
                               "--shapes", f"{batch}x{tokens}"] + (["--dropout"] if dropout else []))
    return statistics.median(json.loads(out)[SKIPPED:]), memory


def child(options):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    batch, tokens = map(int, options.shapes[0].split("x"))
    off = {} if options.dropout else dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=2, **off)
    tuned = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=["query", "value"]))
    tuned.train()
    rows = [line.split("\t") for line in (options.child / "train.tsv").read_text().splitlines()[1:]]
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=5e-4, weight_decay=0.0)
    seconds = []
    for step in range(STEPS):
        part = rows[step * batch % len(rows):][:batch]
        inputs = tokenizer([text for text, _ in part], truncation=True, max_length=tokens, return_tensors="pt", padding=True)
        labels = torch.tensor([int(label) for _, label in part])
        start = time.perf_counter()
        loss = tuned(**inputs, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in tuned.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    print(json.dumps(seconds))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shapes", nargs="+", default=["32x64", "32x128"])
    parser.add_argument("--dropout", action="store_true", help="with the dropout of config.json on both sides")
    parser.add_argument("--child", type=pathlib.Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(options)
    model = options.model.resolve()
    print("| batch × tokens | deltarun, ms | PEFT, ms | PEFT / deltarun | deltarun, MB | PEFT, MB | memory |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    words = [line.strip() for line in (model / "vocab.txt").read_text().splitlines() if line.strip().isalpha()][2000:6000]
    for shape in options.shapes:
        batch, tokens = map(int, shape.split("x"))
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            draw = random.Random(1)
            rows = [f"{' '.join(draw.choices(words, k=tokens))}\t{i % 2}" for i in range(batch * STEPS)]
            (folder / "train.tsv").write_text("text\tlabel\n" + "\n".join(rows) + "\n")
            (folder / "step.delta").write_text(PIPELINE.format(
                model=model, tokens=tokens, batch=batch, steps=STEPS, dropout="" if options.dropout else ", dropout = off"))
            pairs = [(ours(folder, options.threads, n),
                      theirs(folder, options.threads, model, batch, tokens, options.dropout)) for n in range(options.pairs)]
        middle = lambda values: statistics.median(values)
        a, b = middle([o[0] for o, _ in pairs]), middle([t[0] for _, t in pairs])
        ratio = middle([t[0] / o[0] for o, t in pairs])
        ma, mb = middle([o[1] for o, _ in pairs]), middle([t[1] for _, t in pairs])
        print(f"| {batch} × {tokens} | {1000 * a:.0f} | {1000 * b:.0f} | {ratio:.2f} | {ma:.0f} | {mb:.0f} | {ma / mb:.2f} |", flush=True)


if __name__ == "__main__":
    main()
