#!/usr/bin/env bash
# PEFT 0.21.2: prefix tuning of an encoder-decoder model with an even number of decoder blocks trains only
# half of its prefix, and two blocks share each part of that half.
#
# PrefixTuningConfig(task_type="SEQ_2_SEQ_LM") stores a key and a value prefix for every decoder block, and
# `print_trainable_parameters` counts them all. `PeftModel.get_prompt` lays two copies of the list one behind
# the other, then cuts it into pieces of four (self-attention key and value, cross-attention key and value).
# The cross-attention part is thrown away, since the prefix of cross-attention is no longer used. What is left
# for self-attention of block i is stored block (2 i mod n). For an even n that is only the even stored blocks,
# each dealt twice; the odd ones reach no block and get a gradient of exactly zero. For an odd n every stored
# block is used once, in another order.
#
# Affected: every user of prefix tuning with T5 (6, 12 or 24 blocks), BART (6 or 12) and the like; also whoever
# reads such an adapter with other code, since `prompt_embeddings` alone does not say which rows act where.
# Since 0.14.0, by the source: before, cross-attention used the other half.
# Expected: one prefix per block, as the paper (arXiv 2101.00190) and the size of the stored table say.
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
from peft import PrefixTuningConfig, get_peft_model
from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration

print("torch", torch.__version__, "transformers", transformers.__version__, "peft", peft.__version__)


def t5(blocks):
    return T5ForConditionalGeneration(T5Config(
        vocab_size=50, d_model=16, d_kv=8, num_heads=2, d_ff=32, num_layers=blocks,
        num_decoder_layers=blocks, decoder_start_token_id=0))


def bart(blocks):
    return BartForConditionalGeneration(BartConfig(
        vocab_size=50, d_model=16, encoder_layers=blocks, decoder_layers=blocks, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=64))


def dealt(make, blocks):
    """For each decoder block the stored block it gets, and the stored blocks without any gradient."""
    torch.manual_seed(0)
    model = get_peft_model(make(blocks), PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=4)).eval()
    table = model.prompt_encoder["default"].embedding.weight
    stored = table.detach().view(4, blocks, 2, 2, 8)  # token, block, key or value, head, size
    given = [layer.keys[0] for layer in model.get_prompt(batch_size=1).self_attention_cache.layers]
    order = [next(b for b in range(blocks) if torch.equal(keys, stored[:, b, 0].transpose(0, 1))) for keys in given]
    tokens = torch.arange(2, 8)[None]
    model(input_ids=tokens, labels=tokens).loss.backward()
    gradient = table.grad.view(4, blocks, -1).abs().amax(dim=(0, 2))
    return order, [b for b in range(blocks) if gradient[b] == 0]


seen = {}
for make in (t5, bart):
    for blocks in (2, 3, 4, 6):
        seen[make.__name__, blocks] = dealt(make, blocks)
        order, idle = seen[make.__name__, blocks]
        print(f"{make.__name__} with {blocks} decoder blocks: block i gets stored prefix {order}, without gradient: {idle}")
for name in ("t5", "bart"):
    assert seen[name, 2] == ([0, 0], [1]), "changed"
    assert seen[name, 3] == ([0, 2, 1], []), "changed"
    assert seen[name, 4] == ([0, 2, 0, 2], [1, 3]), "changed"
    assert seen[name, 6] == ([0, 2, 4, 0, 2, 4], [1, 3, 5]), "changed"
print("still so: half of the prefix of an even number of blocks is never used")
EOF
HF_HUB_OFFLINE=1 "$dir/venv/bin/python" "$dir/check.py"
