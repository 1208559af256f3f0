"""Loads what runs left, as a user of PEFT and transformers would, and compares logits.

    check_peft.py BACKBONE RUN...

Each RUN is a run's directory; beside it are `RUN.jsonl`, lines `{"text": ..., "logits": [...]}` from
`deltarun predict`, and `RUN-merged`, what `deltarun merge` wrote, where it can be merged; a method that
PEFT does not have leaves that alone. Prints the largest difference for each; exits with 1 if one is above 1e-4.
"""

import json
import pathlib
import sys

import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

backbone, *runs = sys.argv[1:]
tokenizer = PreTrainedTokenizerFast(tokenizer_file=f"{backbone}/tokenizer.json", pad_token="[PAD]")
worst = 0.0
for run in runs:
    rows = [json.loads(line) for line in open(f"{run}.jsonl")]
    batch = tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")
    batch.pop("token_type_ids", None)
    ours = torch.tensor([row["logits"] for row in rows])
    base = AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=ours.shape[1])
    models = {}
    if pathlib.Path(f"{run}/peft").exists():
        models["adapter"] = PeftModel.from_pretrained(base, f"{run}/peft")
    if pathlib.Path(f"{run}-merged").exists():
        models["merged"] = AutoModelForSequenceClassification.from_pretrained(f"{run}-merged")
    assert models, f"{run} has neither an adapter nor a merged model"
    for name, model in models.items():
        model.eval()
        with torch.no_grad():
            difference = (model(**batch).logits - ours).abs().max().item()
        print(f"{run}, {name}: logits differ by at most {difference:.2e}")
        worst = max(worst, difference)
sys.exit(0 if worst < 1e-4 else 1)
