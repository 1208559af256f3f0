"""A LoRA step of a causal language model, deltarun beside PEFT, alternately on the same machine, in one go.

    pip install torch transformers==5.23.0 peft==0.21.2
    cargo build --release
    python benches/peft/language.py MODEL [--pairs 5] [--shapes 4x64]

MODEL is the directory of a Llama or a Qwen2. Both sides train a LoRA of rank 8 on q and v in every block with AdamW, in
f32, on texts that fill every sequence. A pair is one process of each, one after the other; the first two steps of a
process do not count. Prints medians of the time of a step and of the peak memory, and the median of the ratios.
"""

import argparse
import json
import pathlib
import random
import statistics
import sys
import tempfile

from side import SKIPPED, measured, middle, our_step, torch_steps

PIPELINE = """pipeline step
backbone "{model}" {{ max_length = {tokens} }}
data {{ train = text("train.txt") }}
task causal_lm {{ text = text }}
reparam delta = lora {{ rank = 8, alpha = 16 }} on **.attn.{{q,v}}
stage tune {{ train = [delta], steps = {steps}, batch = {batch}, optimizer = adamw {{ lr = 5e-4 }} }}
"""


def theirs(folder, options, shape):
    out, memory = measured([sys.executable, __file__, options.model, "--child", folder, "--threads", options.threads,
                            "--shapes", shape, "--steps", options.steps])
    return statistics.median(json.loads(out)[SKIPPED:]), memory


def child(options):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    batch, tokens = map(int, options.shapes[0].split("x"))
    model = AutoModelForCausalLM.from_pretrained(options.model)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])).train()
    texts = (options.child / "train.txt").read_text().splitlines()
    tokenizer = AutoTokenizer.from_pretrained(options.model)

    def inputs(step):
        part = texts[step * batch % len(texts):][:batch]
        inputs = tokenizer(part, truncation=True, max_length=tokens, return_tensors="pt")
        return inputs, inputs["input_ids"]

    seconds = torch_steps(model, map(inputs, range(options.steps)))
    print(json.dumps(seconds))


def row(options, shape):
    batch, tokens = map(int, shape.split("x"))
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        vocabulary = json.loads((options.model / "tokenizer.json").read_text())["model"]["vocab"]
        words = [token[1:] for token in vocabulary if token[0] in "Ġ▁" and token[1:].isalpha()]
        draw = random.Random(1)
        texts = [" ".join(draw.choices(words, k=tokens)) for _ in range(batch * options.steps)]
        (folder / "train.txt").write_text("\n".join(texts) + "\n")
        (folder / "step.delta").write_text(PIPELINE.format(
            model=options.model.resolve(), tokens=tokens, batch=batch, steps=options.steps))
        pairs = [(our_step(folder, options.threads, n), theirs(folder, options, shape)) for n in range(options.pairs)]
    a, b = middle(o[0] for o, _ in pairs), middle(t[0] for _, t in pairs)
    ratio = middle(t[0] / o[0] for o, t in pairs)
    ma, mb = middle(o[1] for o, _ in pairs), middle(t[1] for _, t in pairs)
    print(f"| {batch} × {tokens} | {1000 * a:.0f} | {1000 * b:.0f} | {ratio:.2f} | {ma:.0f} | {mb:.0f} | {ma / mb:.2f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shapes", nargs="+", default=["4x64"])
    parser.add_argument("--child", type=pathlib.Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(options)
    print("| batch × tokens | deltarun, ms | PEFT, ms | PEFT / deltarun | deltarun, MB | PEFT, MB | memory |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for shape in options.shapes:
        row(options, shape)


if __name__ == "__main__":
    main()
