#!/usr/bin/env bash
# PEFT 0.21.2: a Lily adapter that is added or loaded beside another one does not share its matrices. It is another kind
# of model, its file is of the same form, and loaded alone that file gives other outputs.
#
# Lily's point is that all blocks share the experts B, and neighbours the matrix A. PEFT makes own matrices for every block
# and ties them afterwards, in `_post_injection_hook`. That hook is called where a model gets its first adapter. For
# `add_adapter` and `load_adapter` only the hook before the injection is called, so the second adapter keeps one A and one
# B per block.
# - The second adapter trains more weights than the first one of the same configuration.
# - Its file has a value for every block. Loaded as a first adapter, all blocks get the same matrix, the last one read:
#   another model, without a word.
# - The other way round nothing is lost, but what was shared is no longer so when training goes on.
#
# Affected: several Lily adapters on one base, a continued training of a loaded second adapter, comparisons of parameter
# counts. Since 0.19, which brought the method. Expected: the same sharing for every adapter, or an error. The
# documentation of the method lists no limit to one adapter.
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
from peft import LilyConfig, LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

print("torch", torch.__version__, "transformers", transformers.__version__, "peft", peft.__version__)
ids = torch.tensor([[5, 9, 33, 12, 40, 7]])


def base():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.2)).eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=ids).logits


def off(a, b):
    return (a - b).abs().max().item()


def check(name, config):
    """Trains two adapters of one configuration a little and loads the file of each alone."""
    model = get_peft_model(base(), config(), adapter_name="first")
    model.add_adapter("second", config())
    want = {}
    for number, adapter in enumerate(["first", "second"]):
        model.set_adapter(adapter)
        model.train()
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        torch.manual_seed(2)
        optimizer = torch.optim.SGD(trained, lr=0.5)
        for _ in range(30):
            model(input_ids=ids, labels=ids).loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1)
            optimizer.step()
            optimizer.zero_grad()
        model.eval()
        want[adapter] = logits(model)
        print(f"{name}, {adapter} adapter: {sum(weight.numel() for weight in trained)} trained weights")
        yield sum(weight.numel() for weight in trained)
    model.save_pretrained(sys.argv[1] + "/" + name)
    for adapter in ["first", "second"]:
        alone = PeftModel.from_pretrained(base(), f"{sys.argv[1]}/{name}/{adapter}").eval()
        found, effect = off(logits(alone), want[adapter]), off(logits(base()), want[adapter])
        print(f"{name}, {adapter} adapter: loaded alone it is off by {found:.2g} (its whole effect: {effect:.2g})")
        yield found


kinds = {
    "Lily": lambda: LilyConfig(task_type="CAUSAL_LM", r=4, stride_A=2, target_modules=["q_proj", "v_proj"]),
    "LoRA": lambda: LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"]),
}
for name, config in kinds.items():
    count_first, count_second, off_first, off_second = check(name, config)
    assert off_first < 1e-4
    if name == "Lily":
        assert count_second > 1.5 * count_first and off_second > 0.1, "changed"
    else:
        assert count_second == count_first and off_second < 1e-4
print("still so: the second Lily adapter shares nothing")
EOF2
HF_HUB_OFFLINE=1 "$dir/venv/bin/python" "$dir/check.py" "$dir"
