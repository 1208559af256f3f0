#!/usr/bin/env bash
# PEFT 0.21.2: `with model.disable_adapter():` fails for every prompt-learning method (prompt tuning, p-tuning,
# prefix tuning) on a model that does not generate: classifiers of texts and tokens, question answering, encoders.
#
# `disable_adapter` replaces two methods, `forward` and `prepare_inputs_for_generation`. A BERT classifier has no
# second one, so an AttributeError is raised; the clean-up then reads a variable that was not set yet, and the
# user sees UnboundLocalError: "cannot access local variable 'old_prepare_inputs_for_generation'". LoRA and all
# other kinds work on the same model, and so does prompt tuning of a model that generates.
#
# Affected: comparing a tuned classifier with its base model, or taking the base as the teacher. By the source
# since 0.4.0. Expected: the base model's output, which the method's docstring promises.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q torch==2.15.0 transformers==5.23.0 peft==0.21.2
cat > "$dir/check.py" <<'EOF'
import warnings

warnings.filterwarnings("ignore")
import peft
import torch
import transformers
from peft import LoraConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from transformers import (BertConfig, BertForSequenceClassification, BertForTokenClassification, GPT2Config, GPT2LMHeadModel)

print("torch", torch.__version__, "transformers", transformers.__version__, "peft", peft.__version__)
BERT = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
GPT2 = GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=1)
tokens = torch.arange(2, 8)[None]


def disabled(make, config):
    """Whether the model without its adapter gives the base model's output, or the error."""
    torch.manual_seed(0)
    base = make().eval()
    with torch.no_grad():
        want = base(input_ids=tokens).logits
        model = get_peft_model(base, config).eval()
        try:
            with model.disable_adapter():
                return torch.allclose(model(input_ids=tokens).logits, want, atol=1e-6)
        except Exception as error:
            return type(error).__name__


kinds = {
    "prompt tuning": lambda task: PromptTuningConfig(task_type=task, num_virtual_tokens=4),
    "p-tuning": lambda task: PromptEncoderConfig(task_type=task, num_virtual_tokens=4, encoder_hidden_size=16),
    "prefix tuning": lambda task: PrefixTuningConfig(task_type=task, num_virtual_tokens=4),
    "LoRA": lambda task: LoraConfig(task_type=task, r=2),
}
models = {
    "SEQ_CLS": lambda: BertForSequenceClassification(BERT),
    "TOKEN_CLS": lambda: BertForTokenClassification(BERT),
    "CAUSAL_LM": lambda: GPT2LMHeadModel(GPT2),
}
for task, make in models.items():
    for kind, config in kinds.items():
        result = disabled(make, config(task))
        print(f"{task} {kind}: {result}")
        assert result == ("UnboundLocalError" if task != "CAUSAL_LM" and kind != "LoRA" else True), "changed"
print("still so: prompt-learned classifiers cannot be switched off")
EOF
HF_HUB_OFFLINE=1 "$dir/venv/bin/python" "$dir/check.py"
