#!/usr/bin/env bash
# PEFT 0.21.2: LoRA on the embedding with `ensure_weight_tying=True` is merged twice. The merged embedding is the base
# plus exactly two times the update.
#
# In a model with tied embeddings one table is read by the embedding and by the output layer. With the option, LoRA on
# "embed_tokens" (or "lm_head", or both) puts one shared update on both, and the trained model acts as one table plus that
# update. `merge_and_unload` and `merge_adapter` go over the layers and add the update for each of them, to the same
# table. `safe_merge=True` does the same. Saving and loading the adapter is right, and so is `unmerge_adapter`.
#
# Affected: LoRA on the embedding of small models (Gemma, Qwen up to 4B, Llama 3.2 1B and 3B are tied), which PEFT's warning
# leads to: without the option it tells of "complications, for example when merging the adapter", and the documentation says
# to pass it "if you want to fine-tune weights that are tied and want to keep them tied". With the option merging still
# warns of "complications" of tied embeddings in general, as for every adapter on them. Since 0.19. Expected: the update
# once. `modules_to_save` with the option is right.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q torch==2.15.0 transformers==5.23.0 peft==0.21.2
cat > "$dir/check.py" <<'EOF2'
import sys
import warnings

import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

print("torch", torch.__version__, "transformers", transformers.__version__, "peft", peft.__version__)
ids = torch.tensor([[5, 9, 33, 12, 40, 7], [1, 2, 3, 4, 5, 6]])


def base():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.2, tie_word_embeddings=True))


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


def off(model, want):
    return (logits(model) - want).abs().max().item()


def tune(**targets):
    model = get_peft_model(base(), LoraConfig(task_type="CAUSAL_LM", r=4, ensure_weight_tying=True, **targets))
    torch.manual_seed(1)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=0.01)
    for _ in range(10):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


table = base().get_input_embeddings().weight.detach()
for targets in (["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]):
    with warnings.catch_warnings(record=True):
        model = tune(target_modules=targets)
        want = logits(model)
        update = model.get_input_embeddings().get_delta_weight("default").detach()
        by_hand = base()
        by_hand.get_input_embeddings().weight.data += update
        folder = f"{sys.argv[1]}/{'_'.join(targets)}"
        model.save_pretrained(folder)
        loaded = PeftModel.from_pretrained(base(), folder)
        again = off(loaded, want)
        loaded.merge_adapter()
        merged_adapter = off(loaded, want)
        loaded.unmerge_adapter()
        unmerged = off(loaded, want)
        merged = model.merge_and_unload(safe_merge=True)
        merged.save_pretrained(f"{folder}_merged")
        saved = AutoModelForCausalLM.from_pretrained(f"{folder}_merged")
    times = {name: round((((one.get_input_embeddings().weight - table) * update).sum() / update.square().sum()).item(), 3)
             for name, one in {"merged": merged, "merged and saved": saved}.items()}
    print(f"{targets}: the whole effect is {off(base(), want):.2g}; the table with the update once, by hand: "
          f"{off(by_hand, want):.1e}; adapter loaded: {again:.1e}; merge_adapter: {merged_adapter:.2g}; unmerge_adapter: "
          f"{unmerged:.1e}; merge_and_unload: {off(merged, want):.2g}; times that the update is in the table: {times}")
    assert max(off(by_hand, want), again, unmerged) < 1e-4
    assert merged_adapter > 0.5 and off(merged, want) > 0.5 and set(times.values()) == {2.0}, "changed"

with warnings.catch_warnings(record=True):
    model = tune(modules_to_save=["embed_tokens"], target_modules=["q_proj"])
    want = logits(model)
    merged = off(model.merge_and_unload(), want)
print(f"modules_to_save: merge_and_unload is off by {merged:.1e}")
assert merged < 1e-4
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    get_peft_model(base(), LoraConfig(task_type="CAUSAL_LM", target_modules=["embed_tokens"]))
print("without the option:", next(str(one.message) for one in told if "ensure_weight_tying" in str(one.message)))
print("still so: a tied update is merged twice")
EOF2
HF_HUB_OFFLINE=1 "$dir/venv/bin/python" "$dir/check.py" "$dir" 2> "$dir/log" || { tail -5 "$dir/log"; exit 1; }
