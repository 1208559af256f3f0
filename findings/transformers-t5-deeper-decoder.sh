#!/usr/bin/env bash
# transformers 5.23.0: a T5 whose decoder has more blocks than its encoder cannot generate: `generate` raises
# "IndexError: list index out of range".
#
# The cache that `generate` makes has as many layers as `num_hidden_layers`, which for T5 is `num_layers`, the encoder's.
# The decoder has `num_decoder_layers`. With a shallower decoder it works, some layers of the cache stay empty; with
# `use_cache=False` a deeper one works as well, so the weights are not to blame.
#
# Affected: T5, mT5, ByT5 with `num_decoder_layers` above `num_layers` (models with a shallow encoder and a deep decoder).
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q torch transformers==5.23.0
cat > "$dir/check.py" <<'EOF'
from importlib.metadata import version

import torch
from transformers import T5Config, T5ForConditionalGeneration

print({name: version(name) for name in ("torch", "transformers")})
ids = torch.tensor([[5, 6, 7, 1]])


def generate(encoder, decoder, **more):
    torch.manual_seed(0)
    config = T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_heads=2, num_layers=encoder,
                      num_decoder_layers=decoder, decoder_start_token_id=0)
    model = T5ForConditionalGeneration(config).eval()
    try:
        return tuple(model.generate(input_ids=ids, max_new_tokens=4, do_sample=False, eos_token_id=None, **more).shape)
    except IndexError as error:
        return f"IndexError: {error}"


for encoder, decoder, more in ((2, 2, {}), (3, 2, {}), (2, 3, {}), (2, 3, {"use_cache": False})):
    print(encoder, "blocks in the encoder,", decoder, "in the decoder", more, generate(encoder, decoder, **more))
assert generate(2, 2) == generate(3, 2) == generate(2, 3, use_cache=False) == (1, 5)
assert generate(2, 3) == "IndexError: list index out of range", "changed"
print("still so: a decoder that is deeper than the encoder cannot generate with a cache")
EOF
HF_HUB_OFFLINE=1 "$dir/venv/bin/python" "$dir/check.py"
