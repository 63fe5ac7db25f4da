#!/usr/bin/env bash
# Gradient checkpointing left on makes generate() write other text, not only slower text.
#
# Versions: transformers 5.23.0, torch 2.13.0, Python 3.11, CPU.
#
# What happens: where checkpointing is enabled and the decoder layers are in training mode, every layer throws the key-value
# cache away; none or an empty one comes back. generate() goes on feeding one token a step, so each step sees that token alone,
# and the "greedy" text is wrong from its second token. It happens with model.train(), and just as well where
# model.training is False and only the layers are in training mode. A log line, once, says that the cache is
# switched off; it does not say that the answer is another.
#
# What one would expect: as the log line reads ("Setting `use_cache=False`"): the same text, without a cache, slower. Or an
# error.
#
# Whom it hurts: whoever samples from a student while it trains (on-policy distillation, a look at the text every n steps),
# and whoever times decoding after training: the speed is that of a model without a context.
#
# Seen on 2026-12-01:
#   transformers 5.23.0, torch 2.13.0
#   all in evaluation mode    kept of 20 prompt tokens: 20   greedy text equals recomputation: True
#   model.train()             kept of 20 prompt tokens:  0   greedy text equals recomputation: False
#   only the layers train     kept of 20 prompt tokens:  0   greedy text equals recomputation: False
#   as recorded
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    torch==2.13.0 transformers==5.23.0 tokenizers==0.23.3 safetensors==0.8.0 numpy==2.4.6
cd "$folder"
HF_HOME="$folder/hf" HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -W ignore::FutureWarning - <<'PYTHON'
import sys

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

print(f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}")
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, initializer_range=0.3,
)
model = LlamaForCausalLM(config)  # no dropout in it: training mode changes no number
model.gradient_checkpointing_enable()
prompt = torch.randint(3, 97, (1, 20))


@torch.no_grad()
def look() -> tuple[int, bool]:
    """How many prompt tokens the cache keeps, and whether generate() is greedy decoding."""
    cache = model(prompt, use_cache=True).past_key_values
    kept = cache.get_seq_length() if cache is not None else 0
    text = model.generate(prompt, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
    recomputed = prompt
    for _ in range(12):
        following = model(recomputed, use_cache=False).logits[:, -1:].argmax(-1)
        recomputed = torch.cat([recomputed, following], dim=1)
    return kept, torch.equal(text, recomputed)


def only_the_layers_train() -> None:
    model.eval()
    model.model.layers.train()


modes = {
    "all in evaluation mode": model.eval, "model.train()": model.train, "only the layers train": only_the_layers_train,
}
seen = []
for name, enter in modes.items():
    enter()
    seen.append(look())
    print(f"{name:24}  kept of 20 prompt tokens: {seen[-1][0]:2}   greedy text equals recomputation: {seen[-1][1]}")
recorded = seen == [(20, True), (0, False), (0, False)]
print("as recorded" if recorded else "the behaviour has changed")
sys.exit(not recorded)
PYTHON
