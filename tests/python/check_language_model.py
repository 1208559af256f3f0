"""Loads what runs of a language model left, as a user of PEFT and transformers would, and compares the loss.

    check_language_model.py BACKBONE TEXTS RUN=LOSS...

TEXTS has a text in each line, or, for an encoder and a decoder, a source, a tab and a target behind a header; LOSS is what `deltarun eval RUN` says of it. `RUN/peft` is its adapter, and `RUN-merged`
what `deltarun merge` wrote. Prints the differences; exits with 1 if one is above 1e-3.
"""

import pathlib
import sys

import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

backbone, texts, *runs = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(backbone)
lines = [line for line in open(texts).read().splitlines() if line]
has_encoder = AutoConfig.from_pretrained(backbone).is_encoder_decoder
of_task = AutoModelForSeq2SeqLM if has_encoder else AutoModelForCausalLM


def loss(model):
    total, count = 0.0, 0
    for line in lines[1:] if has_encoder else []:
        source, target = (tokenizer(text, return_tensors="pt")["input_ids"] for text in line.split("\t"))
        with torch.no_grad():
            total += model(input_ids=source, labels=target).loss.item() * target.shape[1]
        count += target.shape[1]
    for line in [] if has_encoder else lines:
        ids = tokenizer(line, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            total += model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    return total / count


worst = 0.0
for run in runs:
    run, ours = run.split("=")
    base = of_task.from_pretrained(backbone)
    before = loss(base.eval())
    models = {"adapter": PeftModel.from_pretrained(base, f"{run}/peft")}
    if pathlib.Path(f"{run}-merged").exists():
        models["merged"] = of_task.from_pretrained(f"{run}-merged")
    for name, model in models.items():
        difference = abs(loss(model.eval()) - float(ours))
        print(f"{run}, {name}: the loss differs by {difference:.2e} (before training {before:.3f}, after {ours})")
        worst = max(worst, difference)
sys.exit(0 if worst < 1e-3 else 1)
