#!/usr/bin/env bash
# PEFT 0.21.2: `merge_and_unload` of an LN-tuned classifier gives a model that is right in memory and, once saved, comes back
# with an untrained head.
#
# With task_type="SEQ_CLS" or "TOKEN_CLS" PEFT trains the head in full, in a wrapper with the original beside it. For
# other kinds `merge_and_unload` takes the trained head out of the wrapper. LN tuning has its own loop, which looks for
# layers with a `base_layer` only, so the wrapper stays. `save_pretrained` then writes
# `classifier.modules_to_save.default.weight` and `classifier.original_module.weight`; `from_pretrained` finds no
# `classifier.weight` and draws a new one, by a line in its report. The function promises "the same architecture as the
# original base model".
#
# Affected: shipping an LN-tuned text or token classifier as one merged model: its accuracy in the process that trained it is
# right, and that of the file is chance. Since 0.11, which brought the method. Expected: the trained head under its name.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q torch==2.15.0 transformers==5.23.0 peft==0.21.2
cat > "$dir/check.py" <<'EOF2'
import sys
import warnings

warnings.filterwarnings("ignore")
import peft
import torch
import transformers
from peft import IA3Config, LNTuningConfig, LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import (AutoModelForSequenceClassification, AutoModelForTokenClassification, BertConfig,
                          BertForSequenceClassification, BertForTokenClassification)

print("torch", torch.__version__, "transformers", transformers.__version__, "peft", peft.__version__)
ids = torch.randint(2, 50, (40, 8), generator=torch.Generator().manual_seed(0))
CONFIG = BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
                    num_labels=4, initializer_range=0.2)
tasks = {
    "SEQ_CLS": (BertForSequenceClassification, AutoModelForSequenceClassification, ids[:, 0] % 4),
    "TOKEN_CLS": (BertForTokenClassification, AutoModelForTokenClassification, ids % 4),
}
kinds = {
    "LN tuning": lambda task: LNTuningConfig(task_type=task, target_modules=["LayerNorm"]),
    "LoRA": lambda task: LoraConfig(task_type=task, target_modules=["query", "value"]),
    "IA3": lambda task: IA3Config(task_type=task, target_modules=["key", "value"], feedforward_modules=[]),
}
for task, (make, auto, labels) in tasks.items():
    for kind, config in kinds.items():
        torch.manual_seed(0)
        model = get_peft_model(make(CONFIG), config(task))
        optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=0.05)
        for _ in range(150):
            model(input_ids=ids, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        def accuracy(one):
            with torch.no_grad():
                return (one.eval()(input_ids=ids).logits.argmax(-1) == labels).float().mean().item()

        tuned = accuracy(model)
        merged = model.merge_and_unload()
        folder = f"{sys.argv[1]}/{task}_{kind}"
        merged.save_pretrained(folder)
        in_memory, in_file = accuracy(merged), accuracy(auto.from_pretrained(folder))
        names = sorted(name for name in load_file(f"{folder}/model.safetensors") if name.startswith("classifier"))
        print(f"{task} {kind}: accuracy {tuned:.2f}, merged {in_memory:.2f}, saved and loaded {in_file:.2f}; {names}")
        assert in_memory == tuned > 0.7
        if kind == "LN tuning":
            assert in_file < tuned - 0.2 and "classifier.weight" not in names, "changed"
        else:
            assert in_file == tuned and names == ["classifier.bias", "classifier.weight"]
print("still so: LN tuning leaves the head in its wrapper")
EOF2
HF_HUB_OFFLINE=1 "$dir/venv/bin/python" "$dir/check.py" "$dir" 2> "$dir/log" || { tail -5 "$dir/log"; exit 1; }
