#!/usr/bin/env bash
# TRL 1.16.0: with a ChatML template, ORPOTrainer and CPOTrainer train on a second end token behind each answer.
#
# A ChatML template ends a turn with `<|im_end|>` and a line break. Both trainers append the tokenizer's end token unless the
# answer's last token is the end token; here it is the line break, so each answer becomes `... <|im_end|> \n <|im_end|>`.
# DPOTrainer, on the same rows with the same tokenizer, appends nothing to conversations.
#
# Affected: whoever trains ORPO, CPO or SimPO on conversations for a model of the ChatML kind (Qwen2.5, SmolLM2). The loss is a
# mean over the answer's tokens, and the last one is one that no generation reaches: on SmolLM2 it moved ORPO's loss by 0.02 and
# SimPO's by 0.09. Expected: the rows of DPOTrainer, or a look for the end token in the end of the turn.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q torch==2.15.0 transformers==5.23.0 peft==0.21.2 trl==1.16.0 datasets accelerate
cat > "$dir/check.py" <<'EOF'
import sys

import torch
import transformers
import trl
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

print("torch", torch.__version__, "transformers", transformers.__version__, "trl", trl.__version__)
words = ["<unk>", "<pad>", "<|im_start|>", "<|im_end|>", "\n", "user", "assistant", "why", "because", "no"]
own = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
own.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
tokenizer = PreTrainedTokenizerFast(tokenizer_object=own, eos_token="<|im_end|>", pad_token="<pad>", unk_token="<unk>",
                                    additional_special_tokens=["<|im_start|>", "\n"])
tokenizer.chat_template = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
model = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                                     num_key_value_heads=2, intermediate_size=32))
model.save_pretrained(sys.argv[1] + "/model")
tokenizer.save_pretrained(sys.argv[1] + "/model")
rows = Dataset.from_list([{
    "prompt": [{"role": "user", "content": "why"}],
    "chosen": [{"role": "assistant", "content": "because"}],
    "rejected": [{"role": "assistant", "content": "no"}],
}])


def answer(trainer_class, config_class):
    config = config_class(output_dir=sys.argv[1] + "/out", report_to=[], max_length=64, use_cpu=True)
    model = LlamaForCausalLM.from_pretrained(sys.argv[1] + "/model")
    trainer = trainer_class(model=model, args=config, train_dataset=rows, processing_class=tokenizer)
    row = trainer.train_dataset[0]
    ids = row["chosen_ids"] if "chosen_ids" in row else [i for i in row["chosen_labels"] if i != -100]
    found = tokenizer.convert_ids_to_tokens(ids)
    print(trainer_class.__name__, found)
    return found


once = ["because", "<|im_end|>", "\n"]
assert answer(DPOTrainer, DPOConfig) == once
assert answer(ORPOTrainer, ORPOConfig) == once + ["<|im_end|>"]
assert answer(CPOTrainer, CPOConfig) == once + ["<|im_end|>"]
EOF
"$dir/venv/bin/python" "$dir/check.py" "$dir" 2> "$dir/log" || { tail -5 "$dir/log"; exit 1; }
echo "as described"
