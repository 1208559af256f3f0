"""Every method on SST-2, one seed: dev accuracy, trained parameters, time per step, peak memory.

    cargo build --release
    python benches/methods/run.py MODEL DATA

MODEL is the directory of a BERT, DATA has SST-2's `train.tsv` and `dev.tsv` (columns `sentence`,
`label`). The pipeline is `benches/accuracy/sst2.delta`; time is the median over all steps of a run,
memory the process's peak. Results are added to `--results FILE` (JSON lines), so that a run that was
stopped goes on; `--docs FILE` writes the table between its marks.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
PIPELINE = (HERE.parent / "accuracy/sst2.delta").read_text()
QV, LINEAR, SUB = "block.*.attn.{q,v}", "block.*.{attn.{q,k,v,o},ff.{up,down}}", "block.*.{attn,ff}"

# name, learning rate, statements; what is trained is every name that they give.
METHODS = [
    ("head only", 1e-1, ""),
    ("full fine-tuning", 5e-5, "unfreeze all = **"),
    ("BitFit", 1e-3, "unfreeze biases = **.bias"),
    ("BitFit, query and FFN-up", 5e-3, "unfreeze biases = block.*.{attn.q,ff.up}.bias"),
    ("layer norms", 2e-3, "unfreeze norms = **.norm"),
    ("last layer", 2e-4, "unfreeze top = block[last 1]"),
    ("4 random weights", 1e-3, "unfreeze some = random 4 of block.*.{attn.{q,k,v,o},ff.{up,down}}.weight"),
    ("trainable tokens", 1e-1, 'reparam words = trainable_tokens { words = ["good", "bad", "great", "terrible", "not", "too", "but", "best", "worst", "dull"] } on embeddings.word'),
    ("LoRA", 5e-4, f"reparam delta = lora on {QV}"),
    ("LoRA, all linear layers", 5e-4, f"reparam delta = lora on {LINEAR}"),
    ("LoRA on word embeddings", 2e-3, "reparam delta = lora on embeddings.word"),
    ("LoRA, two ranks", 5e-4, "reparam low = lora { rank = 2, alpha = 4 } on block[0..3].attn.{q,v}\nreparam high = lora { rank = 16, alpha = 32 } on block[3..6].attn.{q,v}"),
    ("rsLoRA", 5e-4, f"reparam delta = lora {{ scaling = rank_stabilized }} on {QV}"),
    ("PiSSA", 1e-3, f"reparam delta = lora {{ init = pissa }} on {QV}"),
    ("DoRA", 5e-4, f"reparam delta = dora on {QV}"),
    ("AdaLoRA", 5e-3, f"reparam delta = adalora {{ warmup = 40, last = 80, interval = 5 }} on {QV}"),
    ("LoHa", 2e-3, f"reparam delta = loha on {QV}"),
    ("LoKr", 5e-3, f"reparam delta = lokr on {QV}"),
    ("VeRA", 1e-2, f"reparam delta = vera on {QV}"),
    ("MiSS", 5e-4, f"reparam delta = miss on {QV}"),
    ("(IA)³", 1e-2, "reparam delta = ia3 on block.*.{attn.{k,v},ff.down}"),
    ("intrinsic dimension (DID), 1000", 1e-1, f"reparam delta = intrinsic_dimension {{ dimension = 1000 }} on {LINEAR}"),
    ("intrinsic dimension (SAID), 1000", 1e-1, f"reparam delta = intrinsic_dimension {{ dimension = 1000, structure_aware = on }} on {LINEAR}"),
    ("Houlsby", 5e-4, f"insert delta = houlsby after {SUB}"),
    ("Pfeiffer", 5e-4, "insert delta = pfeiffer after block.*.ff"),
    ("parallel", 2e-4, "insert delta = parallel beside block.*.ff"),
    ("low-rank adapter", 2e-3, f"insert delta = low_rank_adapter after {SUB}"),
    ("Compacter", 2e-3, f"insert delta = compacter after {SUB}"),
    ("prefix", 5e-3, "insert delta = prefix before block.*.attn"),
    ("prefix, MLP of 512", 5e-4, "insert delta = prefix { hidden = 512 } before block.*.attn"),
    ("prompt, vocabulary", 5e-2, "insert delta = prompt before embeddings"),
    ("prompt, from a text", 5e-2, 'insert delta = prompt { init = "is this sentence about a film positive or negative ?" } before embeddings'),
    ("P-tuning", 1e-2, "insert delta = p_tuning before embeddings"),
    ("MAM", 2e-4, "insert prefixes = prefix { hidden = 512 } before block.*.attn\ninsert adapters = parallel { bottleneck = 96 } beside block.*.ff"),
    ("UniPELT", 1e-3, f"insert prefixes = prefix {{ tokens = 10, gate = on }} before block.*.attn\ninsert adapters = pfeiffer {{ gate = on }} after block.*.ff\nreparam low_rank = lora {{ gate = on }} on {QV}"),
]


def run(statements, lr, model, data, seed, threads):
    """Accuracy, trained parameters, milliseconds per step, MiB at the peak."""
    names = [line.split()[1] for line in statements.splitlines()]
    with tempfile.TemporaryDirectory() as folder:
        out, pipeline = pathlib.Path(folder) / "run", pathlib.Path(folder) / "sst2.delta"
        pipeline.write_text(PIPELINE.replace("# DELTA", statements)
                            .replace("[head]", f"[{', '.join(names + ['head'])}]"))
        process = subprocess.Popen(
            [HERE.parents[1] / "target/release/deltarun", pipeline, "--set", f"model={model}",
             "--set", f"train_file={data / 'train.tsv'}", "--set", f"dev_file={data / 'dev.tsv'}",
             "--set", f"lr={lr}", "--seed", str(seed), "--out", out, "--threads", str(threads), "--quiet"],
            stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if status != 0:
            raise SystemExit(f"{statements}: exit status {status}")
        stage = json.loads((out / "metrics.json").read_text())["stages"][-1]
        steps = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        ends = [step["seconds"] for step in steps if "loss" in step]
    return dict(accuracy=stage["dev"]["metrics"]["accuracy"], trained=stage["trained"],
                milliseconds=1000 * statistics.median(ends), mebibytes=usage.ru_maxrss / 1024)


def table(results):
    lines = ["| method | learning rate | trained parameters | dev accuracy | ms per step | peak MiB |",
             "|---|---:|---:|---:|---:|---:|"]
    for name, lr, _ in METHODS:
        if row := results.get((name, lr)):
            lines.append(f"| {name} | {lr:.0e} | {row['trained']:,} | {100 * row['accuracy']:.1f} | "
                         f"{row['milliseconds']:.0f} | {row['mebibytes']:.0f} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("--methods", nargs="+", default=[name for name, _, _ in METHODS])
    parser.add_argument("--rates", nargs="+", type=float, help="learning rates to try instead of each method's own")
    parser.add_argument("--seed", type=int, default=13)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=pathlib.Path, default=pathlib.Path("methods.jsonl"))
    parser.add_argument("--docs", type=pathlib.Path)
    options = parser.parse_args()
    model, data = options.model.resolve(), options.data.resolve()

    results = {}
    if options.results.exists():
        for line in options.results.read_text().splitlines():
            row = json.loads(line)
            results[row["method"], row["lr"]] = row
    for name, own, statements in METHODS:
        for lr in options.rates or [own]:
            if name not in options.methods or (name, lr) in results:
                continue
            row = dict(method=name, lr=lr, **run(statements, lr, model, data, options.seed, options.threads))
            results[name, lr] = row
            with options.results.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(row, flush=True)
    print(table(results))
    if options.docs:
        text = options.docs.read_text()
        before, _, rest = text.partition("<!-- methods -->")
        _, _, after = rest.partition("<!-- /methods -->")
        options.docs.write_text(f"{before}<!-- methods -->\n{table(results)}\n<!-- /methods -->{after}")


if __name__ == "__main__":
    main()
