"""What `deltarun` makes of templates and language-model heads, beside transformers.

    check_templates.py BACKBONE make                writes ./untied and ./gpt2, small and random
    check_templates.py BACKBONE CASE PREDICTED RUN  one case; RUN is what `deltarun` left

The tokens of each case are put together here by hand. Prints the largest difference; exits with 1 if it
is above 1e-4.
"""

import json
import math
import shutil
import sys

import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

backbone, case, *paths = sys.argv[1:]
tokenizer = PreTrainedTokenizerFast(tokenizer_file=f"{backbone}/tokenizer.json")
CLS, SEP, MASK = tokenizer.convert_tokens_to_ids(["[CLS]", "[SEP]", "[MASK]"])


def plain(text):
    return tokenizer.encode(text, add_special_tokens=False)


if case == "make":
    torch.manual_seed(3)
    config = BertConfig.from_pretrained(backbone)
    config.tie_word_embeddings = False
    untied = BertForMaskedLM(config)
    assert untied.cls.predictions.decoder.weight.data_ptr() != untied.get_input_embeddings().weight.data_ptr()
    torch.nn.init.normal_(untied.cls.predictions.decoder.bias)
    untied.save_pretrained("untied")
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=config.vocab_size, n_positions=64, n_embd=32, n_layer=2, n_head=4,
                                      bos_token_id=0, eos_token_id=0))
    gpt2.save_pretrained("gpt2")
    for name in ["untied", "gpt2"]:
        shutil.copy(f"{backbone}/tokenizer.json", name)
    sys.exit(0)

predicted, run = paths
rows = [json.loads(line) for line in open(predicted)]
hated, loved, dull = (plain(word)[0] for word in ["hated", "loved", "dull"])


def bert(directory, ids, types=None, soft=None):
    """Logits at the mask; `soft` rows stand behind the first token."""
    model = BertForMaskedLM.from_pretrained(directory).eval()
    assert soft is None or ids[0] == CLS
    embedded = model.get_input_embeddings()(torch.tensor([ids]))
    place = ids.index(MASK)
    types = types or [0] * len(ids)
    if soft is not None:
        embedded = torch.cat([embedded[:, :1], soft[None], embedded[:, 1:]], dim=1)
        place += len(soft)
        types = types[:1] + [0] * len(soft) + types[1:]
    with torch.no_grad():
        return model(inputs_embeds=embedded, token_type_ids=torch.tensor([types])).logits[0, place]


def gpt2():
    return GPT2LMHeadModel.from_pretrained("gpt2").eval()


def causal(ids):
    with torch.no_grad():
        return gpt2()(torch.tensor([ids])).logits[0, -1]


def expected(text):
    if case == "separators":
        ids = [CLS] + plain(text) + [SEP, MASK, SEP]
        return bert(backbone, ids)[[hated, loved]]
    if case == "segments":
        ids = [CLS] + plain(text) + [SEP] + plain("it is") + [MASK, SEP]
        types = [0] * (2 + len(plain(text))) + [1] * (len(plain("it is")) + 2)
        return bert(backbone, ids, types)[[hated, loved]]
    if case in ["soft", "bitfit", "untied", "mean", "interpolation"]:
        ids = [CLS] + plain(text + " so i") + [MASK] + plain("it .") + [SEP]
        if case == "soft":
            soft = load_file(f"{run}/delta.safetensors")["soft.embeddings.prompt"]
            return bert(backbone, ids, soft=soft)[[hated, loved]]
        logits = bert({"bitfit": "merged", "untied": "untied"}.get(case, backbone), ids)
        if case == "mean":
            return torch.stack([logits[plain("hated dull")].mean(), logits[loved]])
        if case == "interpolation":
            return 1 + 4 * torch.softmax(logits[[hated, loved]], 0)[1:]
        return logits[[hated, loved]]
    if case == "edits":
        ids = [CLS] + plain(text[:-1] + "?") + [MASK] + plain(", it is") + [SEP]
        return bert(backbone, ids)[[hated, loved]]
    if case == "causal":
        return causal([CLS] + plain(text + " so i"))[[hated, loved]]
    raise ValueError(case)


if case == "causal_lm":
    total, count = 0.0, 0
    for row in rows:
        ids = torch.tensor([tokenizer.encode(row["text"])])
        total += gpt2()(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    found = json.load(open(f"{run}/metrics.json"))["zero_shot"]["metrics"]["loss"]
    difference = abs(total / count - found)
    assert math.isfinite(found)
else:
    key = "value" if case == "interpolation" else "logits"
    difference = max(
        (expected(row["text"]) - torch.tensor(row[key])).abs().max().item() for row in rows
    )
print(f"{case}: differs by at most {difference:.2e}")
sys.exit(0 if difference < 1e-4 else 1)
