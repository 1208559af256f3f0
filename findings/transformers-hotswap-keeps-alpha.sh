#!/usr/bin/env bash
# transformers 5.24.0 with PEFT 0.21.2: `load_adapter(…, hotswap=True)` replaces the weights of a LoRA and keeps the scale
# of the old one. An adapter with another `lora_alpha` or `use_rslora` gives wrong outputs, and nothing says so.
#
# - The scale, lora_alpha / r, belongs to a layer and not to the file's tensors. transformers copies tensors only.
# - Modules that only the old adapter has keep the old adapter's weights: the result is a mix of two adapters, by a line
#   in the log's table.
# - `model.peft_config` still shows the old adapter's configuration.
# - `enable_peft_hotswap(target_rank=…)` stores its arguments and no code reads them: an adapter of another rank raises
#   RuntimeError about mismatched sizes.
# The documentation says the opposite: "If the new adapter and the old adapter have different ranks and/or LoRA alphas (i.e.
# scaling), you need to call an additional method", which is `enable_peft_hotswap`. It is called here. PEFT's own
# `hotswap_adapter` sets the scale, pads the ranks and refuses what it cannot do, but see peft-hotswap-patterns.sh.
#
# Affected: servers that swap adapters in place. Expected: the outputs of the adapter that was asked for, as with PEFT.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q torch==2.15.0 transformers==5.24.0 peft==0.21.2
cat > "$dir/check.py" <<'EOF2'
import sys
import warnings

warnings.filterwarnings("ignore")
import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

print("torch", torch.__version__, "transformers", transformers.__version__, "peft", peft.__version__)
ids = torch.tensor([[5, 9, 33, 12, 40, 7]])
folder = sys.argv[1]
torch.manual_seed(0)
LlamaForCausalLM(LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.2)).save_pretrained(f"{folder}/base")


def base():
    return AutoModelForCausalLM.from_pretrained(f"{folder}/base").eval()


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


settings = {
    "first": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    "same": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    "other alpha": {"r": 4, "lora_alpha": 32, "target_modules": ["q_proj", "v_proj"]},
    "rsLoRA": {"r": 4, "lora_alpha": 8, "use_rslora": True, "target_modules": ["q_proj", "v_proj"]},
    "fewer modules": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]},
    "other rank": {"r": 8, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
}
want = {}
for seed, (name, setting) in enumerate(settings.items()):
    model = get_peft_model(base(), LoraConfig(task_type="CAUSAL_LM", **setting))
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += 0.1 * torch.randn_like(weight)
    want[name] = logits(model)
    model.save_pretrained(f"{folder}/{name}")


def by_transformers(name):
    model = base()
    model.enable_peft_hotswap(target_rank=8)
    model.load_adapter(f"{folder}/first")
    assert (logits(model) - want["first"]).abs().max() < 1e-4
    model.load_adapter(f"{folder}/{name}", adapter_name="default", hotswap=True)
    return model, model.peft_config["default"].lora_alpha


def by_peft(name):
    model = PeftModel.from_pretrained(base(), f"{folder}/first")
    prepare_model_for_compiled_hotswap(model, target_rank=8)
    hotswap_adapter(model, f"{folder}/{name}", adapter_name="default")
    return model, None


for name in list(settings)[1:]:
    found = {}
    for way in (by_transformers, by_peft):
        try:
            model, alpha = way(name)
            found[way] = (logits(model) - want[name]).abs().max().item()
        except (RuntimeError, ValueError) as error:
            found[way] = type(error).__name__
    texts = [f"{way.__name__} {value if isinstance(value, str) else f'off by {value:.2g}'}" for way, value in found.items()]
    print(f"{name}: {', '.join(texts)}")
    if name == "same":
        assert max(found.values()) < 1e-4
    elif name == "other rank":
        assert found[by_transformers] == "RuntimeError" and found[by_peft] < 1e-4, "changed"
    else:
        assert found[by_transformers] > 0.1, "changed"
        assert found[by_peft] == "ValueError" or found[by_peft] < 1e-4
    if name == "other alpha":
        alpha = by_transformers(name)[1]
        print(f"    peft_config of the model says alpha {alpha}, the adapter's file {settings[name]['lora_alpha']}")
        assert alpha == 8, "changed"
print("still so: hotswapping by transformers keeps the old scale")
EOF2
HF_HUB_OFFLINE=1 "$dir/venv/bin/python" "$dir/check.py" "$dir" 2> "$dir/log" || { tail -5 "$dir/log"; exit 1; }
