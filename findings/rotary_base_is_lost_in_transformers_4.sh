#!/usr/bin/env bash
# A model saved by transformers 5 loads in transformers 4 without a word, and computes with another rotary base.
#
# Versions: written by transformers 5.23.0, read by 4.57.1; torch 2.13.0, Python 3.11, CPU.
#
# What happens: version 5 writes the rotary settings as `rope_parameters` and no longer as `rope_theta`. Version 4.57 does not
# know that field, takes its default of 10,000, reports no missing and no unexpected weight, logs nothing, and computes other
# logits. With `rope_theta` written beside `rope_parameters` the two versions agree.
#
# What one would expect: the same logits, or a refusal: config.json holds the version that wrote it.
#
# Whom it hurts: whoever prunes or fine-tunes with version 5 and hands the folder to an engine, a harness or a colleague on
# version 4. Models with another base than the default are hit; Llama 3, for one, has 500,000.
#
# Seen on 2026-12-01:
#   written by transformers 5.23.0: rope_parameters {'rope_theta': 500000.0, 'rope_type': 'default'}, rope_theta absent
#   read by transformers 4.57.1, as saved: base 10000.0, no complaint, logits off by 8.841
#   read by transformers 4.57.1, with rope_theta added: base 500000.0, no complaint, logits off by 0.000
#   as recorded
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for version in 5.23.0 4.57.1; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/python" -m pip install --quiet --disable-pip-version-check \
        torch==2.13.0 "transformers==$version" safetensors==0.8.0 numpy==2.4.6
done
cd "$folder"
export HF_HOME="$folder/hf" HF_HUB_OFFLINE=1 HF_HUB_DISABLE_PROGRESS_BARS=1 TQDM_DISABLE=1
"$folder/5.23.0/bin/python" - <<'PYTHON'
import json
import shutil
from pathlib import Path

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, initializer_range=0.3, rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
)
model = LlamaForCausalLM(config).eval()
model.save_pretrained("as_saved")
with torch.no_grad():
    torch.save(model(torch.arange(3, 67)[None]).logits, "logits.pt")
saved = json.loads(Path("as_saved/config.json").read_text())
print(
    f"written by transformers {transformers.__version__}: rope_parameters {saved['rope_parameters']}, "
    f"rope_theta {saved.get('rope_theta', 'absent')}"
)
shutil.copytree("as_saved", "with_rope_theta")
Path("with_rope_theta/config.json").write_text(json.dumps(saved | {"rope_theta": 500_000.0}))
PYTHON
"$folder/4.57.1/bin/python" - <<'PYTHON'
import sys

import torch
import transformers
from transformers import AutoModelForCausalLM

recorded = True
for name in ("as_saved", "with_rope_theta"):
    model, report = AutoModelForCausalLM.from_pretrained(name, output_loading_info=True)
    with torch.no_grad():
        logits = model.eval()(torch.arange(3, 67)[None]).logits
    difference = (logits - torch.load("logits.pt")).abs().max().item()
    words = "as saved" if name == "as_saved" else "with rope_theta added"
    print(
        f"read by transformers {transformers.__version__}, {words}: base {model.config.rope_theta}, "
        f"{'a complaint' if any(report.values()) else 'no complaint'}, logits off by {difference:.3f}"
    )
    expected = difference > 0.5 if name == "as_saved" else difference < 1e-3
    recorded = recorded and expected and not any(report.values())
print("as recorded" if recorded else "the behaviour has changed")
sys.exit(not recorded)
PYTHON
