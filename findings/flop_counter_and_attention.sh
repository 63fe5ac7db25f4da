#!/usr/bin/env bash
# PyTorch's FLOP counter: a causal or windowed mask costs as much as none, and on the CPU fused attention costs nothing.
#
# Versions: torch 2.13.0, Python 3.11, CPU.
#
# What happens: FlopCounterMode counts 4 * heads * T * T * width for scaled_dot_product_attention, also with is_causal=True
# (half of the pairs are never needed) and with a mask of a narrow window. The kernel that the CPU takes by default is not in
# its table at all: the same call counts 0. The device alone decides between twice too much and nothing.
#
# What one would expect: one number for one computation on every device; with is_causal, which is an argument and not data, the
# pairs that a query sees: T * (T + 1) / 2.
#
# Whom it hurts: whoever compares models by counted FLOPs. On a CPU, pruning heads seems to save only their projections; on any
# other device sliding windows seem to save nothing; and counts from the two cannot stand in one table.
#
# The zero is known: pytorch/pytorch #195460.
#
# Seen on 2026-12-01 (T = 128, 2 heads of width 16; needed: what the visible pairs take):
#   torch 2.13.0
#   no mask    needed 2097152   counted on cpu 0   on meta 2097152
#   causal     needed 1056768   counted on cpu 0   on meta 2097152
#   window 8   needed  127488   counted on cpu 0   on meta 2097152
#   as recorded
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

HEADS, TOKENS, WIDTH, WINDOW = 2, 128, 16, 8
causal = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()
window = causal.triu(1 - WINDOW)


def counted(device: str, mask: torch.Tensor | None, is_causal: bool) -> int:
    query = torch.randn(1, HEADS, TOKENS, WIDTH, device=device)
    mask = None if mask is None else mask.to(device)
    with FlopCounterMode(display=False) as counter:
        scaled_dot_product_attention(query, query, query, attn_mask=mask, is_causal=is_causal)
    return counter.get_total_flops()


print(f"torch {torch.__version__.split('+')[0]}")
full = 4 * HEADS * TOKENS * TOKENS * WIDTH  # a multiplication and an addition, for the scores and for the values
recorded = True
cases = (
    ("no mask", TOKENS * TOKENS, None, False),
    ("causal", int(causal.sum()), None, True),
    (f"window {WINDOW}", int(window.sum()), window, False),
)
for name, pairs, mask, is_causal in cases:
    on_cpu, on_meta = counted("cpu", mask, is_causal), counted("meta", mask, is_causal)
    print(f"{name:9}  needed {4 * HEADS * pairs * WIDTH:7}   counted on cpu {on_cpu}   on meta {on_meta}")
    recorded = recorded and on_cpu == 0 and on_meta == full
print("as recorded" if recorded else "the behaviour has changed")
sys.exit(not recorded)
PYTHON
