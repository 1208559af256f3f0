"""The logits of label words, by transformers, beside those of `deltarun predict`.

    check_cloze.py BACKBONE PREDICTED.jsonl TEMPLATE WORD WORD ...

TEMPLATE has `{text}` and `[MASK]`. Prints the largest difference; exits with 1 if it is above 1e-4.
"""

import json
import sys

import torch
from transformers import BertForMaskedLM, PreTrainedTokenizerFast

backbone, predicted, template, *words = sys.argv[1:]
rows = [json.loads(line) for line in open(predicted)]
tokenizer = PreTrainedTokenizerFast(tokenizer_file=f"{backbone}/tokenizer.json", pad_token="[PAD]", mask_token="[MASK]")
batch = tokenizer([template.replace("{text}", row["text"]) for row in rows], padding=True, return_tensors="pt")
batch.pop("token_type_ids", None)
model = BertForMaskedLM.from_pretrained(backbone).eval()
with torch.no_grad():
    logits = model(**batch).logits[batch["input_ids"] == tokenizer.mask_token_id]
theirs = logits[:, tokenizer.convert_tokens_to_ids(words)]
difference = (theirs - torch.tensor([row["logits"] for row in rows])).abs().max().item()
print(f"logits of {words} differ by at most {difference:.2e}")
sys.exit(0 if difference < 1e-4 else 1)
