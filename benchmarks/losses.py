"""What a distillation loss through the LM head costs: in chunks, against the logits of all tokens.

    python -m benchmarks.losses

Forward, backward, and both heads' matrix products; one CPU thread, random values, which speed does not see. In one
process and in turns, medians. Seconds are of the process's own CPU time.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

import torch

from benchmarks.first_search import REPORTS, machine, versions
from benchmarks.importance_pass import measure
from workers.compress.chunked import chunked_loss
from workers.compress.head import Head
from workers.compress.losses import Objective, forward_kl, jensen_shannon

#: Vocabulary, hidden channels of student and teacher, tokens of a step.
SHAPES = ((512, 56, 64, 2_048), (4_096, 384, 512, 2_048), (32_000, 288, 288, 1_024))

MIB = 2**20


def work(vocab_size: int, student_width: int, teacher_width: int, tokens: int) -> Mapping[str, Callable[[], object]]:
    """One training step's loss and its gradients, in each way."""
    hidden = torch.randn(tokens, student_width, requires_grad=True)
    weight = (torch.randn(vocab_size, student_width) / student_width**0.5).requires_grad_()
    student, teacher_hidden = Head(weight_VH=weight), torch.randn(tokens, teacher_width)
    teacher = Head(weight_VH=torch.randn(vocab_size, teacher_width) / teacher_width**0.5)

    def whole(loss: Callable[..., torch.Tensor]) -> None:
        with torch.no_grad():
            target = teacher(teacher_hidden)
        torch.autograd.grad(loss(student(hidden), target), (hidden, weight))

    def chunked(objective: Objective, max_bytes: int | None = None) -> None:
        loss = chunked_loss(hidden, student, teacher_hidden, teacher, objective, max_bytes=max_bytes)
        torch.autograd.grad(loss, (hidden, weight))

    return {
        "forward KL, all tokens' logits": lambda: whole(forward_kl),
        "forward KL, 16 MiB": lambda: chunked(Objective(), 16 * MIB),
        "forward KL, 64 MiB": lambda: chunked(Objective(), 64 * MIB),
        "forward KL, 256 MiB (the default)": lambda: chunked(Objective()),
        "forward KL, 768 MiB": lambda: chunked(Objective(), 768 * MIB),
        "Jensen-Shannon, all tokens' logits": lambda: whole(jensen_shannon),
        "Jensen-Shannon, 256 MiB": lambda: chunked(Objective(teacher_loss="jensen_shannon")),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.losses", description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--machine-kind", default="cpu", help="for the report's name, e.g. cpu or h100")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    columns = [measure(work(*shape), repeats=chosen.repeats) for shape in SHAPES]
    heads = [f"V {v:,}, H {h} of {k}, {n:,} tokens" for v, h, k, n in SHAPES]
    rows = [
        " | ".join([f"| {name}", *(f"{1e3 * statistics.median(column[name]):,.1f}" for column in columns)]) + " |"
        for name in columns[0]
    ]
    lines = [
        "# A distillation loss through the LM head: in chunks, and on all tokens' logits",
        "",
        f"- **Machine**: {machine()}; one thread, other work beside it",
        f"- **Versions**: {versions()}",
        f"- **Medians** of {chosen.repeats}, in turns, milliseconds of CPU time: both heads, loss, and both gradients",
        "",
        f"| | {' | '.join(heads)} |",
        "|---|" + "---|" * len(heads),
        *rows,
        "",
    ]
    text = "\n".join(lines)
    print(text)
    name = f"{datetime.now(UTC):%Y-%m-%d}-losses-{chosen.machine_kind}.md"
    (REPORTS / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
