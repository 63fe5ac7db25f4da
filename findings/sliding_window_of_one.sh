#!/usr/bin/env bash
# A sliding window of one token attends to everything as soon as the model decodes with its cache.
#
# Versions: transformers 5.23.0, torch 2.13.0, Python 3.11, CPU.
#
# What happens: the cache of a windowed layer keeps the last W - 1 tokens (the token at hand is the W-th), by a slice that
# begins at -(W - 1). For W = 1 that is -0, the beginning: nothing is ever dropped. The cache grows without end, and a step of
# one token attends to all that came before, although the same model without a cache attends to the token alone. The logits
# are silently other ones. Every other width is right. (The docstring promises min(length, W) tokens; W - 1 are kept.)
#
# What one would expect: a layer that sees one token, keeps none, and gives the same logits with and without a cache.
#
# Whom it hurts: whoever searches over window widths down to the smallest, or uses W = 1 as the attention-free end of a scale:
# the quality measured on whole texts is not that of the model that is served, and its memory does not shrink at all.
#
# Seen on 2026-12-01:
#   transformers 5.23.0, torch 2.13.0
#   window 1: 20 of 20 tokens kept; one token at a time, logits off by 8.530
#   window 2:  1 of 20 tokens kept; one token at a time, logits off by 0.000
#   window 4:  3 of 20 tokens kept; one token at a time, logits off by 0.000
#   as recorded
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    torch==2.13.0 transformers==5.23.0 tokenizers==0.23.3 safetensors==0.8.0 numpy==2.4.6
cd "$folder"
HF_HOME="$folder/hf" HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
import transformers
from transformers import DynamicCache, MistralConfig, MistralForCausalLM

print(f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}")


@torch.no_grad()
def look(window: int) -> tuple[int, float]:
    """Tokens in the cache after 20, and how far decoding one by one is from reading the text at once."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.3, sliding_window=window,
    )
    model = MistralForCausalLM(config).eval()
    text = torch.randint(3, 97, (1, 20))
    at_once = model(text, use_cache=False).logits
    cache = DynamicCache(config=config)
    one_by_one = torch.cat([model(text[:, t : t + 1], past_key_values=cache).logits for t in range(20)], dim=1)
    return cache.layers[0].keys.shape[-2], (one_by_one - at_once).abs().max().item()


recorded = True
for window in (1, 2, 4):
    kept, difference = look(window)
    print(f"window {window}: {kept:2} of 20 tokens kept; one token at a time, logits off by {difference:.3f}")
    right = kept == window - 1 and difference < 1e-3
    everything = kept == 20 and difference > 0.5
    recorded = recorded and (everything if window == 1 else right)
print("as recorded" if recorded else "the behaviour has changed")
sys.exit(not recorded)
PYTHON
