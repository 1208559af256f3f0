#!/usr/bin/env bash
# transformers 5.24.0 renames the models' argument `past_key_values` to `cache`. PEFT 0.21.2, which declares no
# upper bound on transformers, still passes prefixes under the old name:
# - `generate` of a prefix-tuned Llama gives the base model's tokens. The prefix is dropped; only a FutureWarning
#   tells that both names are set and the old one is ignored.
# - `generate` of a prefix-tuned GPT-2 gives a third result, neither with the prefix nor the base model's.
# - A prefix-tuned BERT classifier raises ValueError that the model has no past key values: PEFT looks for the
#   old name in the signature of `forward`.
# - A plain forward, so training and its loss, still uses the prefix (through the deprecated name).
# So a model can be trained well and evaluated on its loss, and then generates as if it was never trained.
#
# Affected: prefix tuning with PEFT up to 0.21.2 and transformers from 5.24.0. With transformers 5.23.0 all of
# it works. Expected: the prefix acts in `generate` as in `forward`, or an error.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q torch==2.15.0 transformers==5.23.0 peft==0.21.2
cat > "$dir/check.py" <<'EOF'
import json
import sys
import warnings

warnings.filterwarnings("ignore")
import peft
import torch
import transformers
from peft import PrefixTuningConfig, get_peft_model
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

print("torch", torch.__version__, "transformers", transformers.__version__, "peft", peft.__version__)
tokens = torch.arange(2, 8)[None]
mask = torch.ones_like(tokens)


def base(kind):
    torch.manual_seed(0)
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
            intermediate_size=32, pad_token_id=0, bos_token_id=1, eos_token_id=None)).eval()
    if kind == "gpt2":
        return GPT2LMHeadModel(GPT2Config(
            vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=64, pad_token_id=0, bos_token_id=1,
            eos_token_id=None)).eval()
    return BertForSequenceClassification(BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)).eval()


def tuned(kind, task):
    model = get_peft_model(base(kind), PrefixTuningConfig(task_type=task, num_virtual_tokens=4)).eval()
    torch.manual_seed(3)
    for parameter in model.prompt_encoder.parameters():
        parameter.data = 30 * torch.randn(parameter.shape)
    return model


def first_scores(model):
    """The logits that `generate` picks its first token from."""
    return model.generate(input_ids=tokens, attention_mask=mask, max_new_tokens=1, do_sample=False,
                          output_logits=True, return_dict_in_generate=True).logits[0]


seen = {}
with torch.no_grad():
    for kind in ("llama", "gpt2"):
        model = tuned(kind, "CAUSAL_LM")
        forward = model(input_ids=tokens, attention_mask=mask).logits[:, -1]
        plain = base(kind)(input_ids=tokens, attention_mask=mask).logits[:, -1]
        generated = first_scores(model)
        seen[kind] = {
            "forward has the prefix": not torch.allclose(forward, plain, atol=1e-4),
            "generate equals forward": torch.allclose(generated, forward, atol=1e-4),
            "generate equals the base model": torch.allclose(generated, plain, atol=1e-4),
        }
    try:
        tuned("bert", "SEQ_CLS")(input_ids=tokens, attention_mask=mask)
        seen["bert"] = "works"
    except ValueError as error:
        seen["bert"] = f"ValueError: {error}"
for kind, what in seen.items():
    print(" ", kind, what)
json.dump(seen, open(sys.argv[1], "w"))
EOF
export HF_HUB_OFFLINE=1
"$dir/venv/bin/python" "$dir/check.py" "$dir/before.json"
"$dir/venv/bin/pip" install -q transformers==5.24.0
"$dir/venv/bin/pip" check
"$dir/venv/bin/python" "$dir/check.py" "$dir/after.json"
"$dir/venv/bin/python" - "$dir/before.json" "$dir/after.json" <<'EOF'
import json
import sys

before, after = (json.load(open(path)) for path in sys.argv[1:])
right = {"forward has the prefix": True, "generate equals forward": True, "generate equals the base model": False}
assert before == {"llama": right, "gpt2": right, "bert": "works"}, "5.23.0 changed"
assert after["llama"] == {**right, "generate equals forward": False, "generate equals the base model": True}, "changed"
assert after["gpt2"] == {**right, "generate equals forward": False}, "changed"
assert after["bert"].startswith("ValueError"), "changed"
print("still so: with transformers 5.24.0 generate loses the prefix, and the classifier raises")
EOF
