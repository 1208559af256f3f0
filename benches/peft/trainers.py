"""Twenty steps of answers, DPO, ORPO and SimPO on 200 made pairs, deltarun beside TRL's own trainers.

    pip install torch transformers==5.23.0 peft==0.21.2 trl==1.16.0 accelerate datasets
    cargo build --release
    python benches/peft/trainers.py MODEL [--losses sft dpo orpo simpo] [--threads 2] [--deltarun target/release/deltarun]

MODEL is the directory of SmolLM2-135M-Instruct, or of another language model with its `<|im_start|>` and `<|im_end|>`. Both
train a LoRA of rank 8 on q and v in f32 with batches of 4. It ends with 1 if a loss or a margin differs by more than 1e-3 of
max(1, value).

What is made equal, and how:

- The first LoRA. A run of deltarun with one step at a rate of almost nothing leaves the LoRA that its seed draws, and TRL
  begins with that. B is 0, so the first loss says nothing about A, but the first norm of the gradients does: the step fails
  if they differ.
- The batches. deltarun draws the order of the rows from the seed, their number and the stage. A probe with the same three
  trains on the row's own number, one row a step, so that the losses tell the order; TRL reads the rows in this order.
- The text. TRL's trainers of ORPO and CPO put a further end token behind a text that ends with a line break, as that of
  SmolLM2's chat template does. So both programs read a template that ends with the end token.

`sft` learns the preferred answers alone: `instruct` beside TRL's trainer of prompts and completions. TRL has SimPO as a loss
of its trainer of CPO, with `cpo_alpha` 0. The trainers are used as they are.
"""

import argparse
import json
import math
import pathlib
import random
import subprocess
import sys
import tempfile

from side import ROOT

STEPS, BATCH, PAIRS, RATE, LIMIT = 20, 4, 200, 5e-4, 1e-3

PIPELINE = """pipeline {loss}
backbone "model" {{ max_length = 256, dropout = off }}
data {{ train = jsonl("pairs.jsonl") }}
task {task}
reparam low = lora {{ rank = 8, alpha = 16 }} on block.*.attn.{{q,v}}
stage tune {{ train = [low], steps = {steps}, batch = {batch}, optimizer = adamw {{ lr = {rate} }}, schedule = constant, clip = 1, keep = last }}
"""

PROBE = """pipeline probe
backbone "model" {{ max_length = 256, dropout = off }}
data {{ train = jsonl("pairs.jsonl") }}
task regress {{ text = prompt, label = number }}
stage tune {{ train = [head], steps = {steps}, batch = 1, optimizer = sgd {{ lr = 1e-12 }}, schedule = constant, keep = last }}
"""

TEMPLATE = """{% for message in messages %}{% if not loop.first %}
{% endif %}<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>{% endfor %}{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}"""

# The settings of deltarun and of TRL for each loss.
SETTINGS = {
    "sft": ("", {}),
    "dpo": (", beta = 0.1", {"beta": 0.1}),
    "orpo": (", beta = 0.1", {"beta": 0.1}),
    "simpo": (", beta = 2, gamma = 1", {"beta": 2.0, "simpo_gamma": 1.0, "loss_type": "simpo", "cpo_alpha": 0.0}),
}

# The names of deltarun's log and of TRL's.
NAMES = {"loss": "loss", "margin": "rewards/margins", "accuracy": "rewards/accuracies", "chosen": "rewards/chosen",
         "rejected": "rewards/rejected", "gradient_norm": "grad_norm"}

# The numbers of rows are this far apart in the probe: farther than what an untrained head can say.
APART = 1000

WORDS = ["garden", "river", "mountain", "letter", "window", "orange", "teacher", "silver", "bread", "holiday", "sea", "chair"]


def pair(draw):
    """A prompt with a better and a worse answer."""
    a, b = draw.sample(range(11, 100), 2)
    word, other = draw.sample(WORDS, 2)
    times = draw.randint(2, 6)
    wrong = draw.choice([f"It is {a + b + times}.", "I do not know.", "Numbers are nice, and there are many of them."])
    return draw.choice([
        (f"What is {a} plus {b}?", f"{a} plus {b} is {a + b}.", wrong),
        (f"Which is larger, {a} or {b}?", f"{max(a, b)}.", f"{min(a, b)} is larger, I believe, but I did not look."),
        (f"Write {word} and {other}, {times} times.", " ".join([f"{word} {other}"] * times) + ".", f"I like the word {other}."),
        (f"How many letters have {word} and {other}?", f"{word} has {len(word)} and {other} has {len(other)} letters.", f"{a}."),
    ])


def prepare(folder, model):
    """Writes the pairs, and the model's directory with another chat template."""
    draw = random.Random(33)
    pairs = {}
    while len(pairs) < PAIRS:
        prompt, chosen, rejected = pair(draw)
        pairs[prompt] = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    rows = [row | {"number": number * APART} for number, row in enumerate(pairs.values())]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "model").mkdir()
    for path in model.resolve().iterdir():
        if path.name != "chat_template.jinja":
            (folder / "model" / path.name).symlink_to(path)
    (folder / "model/chat_template.jinja").write_text(TEMPLATE)
    return rows


def run(folder, options, name, text):
    """The steps of a run of deltarun as its log has them."""
    (folder / f"{name}.delta").write_text(text)
    out = folder / "runs" / name
    command = [options.deltarun, folder / f"{name}.delta", "--out", out, "--threads", str(options.threads), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    return [line for line in lines if "lr" in line]


def ours(folder, options, loss, name, steps, rate):
    settings, _ = SETTINGS[loss]
    task = f"prefer {{ prompt = prompt, chosen = chosen, rejected = rejected, loss = {loss}{settings} }}"
    if loss == "sft":
        task = "instruct { prompt = prompt, answer = chosen }"
    return run(folder, options, name, PIPELINE.format(loss=loss, task=task, steps=steps, batch=BATCH, rate=rate))


def order(folder, options):
    """The numbers of the rows in the order in which a run's batches take them."""
    steps = run(folder, options, "probe", PROBE.format(steps=STEPS * BATCH))
    numbers = [round(math.sqrt(step["loss"]) / APART) for step in steps]
    assert len(set(numbers)) == STEPS * BATCH and max(numbers) < PAIRS, "the probe's losses are not those of rows"
    return numbers


def trainer_of(loss):
    """TRL's trainer and its settings."""
    if loss == "sft":
        from trl import SFTConfig, SFTTrainer
        return SFTTrainer, SFTConfig
    if loss == "dpo":
        from trl import DPOConfig, DPOTrainer
        return DPOTrainer, DPOConfig
    if loss == "orpo":
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer
        return ORPOTrainer, ORPOConfig
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    return CPOTrainer, CPOConfig


def theirs(folder, options, loss, rows):
    """The steps of TRL as its log has them."""
    import torch
    from datasets import Dataset
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
    torch.set_num_threads(options.threads)
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    model = PeftModel.from_pretrained(model, folder / "runs/start/peft", is_trainable=True)
    trainer, config = trainer_of(loss)
    arguments = config(
        output_dir=folder / "trl", per_device_train_batch_size=BATCH, max_steps=STEPS, learning_rate=RATE, max_length=256,
        lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=1.0, train_sampling_strategy="sequential", logging_steps=1,
        report_to=[], use_cpu=True, bf16=False, gradient_checkpointing=False, save_strategy="no", disable_tqdm=True,
        **SETTINGS[loss][1])
    turn = lambda role, text: [{"role": role, "content": text}]
    answers = {"completion": "chosen"} if loss == "sft" else {"chosen": "chosen", "rejected": "rejected"}
    rows = [{"prompt": turn("user", row["prompt"])} | {name: turn("assistant", row[own]) for name, own in answers.items()}
            for row in rows]
    trainer = trainer(model, args=arguments, train_dataset=Dataset.from_list(rows),
                      processing_class=AutoTokenizer.from_pretrained(folder / "model"))
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return [line for line in trainer.state.log_history if "loss" in line]


def compare(loss, mine, their):
    """Prints a row of the table; says whether both agree."""
    assert len(mine) == len(their) == STEPS
    far = lambda a, b: abs(a - b) / max(1, abs(b))
    differences = {name: [far(a[name], b[other]) for a, b in zip(mine, their)] for name, other in NAMES.items() if name in mine[0]}
    largest = " | ".join(f"{max(differences[name]):.1e}" if name in differences else "" for name in NAMES)
    spans = " | ".join(f"{mine[0][name]:.3f} to {mine[-1][name]:.3f}" for name in ("loss", "margin") if name in mine[0])
    print(f"| {loss} | {largest} | {spans} |", flush=True)
    return differences["gradient_norm"][0] <= LIMIT and max(differences["loss"] + differences.get("margin", [])) <= LIMIT


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--losses", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--deltarun", type=pathlib.Path, default=ROOT / "target/release/deltarun")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        rows = prepare(folder, options.model)
        taken = [rows[number] for number in order(folder, options)]
        ours(folder, options, "simpo", "start", 1, 1e-12)
        print(f"The largest differences of {STEPS} steps, relative to max(1, value), and deltarun's first and last:\n")
        print(f"| | {' | '.join(NAMES).replace('_', ' ')} | loss | margin |\n|---|{'---:|' * len(NAMES)}---|---|")
        agree = [compare(loss, ours(folder, options, loss, loss, STEPS, RATE), theirs(folder, options, loss, taken))
                 for loss in options.losses]
    sys.exit(not all(agree))


main()
