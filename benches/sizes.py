"""Memory and time of a LoRA step by the size of the model.

    pip install torch transformers==5.23.0
    cargo build --release
    python benches/sizes.py MODEL [--pairs 3] [--steps 5]

MODEL is the directory of a tokenizer with a `vocab.txt` (a BERT's). The shapes are those of published models
(`tests/fixtures/published/`); transformers draws the weights and saves them in f32. A LoRA of rank 8 on q and v in every block learns with AdamW, in
f32: a classifier for BERT, causal language modelling for the others. Texts fill every sequence. Prints Markdown: medians
of `--pairs` runs, the largest peak, and the size of the weights in f32.
"""

import argparse
import json
import multiprocessing
import pathlib
import random
import shutil
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benches/peft"))
from side import middle, our_step

MODELS = {"bert-base-uncased": "8x128", "smollm2-135m": "4x64", "qwen2-0.5b": "4x64", "tinyllama-1.1b-chat": "4x64"}
PIPELINE = """pipeline step
backbone "model" {{ max_length = {tokens}, dropout = off }}
data {{ train = tsv("train.tsv") }}
task {task}
reparam delta = lora {{ rank = 8, alpha = 16 }} on block.*.attn.{{q,v}}
stage tune {{ train = [{trained}], steps = {steps}, batch = {batch}, optimizer = adamw {{ lr = 5e-4 }} }}
"""


def save(folder, is_bert):
    """Adds random weights to a directory with a configuration."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
    torch.manual_seed(0)
    kind = AutoModel if is_bert else AutoModelForCausalLM
    kind.from_config(AutoConfig.from_pretrained(folder, dtype="float32")).save_pretrained(folder)


def prepare(folder, name, shape, tokenizer, steps):
    """Writes a model's directory, its data and a pipeline. Returns the number of its parameters."""
    published = json.loads((ROOT / f"tests/fixtures/published/{name}.json").read_text())
    config, batch, tokens = published["config"], *map(int, shape.split("x"))
    is_bert = config["model_type"] == "bert"
    (folder / "model").mkdir()
    (folder / "model/config.json").write_text(json.dumps(config))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / file, folder / "model" / file)
    # In a process of its own: torch's memory here would count as that of every child, see `measured`.
    making = multiprocessing.get_context("spawn").Process(target=save, args=(folder / "model", is_bert))
    making.start()
    making.join()
    assert making.exitcode == 0
    vocabulary = (tokenizer / "vocab.txt").read_text().splitlines()
    words = [line.strip() for line in vocabulary if line.strip().isalpha()][2000:6000]
    draw = random.Random(1)
    rows = [f"{' '.join(draw.choices(words, k=tokens))}\t{i % 2}" for i in range(batch * steps)]
    (folder / "train.tsv").write_text("text\tlabel\n" + "\n".join(rows) + "\n")
    task = 'classify { text = text, label = label, labels = ["0", "1"] }' if is_bert else "causal_lm { text = text }"
    trained = "delta, head" if is_bert else "delta"
    (folder / "step.delta").write_text(PIPELINE.format(tokens=tokens, task=task, trained=trained, steps=steps, batch=batch))
    return published["parameters"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    print("| shape of | parameters | weights in f32, MB | batch × tokens | ms per step | peak, MB |")
    print("|---|---:|---:|---|---:|---:|")
    for name, shape in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            parameters = prepare(folder, name, shape, options.model.resolve(), options.steps)
            runs = [our_step(folder, options.threads, number) for number in range(options.pairs)]
        size, step = parameters * 4 / 2**20, 1000 * middle(seconds for seconds, _ in runs)
        print(f"| {name} | {parameters / 1e6:,.0f} M | {size:,.0f} | {shape.replace('x', ' × ')} | {step:,.0f} | "
              f"{max(memory for _, memory in runs):,.0f} |", flush=True)


if __name__ == "__main__":
    main()
