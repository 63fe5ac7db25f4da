"""How well a student's training steps use an accelerator: a 1 B-shaped student of an 8 B-shaped teacher.

    python -m benchmarks.utilisation --out FOLDER

Random weights, 128,256 words, windows of 4,096 tokens, bfloat16 matrix products over float32 weights: the engine that
searches use, on what it keeps of the teacher, and beside it the naive loop, whose teacher runs at every step and whose
`kl_div` sees all logits. *Model FLOPs utilisation* is the arithmetic of a step (three forward passes of the student,
one of the teacher's head; matrix products only, nothing computed again counted) over its time and the device's dense
bfloat16 peak; the naive loop is credited with what it is for, the same arithmetic. A profile says where the rest goes.

It needs torch, transformers and safetensors, and no other package of ours: where the machine has neither pydantic nor
structlog, what they would do here (nothing but to be imported) is stood in for. ``--size tiny`` tries it on a CPU.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import transformers
from torch import Tensor
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

from search.counting import flops_per_token  # noqa: E402
from search.distillation import DistillationRequest  # noqa: E402
from search.families import family_of  # noqa: E402
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


def step_flops(size: Size) -> float:
    """The arithmetic of a step."""
    config = {"model_type": "llama", "tie_word_embeddings": True, "vocab_size": size.vocab_size}
    student = family_of(config).parse({**config, **size.student, "max_position_embeddings": size.sequence_length})
    forward = flops_per_token(student, sequence_length=size.sequence_length)
    teacher_head = 2 * size.vocab_size * size.teacher["hidden_size"]
    return float(size.windows * size.sequence_length * (3 * forward + teacher_head))


def seconds(act: Callable[[], Any], *, steps: int, device: str) -> list[float]:
    """Of each of so many calls, after two that are not timed."""
    found = []
    for _ in range(steps + 2):
        start = time.perf_counter()
        act()
        if device == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return found[2:]


def naive_step(
    student: PreTrainedModel, teacher: PreTrainedModel, optimizer: torch.optim.Optimizer, batch_BT: Tensor
) -> None:
    """The teacher's forward pass, and `kl_div` of all logits in float32."""
    with torch.no_grad():
        wanted = log_softmax(teacher(input_ids=batch_BT).logits.flatten(0, 1).float(), dim=-1)
    with torch.autocast(batch_BT.device.type, torch.bfloat16):
        logits = student(input_ids=batch_BT).logits
    given = log_softmax(logits.flatten(0, 1).float(), dim=-1)
    optimizer.zero_grad(set_to_none=True)
    kl_div(given, wanted, reduction="batchmean", log_target=True).backward()
    torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    optimizer.step()


def profiled(act: Callable[[], Any], *, device: str) -> str:
    """A table of what one step spends its time on."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if device == "cuda" else []
    with torch.profiler.profile(activities=activities) as profile:
        act()
    key = "self_cuda_time_total" if device == "cuda" else "self_cpu_time_total"
    return str(profile.key_averages().table(sort_by=key, row_limit=20, max_name_column_width=60))


def measure(size: Size, *, steps: int, device: str) -> tuple[list[float], list[float] | None, str]:
    """Seconds of our steps and of the naive loop's (None: it does not fit), and our profile."""
    generator = torch.Generator().manual_seed(0)
    shape = (4 * size.windows, size.sequence_length)
    windows = torch.randint(size.vocab_size, shape, generator=generator).int()
    teacher = model_of(size, size.teacher, dtype=torch.bfloat16, device=device)
    student = model_of(size, size.student, dtype=torch.float32, device=device)
    outputs = torch.randn(*shape, size.teacher["hidden_size"], generator=generator).to(torch.bfloat16)
    batch_tokens = size.windows * size.sequence_length
    settings = DistillationRequest(
        tokens=10_000 * batch_tokens, batch_tokens=batch_tokens, learning_rate=1e-6, precision="bfloat16"
    )
    training = Training(student, KeptTargets(head_of(teacher), [outputs]), windows, settings, seed=0)

    def ours() -> None:
        training.advance(training.position.step + 1)

    found = seconds(ours, steps=steps, device=device)
    profile = profiled(ours, device=device)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-6, fused=True)
    batch = windows[: size.windows].to(device)
    try:
        naive = seconds(lambda: naive_step(student, teacher, optimizer, batch), steps=steps, device=device)
    except torch.OutOfMemoryError:
        naive = None
    return found, naive, profile


def report(name: str, size: Size, found: Sequence[float], naive: Sequence[float] | None, profile: str) -> str:
    """Markdown."""
    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
    peak = next((flops for part, flops in PEAKS.items() if part in device), None)
    flops = step_flops(size)

    def row(label: str, times: Sequence[float]) -> str:
        middle = statistics.median(times)
        share = f"{flops / middle / peak:.1%}" if peak else "peak unknown"
        return f"| {label} | {middle:.4f} | {min(times):.4f} to {max(times):.4f} | {flops / middle:.4g} | {share} |"

    lines = [
        f"# Utilisation: {name}",
        "",
        f"- **Device**: {device}",
        f"- **Versions**: Python {sys.version.split()[0]}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}",
        f"- **Step**: {size.windows} windows of {size.sequence_length:,} tokens, {size.vocab_size:,} words, "
        f"{flops:.4g} FLOPs; {len(found)} steps timed after 2",
        *([f"- **Peak memory**: {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"] if cuda else []),
        "",
        "| loop | seconds a step | range | FLOP/s | of the peak |",
        "|---|---|---|---|---|",
        row("ours", found),
        row("naive", naive) if naive else "| naive | does not fit | | | |",
        "",
        "## Where one of our steps goes",
        "",
        "```",
        profile,
        "```",
    ]
    return "\n".join([*lines, ""])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.utilisation", description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="1B of 8B")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--out", type=Path, help="folder for utilisation.md; by default it is printed alone")
    chosen = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = SIZES[chosen.size]
    text = report(chosen.size, size, *measure(size, steps=chosen.steps, device=device))
    print(text)
    if chosen.out is not None:
        (chosen.out / "utilisation.md").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
