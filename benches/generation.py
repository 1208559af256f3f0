"""Time and memory of writing text beside transformers: the same prompts in one batch, greedy, in f32 on the CPU.

    python benches/generation.py DELTARUN MODEL [--prompts 16] [--tokens 128] [--runs 3] [--threads 2]

Both load the model and write the same number of tokens for every prompt; the runs alternate. The times are of whole
processes; the rates leave out what a run with one token takes.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

QUESTION = "Write a story about a cat that lives in house number {} of a street by the sea, and what it finds there."


def transformers_run(model, prompts, tokens, threads):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    net = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    texts = [json.loads(line)["text"] for line in open(prompts)]
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    net.generate(**batch, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)


def measured(command):
    start = time.time()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, status, usage = os.wait4(child.pid, 0)
    if status != 0:
        sys.exit(child.stderr.read().decode()[-2000:])
    return time.time() - start, usage.ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("deltarun")
    parser.add_argument("model")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return transformers_run(options.model, options.child, options.tokens, options.threads)
    with tempfile.TemporaryDirectory() as folder:
        prompts = os.path.join(folder, "prompts.jsonl")
        with open(prompts, "w") as file:
            for number in range(options.prompts):
                file.write(json.dumps({"text": QUESTION.format(number)}) + "\n")

        def ours(tokens):
            return [options.deltarun, "generate", options.model, "--input", prompts, "--max-tokens", str(tokens),
                    "--threads", str(options.threads), "--min-tokens", str(tokens)]

        def theirs(tokens):
            return [sys.executable, __file__, options.deltarun, options.model, "--tokens", str(tokens), "--threads",
                    str(options.threads), "--child", prompts]

        times = {"deltarun": [], "transformers": []}
        for _ in range(options.runs):
            for name, command in (("deltarun", ours), ("transformers", theirs)):
                one, _ = measured(command(1))
                whole, memory = measured(command(options.tokens))
                times[name].append((whole, whole - one, memory))
        written = options.prompts * (options.tokens - 1)
        for name, runs in times.items():
            whole, rest, memory = (statistics.median(run[i] for run in runs) for i in range(3))
            spread = [round(run[1], 2) for run in runs]
            print(f"{name}: {whole:.2f} s in all, {written / rest:.0f} tokens/s after the first ({spread} s), {memory:.0f} MB")


if __name__ == "__main__":
    main()
