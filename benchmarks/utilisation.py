"""How well a student's training steps use an accelerator: a 1 B-shaped student of an 8 B-shaped teacher.

    python -m benchmarks.utilisation --out FOLDER

Random weights, 128,256 words, windows of 4,096 tokens, bfloat16 matrix products over float32 weights: the engine that
searches use, on what it keeps of the teacher, and beside it the naive loop, whose teacher runs at every step and whose
`kl_div` sees all logits. *Model FLOPs utilisation* is the arithmetic of a step (three forward passes of the student,
one of the teacher's head; matrix products only, nothing computed again counted) over its time and the device's dense
bfloat16 peak; the naive loop is credited with what it is for, the same arithmetic. A profile says where the rest goes.

The same student is measured with deterministic algorithms, with activation checkpointing and compiled, and its memory
stands beside what `search.memory` estimates.

It needs torch, transformers and safetensors, and no other package of ours: where the machine has neither pydantic nor
structlog, what they would do here (nothing but to be imported) is stood in for. ``--size tiny`` tries it on a CPU.
"""

import argparse
import gc
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import kl_div, log_softmax
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel


def _stand_in(name: str, **members: Any) -> None:
    """A module that can be imported and is not used."""
    if find_spec(name) is None:
        module = ModuleType(name)
        vars(module).update(members)
        sys.modules[name] = module


_stand_in("structlog", get_logger=lambda *_: ModuleType("log"))
_stand_in("pydantic", Field=lambda **_: None, TypeAdapter=list)

from search.architecture import Architecture  # noqa: E402
from search.context import Context  # noqa: E402
from search.counting import flops_per_token, parameters  # noqa: E402
from search.distillation import DistillationRequest  # noqa: E402
from search.families import family_of  # noqa: E402
from search.memory import estimate_memory  # noqa: E402
from workers.compress.distill import Training  # noqa: E402
from workers.compress.head import head_of  # noqa: E402
from workers.compress.targets import KeptTargets  # noqa: E402

#: Dense bfloat16, FLOP/s, by a part of the device's name.
PEAKS: Mapping[str, float] = {"H100": 989e12, "H200": 989e12, "A100": 312e12}


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A student, its teacher, and a step."""

    student: Mapping[str, Any]
    teacher: Mapping[str, Any]
    vocab_size: int
    sequence_length: int
    windows: int


SIZES: Mapping[str, Size] = {
    "1B of 8B": Size(
        student={
            "num_hidden_layers": 16,
            "hidden_size": 2_048,
            "intermediate_size": 8_192,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 64,
        },
        teacher={
            "num_hidden_layers": 32,
            "hidden_size": 4_096,
            "intermediate_size": 14_336,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
        },
        vocab_size=128_256,
        sequence_length=4_096,
        windows=2,
    ),
    "tiny": Size(
        student={
            "num_hidden_layers": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
        },
        teacher={
            "num_hidden_layers": 4,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
        },
        vocab_size=512,
        sequence_length=64,
        windows=2,
    ),
}


def model_of(size: Size, axes: Mapping[str, Any], *, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """A random Llama with tied embeddings."""
    config = LlamaConfig(
        **axes, vocab_size=size.vocab_size, max_position_embeddings=size.sequence_length, tie_word_embeddings=True
    )
    with torch.device(device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=dtype, attn_implementation="sdpa"
        )
    model.eval()  # type: ignore[no-untyped-call]
    return model


def parsed(size: Size, axes: Mapping[str, Any]) -> Architecture:
    """The architecture of `model_of`."""
    config = {"model_type": "llama", "tie_word_embeddings": True, "vocab_size": size.vocab_size}
    return family_of(config).parse({**config, **axes, "max_position_embeddings": size.sequence_length})


def step_flops(size: Size) -> float:
    """The arithmetic of a step."""
    forward = flops_per_token(parsed(size, size.student), Context(sequence_length=size.sequence_length))
    teacher_head = 2 * size.vocab_size * size.teacher["hidden_size"]
    return float(size.windows * size.sequence_length * (3 * forward + teacher_head))


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A way to take a step."""

    name: str
    #: Of `DistillationRequest`.
    settings: Mapping[str, Any] = field(default_factory=dict)
    deterministic: bool = False
    naive: bool = False
    #: Windows that go through at a time; None: all of a step's.
    micro_batch_windows: int | None = None
    #: The only one that attention may use; None: as torch chooses.
    attention: SDPBackend | None = None


VARIANTS = (
    Variant(name="ours"),
    Variant(name="ours, deterministic algorithms", deterministic=True),
    Variant(name="ours, activation checkpointing", settings={"activation_checkpointing": True}),
    Variant(name="ours, FlashAttention 2", attention=SDPBackend.FLASH_ATTENTION),
    Variant(name="ours, compiled", settings={"compile": True}),
    Variant(name="ours, compiled, FlashAttention 2", settings={"compile": True}, attention=SDPBackend.FLASH_ATTENTION),
    Variant(name="naive", naive=True),
    Variant(name="naive, a window at a time", naive=True, micro_batch_windows=1),
)

PROFILED = ("ours", "ours, compiled")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Of a variant."""

    variant: Variant
    #: Of each timed step; none where it did not run: it does not fit, say.
    seconds: Sequence[float]
    #: The most that was allocated, bytes; None on a CPU.
    peak: int | None
    profile: str = ""


def timed(act: Callable[[], Any], *, steps: int, device: str) -> list[float]:
    """Seconds of each of so many calls, after three that are not timed."""
    found = []
    for _ in range(steps + 3):
        start = time.perf_counter()
        act()
        if device == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return found[3:]


def naive_step(
    student: PreTrainedModel, teacher: PreTrainedModel, optimizer: torch.optim.Optimizer, parts: Sequence[Tensor]
) -> None:
    """The teacher's forward pass, and `kl_div` of all logits in float32; gradients of the parts are summed."""
    optimizer.zero_grad(set_to_none=True)
    for batch_BT in parts:
        with torch.no_grad():
            wanted = log_softmax(teacher(input_ids=batch_BT).logits.flatten(0, 1).float(), dim=-1)
        with torch.autocast(batch_BT.device.type, torch.bfloat16):
            logits = student(input_ids=batch_BT).logits
        given = log_softmax(logits.flatten(0, 1).float(), dim=-1)
        del logits
        (kl_div(given, wanted, reduction="batchmean", log_target=True) / len(parts)).backward()
    torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    optimizer.step()


#: What a kernel is for, by a part of its name; the first that fits.
KINDS: Mapping[str, Sequence[str]] = {
    "matrix products": ("gemm", "nvjet", "cutlass", "cublas", "xmma", "aten::mm", "aten::addmm", "aten::bmm"),
    "attention": ("flash", "fmha", "attention", "cudnn"),
    "optimiser, gradient norm": ("multi_tensor", "foreach", "adam"),
    "softmax": ("softmax",),
    "compiled, fused": ("triton",),
    "copies between host and device": ("htod", "dtoh"),
    "copies and casts on the device": ("dtod", "copy", "memset", "fill"),
    "reductions": ("reduce",),
    "element by element": ("elementwise",),
}


def profiled(act: Callable[[], Any], *, device: str) -> str:
    """What one step spends the device's time on, by kinds of kernels and by the largest."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if device == "cuda" else []
    with torch.profiler.profile(activities=activities) as profile:
        act()
        if device == "cuda":
            torch.cuda.synchronize()
    averages = profile.key_averages()

    def milliseconds(event: Any) -> float:
        if device != "cuda":
            return float(event.self_cpu_time_total) / 1e3
        on_device = str(event.device_type).endswith("CUDA")
        return float(event.self_device_time_total) / 1e3 if on_device else 0.0

    kernels = sorted(((milliseconds(event), event.count, event.key) for event in averages), reverse=True)
    totals: dict[str, float] = {}
    for spent, _, name in kernels:
        if name.startswith("Optimizer."):  # a range around kernels that are there by themselves
            continue
        kind = next((kind for kind, parts in KINDS.items() if any(part in name.lower() for part in parts)), "other")
        totals[kind] = totals.get(kind, 0.0) + spent
    by_kind = sorted(totals.items(), key=lambda item: -item[1])
    rows = [f"| {kind} | {spent:.2f} |" for kind, spent in [("all", sum(totals.values())), *by_kind]]
    largest = [f"{spent:9.2f} ms  {count:5d} x  {name[:110]}" for spent, count, name in kernels[:25]]
    return "\n".join(["| kind | ms of the device |", "|---|---|", *rows, "", "```", *largest, "```"])


class Bench:
    """A student, its teacher and what was kept of it."""

    def __init__(self, size: Size, *, device: str) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (4 * size.windows, size.sequence_length)
        self.size, self.device = size, device
        self.windows = torch.randint(size.vocab_size, shape, generator=generator).int()
        self.teacher = model_of(size, size.teacher, dtype=torch.bfloat16, device=device)
        self.outputs = torch.randn(*shape, size.teacher["hidden_size"], generator=generator).to(torch.bfloat16)

    def measure(self, variant: Variant, *, steps: int, profile: bool) -> Outcome:
        """Its steps, from a new student."""
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        with ExitStack() as stack:
            if variant.attention is not None:
                stack.enter_context(sdpa_kernel(variant.attention))
            return self._measure(variant, steps=steps, profile=profile)

    def _measure(self, variant: Variant, *, steps: int, profile: bool) -> Outcome:
        before = torch.cuda.memory_allocated() if self.device == "cuda" else 0
        torch.use_deterministic_algorithms(variant.deterministic)
        try:
            student = model_of(self.size, self.size.student, dtype=torch.float32, device=self.device)
            act = self._naive(student, variant) if variant.naive else self._ours(student, variant)
            found = timed(act, steps=steps, device=self.device)
            peak = torch.cuda.max_memory_allocated() - before if self.device == "cuda" else None
            told = profiled(act, device=self.device) if profile else ""
        except Exception as error:  # one that does not fit or does not run does not take the others along
            print(f"{variant.name}: {error!r}"[:500], file=sys.stderr, flush=True)
            return Outcome(variant=variant, seconds=(), peak=None)
        finally:
            torch.use_deterministic_algorithms(False)
        return Outcome(variant=variant, seconds=found, peak=peak, profile=told)

    def _ours(self, student: PreTrainedModel, variant: Variant) -> Callable[[], Any]:
        settings = replace(request(self.size), **variant.settings)
        targets = KeptTargets(head_of(self.teacher), [self.outputs])
        training = Training(student, targets, self.windows, settings, seed=0)
        return lambda: training.advance(training.position.step + 1)

    def _naive(self, student: PreTrainedModel, variant: Variant) -> Callable[[], Any]:
        optimizer = torch.optim.AdamW(student.parameters(), lr=1e-6, fused=True)
        batch = self.windows[: self.size.windows].to(self.device)
        parts = batch.split(variant.micro_batch_windows or len(batch))
        return lambda: naive_step(student, self.teacher, optimizer, parts)


def request(size: Size) -> DistillationRequest:
    """A step of all windows, bfloat16 matrix products."""
    batch_tokens = size.windows * size.sequence_length
    return DistillationRequest(
        tokens=10_000 * batch_tokens, batch_tokens=batch_tokens, learning_rate=1e-6, precision="bfloat16"
    )


def estimated_peak(size: Size, variant: Variant, *, device: str) -> int:
    """What `search.memory` says of a step of ours, the teacher's part but its outputs left out; bytes."""
    student, teacher = (parsed(size, axes) for axes in (size.student, size.teacher))
    settings = replace(request(size), **variant.settings)
    estimate = estimate_memory(
        student,
        teacher,
        settings,
        micro_batch_tokens=settings.batch_tokens,
        sequence_length=size.sequence_length,
        teacher_bytes_per_value=2,
        device=device,
    )
    return estimate.total - 2 * parameters(teacher)


def report(name: str, size: Size, found: Sequence[Outcome]) -> str:
    """Markdown."""
    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
    peak = next((flops for part, flops in PEAKS.items() if part in device), None)
    flops = step_flops(size)
    lines = [
        f"# Utilisation: {name}",
        "",
        f"- **Device**: {device}",
        f"- **Versions**: Python {sys.version.split()[0]}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}",
        f"- **Step**: {size.windows} windows of {size.sequence_length:,} tokens, {size.vocab_size:,} words, "
        f"{flops:.4g} FLOPs; medians and ranges of the steps timed after three",
        "",
        "| loop | seconds a step | range | FLOP/s | of the peak | memory, GiB | estimated, GiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for outcome in found:
        if not outcome.seconds:
            lines.append(f"| {outcome.variant.name} | did not run | | | | | |")
            continue
        middle = statistics.median(outcome.seconds)
        share = f"{flops / middle / peak:.1%}" if peak else "peak unknown"
        cells = [outcome.variant.name, f"{middle:.4f}", f"{min(outcome.seconds):.4f} to {max(outcome.seconds):.4f}"]
        cells += [f"{flops / middle:.4g}", share, f"{outcome.peak / 2**30:.2f}" if outcome.peak else "–"]
        guessed = (
            0 if outcome.variant.naive else estimated_peak(size, outcome.variant, device="cuda" if cuda else "cpu")
        )
        cells += [f"{guessed / 2**30:.2f}" if guessed else "–"]
        lines.append(f"| {' | '.join(cells)} |")
    for outcome in found:
        if outcome.profile:
            lines += ["", f"## Where a step goes: {outcome.variant.name}", "", outcome.profile]
    return "\n".join([*lines, ""])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.utilisation", description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="1B of 8B")
    parser.add_argument("--windows", type=int, help="of a step; by default the size's")
    parser.add_argument("--variants", nargs="+", choices=[each.name for each in VARIANTS])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--out", type=Path, help="folder for utilisation.md; by default it is printed alone")
    chosen = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = SIZES[chosen.size]
    if chosen.windows:
        size = replace(size, windows=chosen.windows)
    bench, found = Bench(size, device=device), []
    for variant in VARIANTS:
        if chosen.variants is None or variant.name in chosen.variants:
            found.append(bench.measure(variant, steps=chosen.steps, profile=variant.name in PROFILED))
            print(variant.name, found[-1].seconds, file=sys.stderr, flush=True)
    text = report(chosen.size, size, found)
    print(text)
    if chosen.out is not None:
        name = f"utilisation-{size.windows}.md" if chosen.windows else "utilisation.md"
        (chosen.out / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before CUDA starts: for the deterministic variant
    sys.exit(main())
