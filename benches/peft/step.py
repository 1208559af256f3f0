"""One training step, deltarun beside its peer, alternately on the same machine, in one go.

    pip install torch transformers==5.23.0 peft==0.21.2
    cargo build --release
    python benches/peft/step.py MODEL [--pairs 7] [--shapes 32x64 32x128] [--methods lora full ...]
    python benches/peft/step.py MODEL --base --shapes 8x128     # BERT-base's shape, random weights

MODEL is the directory of a BERT with a `tokenizer.json` and a `vocab.txt`; `--base` takes its
tokenizer alone. Both sides train the method and a classifier with AdamW, in f32 unless `--precision bf16`
(deltarun alone), on texts that fill every sequence, so that there is no padding on either side. The peer is
PEFT (`lora`, `prefix`) or plain transformers (`full`, `bitfit`, `houlsby`: the adapter as a hook). A pair is
one process of each, one after the other; the first two steps of a process do not count. Prints medians of
the time of a step and of the peak memory, and the median of the ratios pair by pair.
"""

import argparse
import json
import multiprocessing
import pathlib
import random
import shutil
import statistics
import sys
import tempfile

from side import SKIPPED, measured, middle, our_step, spread, torch_steps

PIPELINE = """pipeline step
backbone "{model}" {{ max_length = {tokens}{settings} }}
data {{ train = tsv("train.tsv") }}
task classify {{ text = text, label = label, labels = ["0", "1"] }}
{delta}
stage tune {{ train = [delta, head], steps = {steps}, batch = {batch}, optimizer = adamw {{ lr = 5e-4 }} }}
"""

METHODS = {
    "lora": "reparam delta = lora { rank = 8, alpha = 16 } on block.*.attn.{q,v}",
    "prefix": "insert delta = prefix { tokens = 10 } before block.*.attn",
    "houlsby": "insert delta = houlsby { bottleneck = 24 } after block.*.{attn,ff}",
    "bitfit": "unfreeze delta = **.bias",
    "full": "unfreeze delta = **",
}


def theirs(folder, options, model, method, shape):
    out, memory = measured([sys.executable, __file__, model, "--child", folder, "--threads", options.threads,
                            "--methods", method, "--shapes", shape, "--steps", options.steps]
                           + (["--dropout"] if options.dropout else []))
    return statistics.median(json.loads(out)[SKIPPED:]), memory


def tuned(model, method):
    """The model with what the method trains, and nothing else, requiring gradients."""
    import torch
    from peft import LoraConfig, PrefixTuningConfig, get_peft_model
    if method == "lora":
        return get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=["query", "value"]))
    if method == "prefix":
        return get_peft_model(model, PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=10))
    for name, parameter in model.named_parameters():
        parameter.requires_grad = method == "full" or name.startswith("classifier") or (method == "bitfit" and "bias" in name)
    if method == "houlsby":
        width = model.config.hidden_size
        for layer in model.bert.encoder.layer:
            for place in (layer.attention.output, layer.output):
                place.adapter = torch.nn.Sequential(torch.nn.Linear(width, 24), torch.nn.ReLU(), torch.nn.Linear(24, width))
                place.dropout.register_forward_hook(lambda _, __, out, adapter=place.adapter: out + adapter(out))
    return model


def child(options):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    batch, tokens = map(int, options.shapes[0].split("x"))
    off = {} if options.dropout else dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=2, **off)
    model = tuned(model, options.methods[0]).train()
    rows = [line.split("\t") for line in (options.child / "train.tsv").read_text().splitlines()[1:]]
    tokenizer = AutoTokenizer.from_pretrained(options.model)

    def inputs(step):
        part = rows[step * batch % len(rows):][:batch]
        inputs = tokenizer([text for text, _ in part], truncation=True, max_length=tokens, return_tensors="pt", padding=True)
        return inputs, torch.tensor([int(label) for _, label in part])

    seconds = torch_steps(model, map(inputs, range(options.steps)))
    print(json.dumps(seconds))


def base(folder, tokenizer):
    """A directory with BERT-base's dimensions, random weights and another model's tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModel
    folder.mkdir()
    config = json.loads((tokenizer / "config.json").read_text())
    config.update(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072)
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(tokenizer / name, folder / name)
    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--base", action="store_true", help="BERT-base's dimensions, random weights, MODEL's tokenizer")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shapes", nargs="+", default=["32x64", "32x128"])
    parser.add_argument("--methods", nargs="+", default=["lora"], choices=list(METHODS))
    parser.add_argument("--precision", choices=["f32", "bf16"], default="f32", help="deltarun's products with frozen weights")
    parser.add_argument("--dropout", action="store_true", help="with the dropout of config.json on both sides")
    parser.add_argument("--child", type=pathlib.Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(options)
    print("| method | batch × tokens | deltarun, ms | peer, ms | peer / deltarun | deltarun, MB | peer, MB | memory |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for method in options.methods:
        for shape in options.shapes:
            row(options, method, shape)


def row(options, method, shape):
    batch, tokens = map(int, shape.split("x"))
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        model = options.model.resolve()
        vocabulary = (model / "vocab.txt").read_text().splitlines()
        words = [line.strip() for line in vocabulary if line.strip().isalpha()][2000:6000]
        if options.base:
            # In a process of its own: torch's memory here would count as that of every child, see `measured`.
            making = multiprocessing.get_context("spawn").Process(target=base, args=(folder / "base", model))
            making.start()
            making.join()
            assert making.exitcode == 0
            model = folder / "base"
        draw = random.Random(1)
        rows = [f"{' '.join(draw.choices(words, k=tokens))}\t{i % 2}" for i in range(batch * options.steps)]
        (folder / "train.tsv").write_text("text\tlabel\n" + "\n".join(rows) + "\n")
        settings = "" if options.dropout else ", dropout = off"
        settings += f", precision = {options.precision}"
        (folder / "step.delta").write_text(PIPELINE.format(
            model=model, tokens=tokens, batch=batch, steps=options.steps, settings=settings, delta=METHODS[method]))
        pairs = [(our_step(folder, options.threads, n), theirs(folder, options, model, method, shape)) for n in range(options.pairs)]
    a, b = middle(o[0] for o, _ in pairs), middle(t[0] for _, t in pairs)
    ratio = spread(t[0] / o[0] for o, t in pairs)
    ma, mb = middle(o[1] for o, _ in pairs), middle(t[1] for _, t in pairs)
    label = method + (" bf16" if options.precision == "bf16" else "") + (" dropout" if options.dropout else "")
    print(f"| {label} | {batch} × {tokens} | {1000 * a:.0f} | {1000 * b:.0f} | {ratio} | {ma:.0f} | {mb:.0f} | {ma / mb:.2f} |",
          flush=True)


if __name__ == "__main__":
    main()
