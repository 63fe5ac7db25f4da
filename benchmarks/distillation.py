"""What a candidate's brief distillation costs with the teacher's outputs kept, beside the naive loop.

    python -m benchmarks.distillation

Random Llamas, random tokens, float32, one thread; every loop trains the same student from the same weights on the same
batches, in turns in one process; medians of CPU seconds a step. The *naive loop* runs the teacher at every step and
takes `kl_div` of all logits. *Kept* reads the teacher's final norm's outputs from mapped files and goes through both
heads in chunks. Over K candidates the teacher's pass over the tokens is paid once, and the ratio is set beside what
arithmetic allows: (6 N_S + 2 N_T) / (6 N_S + 2 N_T / K + 2 N_head), parameters in matrix products counted.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax
from torch.nn.utils import clip_grad_norm_
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from benchmarks.first_search import REPORTS, machine, versions
from search.artifacts import FsspecArtifactStore
from search.distillation import DistillationRequest
from workers.compress.data import training_order
from workers.compress.distill import Training
from workers.compress.head import head_of
from workers.compress.targets import KeptTargets, keep

#: (layers, hidden, FFN, query heads, KV heads); with a teacher's, the vocabulary. Heads are as wide as the teacher's.
Sizes = tuple[int, int, int, int, int]
TEACHERS: Mapping[str, tuple[Sizes, int]] = {
    "stories260K": ((5, 64, 172, 8, 4), 512),
    "body of 25 M": ((8, 512, 1408, 8, 4), 4_096),
    "15 M, 32,000 words": ((6, 288, 768, 6, 6), 32_000),
}
STUDENTS: Mapping[str, Mapping[str, Sizes]] = {
    "stories260K": {"1/2": (4, 56, 84, 8, 4), "1/4": (3, 40, 64, 8, 4)},
    "body of 25 M": {"1/2": (8, 384, 896, 6, 3), "1/4": (6, 320, 704, 5, 5)},
    "15 M, 32,000 words": {"1/2": (6, 144, 576, 3, 3)},
}
CANDIDATES = (8, 32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A student of a teacher: CPU seconds a step, and the arithmetic's gain for each number of candidates."""

    teacher: str
    student: str
    naive: Sequence[float]
    kept: Sequence[float]
    #: The teacher's pass over a step's tokens, written to disk.
    keeping: float
    #: The largest difference between the two loops' losses.
    difference: float
    arithmetic: Mapping[int, float]

    def gain(self, candidates: int) -> float:
        """How many times as much the naive loop takes over so many candidates, the kept pass paid."""
        naive, kept = statistics.median(self.naive), statistics.median(self.kept)
        return naive / (kept + self.keeping / candidates)


def llama(sizes: Sizes, vocabulary: int, *, head_dim: int, seed: int) -> PreTrainedModel:
    """A random model, its embeddings tied."""
    layers, hidden, ffn, heads, groups = sizes
    torch.manual_seed(seed)
    config = LlamaConfig(
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=head_dim,
        vocab_size=vocabulary,
        tie_word_embeddings=True,
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        config, attn_implementation="sdpa"
    )
    return model


def products(model: PreTrainedModel) -> tuple[int, int]:
    """Parameters in matrix products, those of the head among them; and those of the head alone."""
    head = head_of(model).weight_VH.numel()
    body = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name)
    return body + head, head


def naive_losses(
    student: PreTrainedModel, teacher: PreTrainedModel, batches: Sequence[Tensor], request: DistillationRequest
) -> tuple[list[float], list[float]]:
    """The loop as one would write it first: losses, and CPU seconds of each step."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=request.peak, betas=(0.9, 0.95), weight_decay=0.0)
    losses, seconds = [], []
    for batch in batches:
        began = time.process_time()
        with torch.no_grad():
            target = teacher(input_ids=batch, use_cache=False).logits
        logits = student(input_ids=batch, use_cache=False).logits
        student_log, target_log = log_softmax(logits, -1), log_softmax(target, -1)
        loss = kl_div(student_log, target_log, reduction="sum", log_target=True) / batch.numel()
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(student.parameters(), request.max_grad_norm)
        optimizer.step()
        losses.append(loss.item())
        seconds.append(time.process_time() - began)
    return losses, seconds


def kept_losses(
    student: PreTrainedModel, targets: KeptTargets, windows: Tensor, request: DistillationRequest
) -> tuple[list[float], list[float]]:
    """The product's own loop."""
    losses, seconds = [], []
    training = Training(student, targets, windows, request, seed=0)
    for step in range(request.steps):
        began = time.process_time()
        losses.append(training.advance(step + 1).train_loss)
        seconds.append(time.process_time() - began)
    return losses, seconds


def measure(name: str, student_name: str, *, steps: int, batch: int, length: int) -> Row:
    """Both loops, from the same weights over the same batches."""
    sizes, vocabulary = TEACHERS[name]
    head_dim = sizes[1] // sizes[3]
    teacher = llama(sizes, vocabulary, head_dim=head_dim, seed=0).eval().requires_grad_(False)  # type: ignore[no-untyped-call]
    windows = torch.randint(vocabulary, (steps * batch, length), generator=torch.Generator().manual_seed(0)).int()
    tokens = steps * batch * length
    # a constant rate, so that the naive loop needs no schedule
    request = DistillationRequest(
        tokens=tokens,
        batch_tokens=batch * length,
        learning_rate=1e-3,
        warmup_steps=0,
        final_learning_rate_ratio=1.0,
    )

    def student() -> PreTrainedModel:
        return llama(STUDENTS[name][student_name], vocabulary, head_dim=head_dim, seed=1)

    with tempfile.TemporaryDirectory() as folder:
        artifacts = FsspecArtifactStore(folder, cache_dir=Path(folder) / "cache")
        began = time.process_time()
        digests = keep(teacher, windows, artifacts, batch_windows=batch, identity={})
        keeping = (time.process_time() - began) / steps
        targets = KeptTargets.load(digests, head_of(teacher), artifacts)
        order = training_order(len(windows), total=len(windows), seed=0)
        naive, naive_s = naive_losses(student(), teacher, [windows[b].long() for b in order.split(batch)], request)
        kept, kept_s = kept_losses(student(), targets, windows, request)
    (n_t, head), (n_s, _) = products(teacher), products(student())
    arithmetic = {k: (6 * n_s + 2 * n_t) / (6 * n_s + 2 * n_t / k + 2 * head) for k in CANDIDATES}
    difference = max(abs(one - other) for one, other in zip(naive, kept, strict=True))
    return Row(
        teacher=name,
        student=student_name,
        naive=naive_s[1:],
        kept=kept_s[1:],
        keeping=keeping,
        difference=difference,
        arithmetic=arithmetic,
    )


def report(rows: Sequence[Row], chosen: argparse.Namespace) -> str:
    """Markdown."""
    header = " | ".join(f"K = {k} | arithmetic | share" for k in CANDIDATES)
    lines = [
        "# Distillation with the teacher's outputs kept, beside the naive loop",
        "",
        f"- **Machine**: {machine()}; one thread",
        f"- **Versions**: {versions()}",
        f"- **Steps**: {chosen.steps} of {chosen.batch} x {chosen.length} tokens, the first not counted; float32; "
        "medians of CPU seconds; one run, one seed",
        "",
        f"| teacher | student | naive, s/step | kept, s/step | keeping, s/step | {header} | losses differ by |",
        "|---" * (6 + 3 * len(CANDIDATES)) + "|",
        *(
            f"| {row.teacher} | {row.student} | {_spread(row.naive)} | {_spread(row.kept)} | {row.keeping:.3f} | "
            f"{' | '.join(_ratios(row))} | {row.difference:.1e} |"
            for row in rows
        ),
        "",
    ]
    return "\n".join(lines)


def _ratios(row: Row) -> list[str]:
    cells = []
    for k in CANDIDATES:
        gain, possible = row.gain(k), row.arithmetic[k]
        cells += [f"{gain:.2f}", f"{possible:.2f}", f"{100 * gain / possible:.0f} %"]
    return cells


def _spread(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.3f} ({min(seconds):.3f} to {max(seconds):.3f})"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.distillation", description=__doc__)
    parser.add_argument("--teacher", action="append", choices=list(TEACHERS), help="one of several; default: all")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--machine-kind", default="cpu", help="for the report's name, e.g. cpu or h100")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    shape: dict[str, Any] = {"steps": chosen.steps, "batch": chosen.batch, "length": chosen.length}
    rows = []
    for name in chosen.teacher or TEACHERS:
        for student in STUDENTS[name]:
            rows.append(measure(name, student, **shape))
            print(rows[-1], file=sys.stderr, flush=True)
    text = report(rows, chosen)
    print(text)
    (REPORTS / f"{datetime.now(UTC):%Y-%m-%d}-distillation-{chosen.machine_kind}.md").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
