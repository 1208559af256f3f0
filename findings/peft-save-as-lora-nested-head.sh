#!/usr/bin/env bash
# PEFT 0.21.2: `save_as_lora` of a classifier whose head has more than one layer (RoBERTa, XLM-R, ELECTRA …)
# writes all tensors of the head under one pair of names. Only the last layer is left in the file, and the
# file cannot be loaded.
#
# With task_type="SEQ_CLS" PEFT trains the head `classifier` in full. For RoBERTa that head is a module with
# `dense` and `out_proj`. `convert_to_lora` keeps only the last part of a parameter's name, so
# `classifier.dense.weight` and `classifier.out_proj.weight` both become `classifier.weight`, and the later one
# overwrites the earlier one. No error or warning on saving; `PeftModel.from_pretrained` then raises KeyError.
# Whoever deleted the original by then has lost the trained `dense` layer. BERT's head, one Linear, is right.
#
# Affected: conversions of LoHa, LoKr, VeRA … classifiers to LoRA, and any `modules_to_save` that names a module
# with modules inside. Since 0.19, which brought the function. Expected: the names that `save_pretrained` writes
# (`classifier.dense.weight`, …), and a file that loads, as the example in the function's own docstring does.
# (Pull request 3481 of huggingface/peft, open, is about buffers, and replaces the lines in question.)
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q torch==2.15.0 transformers==5.23.0 peft==0.21.2
cat > "$dir/check.py" <<'EOF'
import sys
import warnings

warnings.filterwarnings("ignore")
import peft
import torch
import transformers
from peft import LoHaConfig, PeftModel, get_peft_model, save_as_lora
from safetensors.torch import load_file
from transformers import BertConfig, BertForSequenceClassification, RobertaConfig, RobertaForSequenceClassification

print("torch", torch.__version__, "transformers", transformers.__version__, "peft", peft.__version__)
SMALL = dict(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=3)
tokens = torch.arange(2, 12)[None]


def make(kind):
    torch.manual_seed(0)
    if kind == "bert":
        return BertForSequenceClassification(BertConfig(**SMALL)).eval()
    return RobertaForSequenceClassification(RobertaConfig(**SMALL)).eval()


def head(folder):
    return sorted(name for name in load_file(f"{folder}/adapter_model.safetensors") if ".classifier" in name)


for kind in ("bert", "roberta"):
    model = get_peft_model(make(kind), LoHaConfig(r=2, target_modules=["query"], task_type="SEQ_CLS")).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn(parameter.shape)
    own, lora = f"{sys.argv[1]}/{kind}", f"{sys.argv[1]}/{kind}_lora"
    model.save_pretrained(own)
    save_as_lora(lora, model, rank=16)  # the full rank: nothing is left to approximate
    print(kind, "save_pretrained:", head(own))
    print(kind, "save_as_lora:   ", head(lora))
    try:
        loaded = PeftModel.from_pretrained(make(kind), lora).eval()
        with torch.no_grad():
            difference = (loaded(tokens).logits - model(tokens).logits).abs().max().item()
        print(kind, f"loads; largest difference of the logits {difference:.1e}")
        assert kind == "bert" and difference < 1e-5, "changed"
    except KeyError as error:
        print(kind, "does not load: KeyError", error)
        assert kind == "roberta" and len(head(own)) == 4 and len(head(lora)) == 2, "changed"
print("still so: the head of two layers is written as one")
EOF
HF_HUB_OFFLINE=1 "$dir/venv/bin/python" "$dir/check.py" "$dir"
