"""Loads what a run left, as a user of PEFT and transformers would, and compares logits.

    check_peft.py BACKBONE RUN MERGED PREDICTED.jsonl

PREDICTED.jsonl has lines `{"text": ..., "logits": [...]}` from `deltarun predict`. Prints the largest
difference for the adapter and for the merged model; exits with 1 if one is above 1e-4.
"""

import json
import sys

import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

backbone, run, merged, predicted = sys.argv[1:]
rows = [json.loads(line) for line in open(predicted)]
tokenizer = PreTrainedTokenizerFast(tokenizer_file=f"{backbone}/tokenizer.json", pad_token="[PAD]")
batch = tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")
batch.pop("token_type_ids", None)
ours = torch.tensor([row["logits"] for row in rows])
labels = ours.shape[1]

base = AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=labels)
models = {
    "adapter": PeftModel.from_pretrained(base, f"{run}/peft"),
    "merged": AutoModelForSequenceClassification.from_pretrained(merged),
}
worst = 0.0
for name, model in models.items():
    model.eval()
    with torch.no_grad():
        difference = (model(**batch).logits - ours).abs().max().item()
    print(f"{name}: logits differ by at most {difference:.2e}")
    worst = max(worst, difference)
sys.exit(0 if worst < 1e-4 else 1)
