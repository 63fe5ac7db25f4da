"""What holds on a device, checked and measured there: exactness, memory running out, the LM head's memory.

    python -m benchmarks.accelerator --out FOLDER

Random Llamas, the product's own engine. Each claim is what the tests hold on a CPU, asked of the device that torch
finds; the report says what was expected and what was got, and nothing is left out where the two differ.
"""

import argparse
import gc
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.distillation import STUDENTS, TEACHERS, llama
from benchmarks.first_search import machine, versions
from search.distillation import DistillationRequest
from search.evaluation import LatencyRequest
from workers.compress.chunked import chunked_loss
from workers.compress.distill import Training
from workers.compress.head import Head, head_of
from workers.compress.latency import measure_latency
from workers.compress.losses import Objective, forward_kl
from workers.compress.memory import available_bytes
from workers.compress.targets import KeptTargets, LiveTargets, Targets

STEPS, BATCH, LENGTH = 50, 8, 256
NAME, STUDENT = "body of 25 M", "1/2"
MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A line of the report."""

    what: str
    expected: str
    got: str


class Subject:
    """A teacher on the device, what it says of some windows, and new students of it, always the same one."""

    def __init__(self, device: str, *, steps: int = STEPS) -> None:
        sizes, self.vocabulary = TEACHERS[NAME]
        self.device, self.steps, self.head_dim = device, steps, sizes[1] // sizes[3]
        teacher = llama(sizes, self.vocabulary, head_dim=self.head_dim, seed=0)
        self.teacher: PreTrainedModel = teacher.eval().requires_grad_(False).to(device)  # type: ignore[no-untyped-call]
        generator = torch.Generator().manual_seed(0)
        self.windows = torch.randint(self.vocabulary, (steps * BATCH, LENGTH), generator=generator).int()
        with torch.no_grad():
            parts = [
                self.teacher.base_model(input_ids=part.to(device), use_cache=False).last_hidden_state.cpu()
                for part in self.windows.split(BATCH)
            ]
        self.kept = KeptTargets(head_of(self.teacher), [torch.cat(parts)])

    def request(self, **settings: Any) -> DistillationRequest:
        """A rate at which something is learnt, over all windows."""
        batch_tokens = BATCH * LENGTH
        chosen: dict[str, Any] = {"learning_rate": 1e-3, "warmup_steps": 5, **settings}
        return DistillationRequest(tokens=self.steps * batch_tokens, batch_tokens=batch_tokens, **chosen)

    def training(self, request: DistillationRequest, *, targets: Targets | None = None) -> Training:
        """Of a new student."""
        student = llama(STUDENTS[NAME][STUDENT], self.vocabulary, head_dim=self.head_dim, seed=1)
        student.to(self.device)  # type: ignore[arg-type]
        student.eval()  # type: ignore[no-untyped-call]
        return Training(student, targets or self.kept, self.windows, request, seed=0)

    def run(self, request: DistillationRequest, *, targets: Targets | None = None) -> tuple[list[float], Training]:
        """Every step's loss."""
        training = self.training(request, targets=targets)
        return [training.advance(step + 1).train_loss for step in range(self.steps)], training


def _difference(one: Sequence[float], other: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def _same(one: Training, other: Training) -> str:
    """In words."""
    tensors, others = one.tensors(), other.tensors()
    far = {name: float((tensors[name] - others[name]).abs().max()) for name in tensors}
    apart = [name for name, distance in far.items() if not torch.equal(tensors[name], others[name])]
    if not apart:
        return "bit for bit the same"
    return f"{len(apart)} of {len(far)} tensors differ, by {max(far.values()):.2e} at most"


def kept_and_online(subject: Subject, precision: Any) -> Row:
    """The cache's promise."""
    request = subject.request(precision=precision)
    kept, _ = subject.run(request)
    online, _ = subject.run(request, targets=LiveTargets(subject.teacher, subject.windows))
    expected = "losses within 1e-6" if precision == "float32" else "within rounding"
    got = f"{_difference(kept, online):.2e} at most, of losses {kept[0]:.3f} to {kept[-1]:.3f}"
    return Row(what=f"teacher kept and on line, {subject.steps} steps, {precision}", expected=expected, got=got)


def resumed(subject: Subject, precision: Any) -> Row:
    """Stopped at four rungs, stored, and gone on with by other objects."""
    request = subject.request(precision=precision)
    _, whole = subject.run(request)
    tensors: dict[str, Tensor] = {}
    position = None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.safetensors"
        for rung in (1, 2, 3, 4):
            training = subject.training(request)
            if position is not None:
                training.restore(tensors, position)
            training.advance(subject.steps * rung // 4)
            save_file({name: tensor.contiguous() for name, tensor in training.tensors().items()}, path)
            tensors, position = load_file(path, device=subject.device), training.position
    return Row(
        what=f"stopped and resumed at four rungs, {precision}",
        expected="bit for bit an undisturbed run",
        got=_same(whole, training),
    )


def micro_batches(subject: Subject) -> Row:
    """Accumulated gradients."""
    whole, _ = subject.run(subject.request(precision="float32"))
    parts, _ = subject.run(subject.request(precision="float32", micro_batch_tokens=2 * LENGTH))
    return Row(
        what="micro batches of 2 windows of 8, float32", expected="rounding", got=f"{_difference(whole, parts):.2e}"
    )


def checkpointed(subject: Subject) -> Row:
    """Activations computed again."""
    _, one = subject.run(subject.request(precision="bfloat16"))
    _, other = subject.run(subject.request(precision="bfloat16", activation_checkpointing=True))
    return Row(what="activation checkpointing, bfloat16", expected="bit for bit the same", got=_same(one, other))


def compiled(subject: Subject) -> Row:
    """`torch.compile`."""
    plain, _ = subject.run(subject.request(precision="bfloat16"))
    other, _ = subject.run(subject.request(precision="bfloat16", compile=True))
    return Row(what="compiled, bfloat16", expected="rounding of bfloat16", got=f"{_difference(plain, other):.2e}")


def out_of_memory(subject: Subject) -> Row:
    """The device's memory is taken away until a whole batch does not fit."""
    request = subject.request(precision="float32")
    whole, _ = subject.run(request)
    gc.collect()
    torch.cuda.empty_cache()
    training = subject.training(request)
    torch.cuda.reset_peak_memory_stats()
    first = training.advance(1).train_loss
    needed = torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()
    training = subject.training(request)
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    # of what is reserved: some of it cannot be given back, and counts
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 0.6 * needed) / total)
    try:
        losses = [training.advance(step + 1).train_loss for step in range(subject.steps)]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    got = (
        f"{training.position.micro_batch_windows} of {BATCH} windows at a time, losses differ by "
        f"{_difference(whole, losses):.2e}; first loss {first:.4f}"
    )
    expected = "fewer windows at a time, the same losses within rounding"
    return Row(what="60 % of what a batch needs beyond the weights", expected=expected, got=got)


def exactness(device: str, *, steps: int) -> list[Row]:
    """All of the above."""
    subject, rows = Subject(device, steps=steps), []
    both = [(check, (precision,)) for check in (kept_and_online, resumed) for precision in ("float32", "bfloat16")]
    checks: list[tuple[Callable[..., Row], tuple[Any, ...]]] = [(micro_batches, ()), (checkpointed, ()), *both]
    if device == "cuda":
        checks = [(out_of_memory, ()), *checks, (compiled, ())]
    for check, arguments in checks:
        began = time.perf_counter()
        try:
            rows.append(check(subject, *arguments))
        except Exception as error:
            traceback.print_exc()
            rows.append(Row(what=f"{check.__name__}{arguments}", expected="no error", got=repr(error)[:300]))
        print(rows[-1], f"{time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)
    return rows


# --- the LM head ----------------------------------------------------------------------------------------------------


def head_work(tokens: int, vocabulary: int, width: int, device: str) -> Mapping[str, Callable[[], Any]]:
    """A loss through both heads and its gradients, in each way; hidden states and the teacher in bfloat16."""
    half = torch.bfloat16
    hidden = torch.randn(tokens, width, device=device, dtype=half).requires_grad_()
    weight = (torch.randn(vocabulary, width, device=device) / width**0.5).requires_grad_()
    taught = torch.randn(tokens, width, device=device, dtype=half)
    teacher = Head(weight_VH=(torch.randn(vocabulary, width, device=device) / width**0.5).to(half))
    student = Head(weight_VH=weight)

    def whole() -> Tensor:
        with torch.no_grad():
            target = teacher(taught)
        with torch.autocast(device, half):
            logits = student(hidden)
        return _with_gradients(forward_kl(logits, target))

    def chunked(max_bytes: int | None = None) -> Tensor:
        with torch.autocast(device, half):
            loss = chunked_loss(hidden, student, taught, teacher, Objective(), max_bytes=max_bytes)
        return _with_gradients(loss)

    def _with_gradients(loss: Tensor) -> Tensor:
        torch.autograd.grad(loss, (hidden, weight))
        return loss.detach()

    def step_by_step() -> Tensor:
        with patch("workers.compress.chunked.fused_forward_kl", lambda _: None):
            return chunked()

    ways: dict[str, Callable[[], Any]] = {
        "all logits": whole,
        "in chunks (the default: compiled)": chunked,
        "in chunks, not compiled": step_by_step,
        "in chunks of 256 MiB": lambda: chunked(256 * MIB),
        "in chunks of 2 GiB": lambda: chunked(2048 * MIB),
    }
    return ways


def head_table(tokens: int, vocabulary: int, width: int, device: str, *, repeats: int) -> list[str]:
    """Markdown."""
    rows = ["| way | ms | memory beyond both heads and the weight's gradient, MiB | loss |", "|---|---|---|---|"]
    for name, act in head_work(tokens, vocabulary, width, device).items():
        try:
            rows.append(f"| {name} | {_measured(act, vocabulary * width * 4, device, repeats=repeats)} |")
        except Exception as error:
            traceback.print_exc()
            rows.append(f"| {name} | {repr(error)[:200]} | | |")
    return rows


def _measured(act: Callable[[], Tensor], gradient: int, device: str, *, repeats: int) -> str:
    value = float(act())
    if device != "cuda":
        return f"– | – | {value:.6f}"
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before, seconds = torch.cuda.memory_allocated(), []
    for _ in range(repeats):
        began = time.perf_counter()
        act()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    beyond = torch.cuda.max_memory_allocated() - before - gradient
    spread = f"{1e3 * statistics.median(seconds):.1f} ({1e3 * min(seconds):.1f} to {1e3 * max(seconds):.1f})"
    return f"{spread} | {beyond / MIB:,.0f} | {value:.6f}"


def report(device: str, *, steps: int, shape: tuple[int, int, int], repeats: int) -> str:
    """Markdown."""
    head = head_table(*shape, device, repeats=repeats)
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    rows = exactness(device, steps=steps)
    speed = measure_latency(
        Subject(device, steps=1).teacher, LatencyRequest(batch_size=8, prompt_tokens=512, new_tokens=64, repeats=5)
    )
    name = torch.cuda.get_device_name() if device == "cuda" else "none, on the CPU"
    return "\n".join(
        [
            "# The engine on a device",
            "",
            f"- **Device**: {name}; {machine()}",
            f"- **Versions**: {versions()}",
            f"- **Free before a candidate**, as workers see it: {available_bytes(device) / 2**30:.1f} GiB",
            f"- **Subject**: {NAME}, student {STUDENT} of it; {steps} steps of {BATCH} x {LENGTH} tokens",
            "",
            "| what | expected | got |",
            "|---|---|---|",
            *(f"| {row.what} | {row.expected} | {row.got} |" for row in rows),
            "",
            "## A loss through the LM head, {:,} tokens x {:,} words x {:,} hidden channels, both models".format(
                *shape
            ),
            "",
            *head,
            "",
            "## Speed of the teacher as the leaderboard has it (8 prompts of 512 tokens, 64 new ones)",
            "",
            ", ".join(f"{key} {value:,.4g}" for key, value in speed.items()),
            "",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accelerator", description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--head", type=int, nargs=3, default=(8_192, 128_256, 4_096), help="tokens, words, channels")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, help="folder for accelerator.md; by default it is printed alone")
    chosen = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    text = report(device, steps=chosen.steps, shape=tuple(chosen.head), repeats=chosen.repeats)
    print(text)
    if chosen.out is not None:
        (chosen.out / "accelerator.md").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
