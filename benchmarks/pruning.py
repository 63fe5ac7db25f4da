"""What `espalier apply` takes in memory and in bytes read, and what cutting a student costs beside its distillation.

    ESPALIER_DATA_DIR=… python -m benchmarks.pruning

Random Llamas of about 0.5, 2 and 8 GB in shards are written below the temporary folder, one after the other, and
removed again. Each is applied in a process of its own; the kernel says what that process held and read.
"""

import argparse
import ctypes
import json
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.first_search import REPORTS, machine, versions
from search.architecture import Architecture
from search.budget import Budget
from search.checkpoint import expected_shapes, read_headers
from search.context import Context
from search.counting import flops_per_token, kv_cache_bytes_per_token, non_embedding_parameters, parameters
from search.data import DataRequest
from search.distillation import DistillationRequest
from search.families import family_of
from search.selection import Selection
from search.serialization import to_json
from search.sources import TeacherSource, resolve_teacher
from search.spec import SPEC_VERSION, Recipe, Spec, SpecTeacher
from workers.apply import main as apply
from workers.compress.checkpoint import fingerprint, parameters_of
from workers.compress.distill import Training
from workers.compress.importance import score
from workers.compress.slicing import select
from workers.compress.targets import LiveTargets
from workers.compress.teacher import load_teacher
from workers.compress.workbench import build_student

MIB = 1 << 20
#: What `apply` may hold beside the student and two tensors.
ALLOWANCE_BYTES = 200 * MIB

#: (num_hidden_layers, hidden_size, intermediate_size, query heads, KV heads) of 1x, 4x and 16x; bfloat16, untied.
SHAPES: Mapping[str, tuple[int, int, int, int, int]] = {
    "1x": (14, 1024, 3584, 16, 4),
    "4x": (22, 1792, 6272, 28, 4),
    "16x": (40, 2816, 9856, 44, 4),
}
VOCABULARY = 32_000

Json = dict[str, Any]

# --- a teacher and a spec -------------------------------------------------------------------------------------------


def config_of(scale: str) -> Json:
    """The config of a random Llama."""
    layers, hidden, ffn, heads, groups = SHAPES[scale]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": 64,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }


def write_teacher(folder: Path, config: Json) -> None:
    """One shard for each layer and one for the rest, so that none is ever held whole."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    torch.manual_seed(0)
    shapes = expected_shapes(family_of(config).parse(config))
    shards: dict[str, list[str]] = {}
    for name in shapes:
        layer = name.removeprefix("model.layers.").partition(".")[0] if name.startswith("model.layers.") else "rest"
        shards.setdefault(f"model-{layer}.safetensors", []).append(name)
    for file, names in shards.items():
        save_file({name: torch.randn(shapes[name]).bfloat16() for name in names}, folder / file, {"format": "pt"})
    index = {"weight_map": {name: file for file, names in shards.items() for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def half_of(teacher: Architecture) -> tuple[Architecture, Selection]:
    """Every other layer, three quarters of all widths, every fourth element missing."""

    def kept(size: int) -> tuple[int, ...]:
        return tuple(index for index in range(size) if index % 4 != 3)

    layers = tuple(range(0, teacher.num_hidden_layers, 2))
    group = teacher.queries_per_group
    groups = kept(teacher.num_key_value_heads)
    queries = tuple(g * group + q for g in groups for q in range(group))
    hidden = tuple(range(teacher.hidden_size * 3 // 4))
    student = teacher.with_axes(
        num_hidden_layers=len(layers),
        hidden_size=len(hidden),
        intermediate_size=len(kept(teacher.intermediate_size)),
        num_key_value_heads=len(groups),
        num_attention_heads=len(queries),
    )
    return student, Selection(
        layers=layers,
        hidden_channels=hidden,
        neurons=(kept(teacher.intermediate_size),) * len(layers),
        key_value_heads=(groups,) * len(layers),
        query_heads=(queries,) * len(layers),
    )


def spec_of(source: TeacherSource, student: Architecture, selection: Selection) -> Spec:
    """A spec as a search would write it, without measurements."""
    teacher = family_of(source.config).parse(source.config)
    identity = fingerprint(source, parameters_of(source, teacher))
    count = parameters(student)
    return Spec(
        spec_version=SPEC_VERSION,
        search_id="s-benchmark",
        candidate_id="c-benchmark",
        teacher=SpecTeacher(
            model=source.path.name,
            digest=identity.digest,
            fingerprint=identity,
            parameters=parameters(teacher),
            metrics={},
            ignored_attributes=(),
        ),
        budget=Budget(params=count, smallest=count, largest=count),
        architecture=student,
        config={},
        selection=selection,
        parameters=count,
        non_embedding_parameters=non_embedding_parameters(student),
        flops_per_token=flops_per_token(student, Context(sequence_length=256)),
        kv_cache_bytes_per_token=kv_cache_bytes_per_token(student, Context(sequence_length=256)),
        measurements=(),
        recipe=Recipe(
            loss="forward_kl",
            distillation=DistillationRequest(learning_rate=1e-3),
            data=DataRequest(train="-"),
            data_digest="",
            seed=0,
        ),
        checkpoint_artifact="",
        environment={},
    )


# --- what the kernel says -------------------------------------------------------------------------------------------


def anonymous_bytes(status: str) -> int:
    """RssAnon in a process's status."""
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon"))


def bytes_read() -> int:
    """Through system calls, by this process."""
    return int(Path("/proc/self/io").read_text().split()[1])


@dataclass
class Watch:
    """What a `watched` block came to."""

    #: The most anonymous memory inside, above what there was before, bytes.
    peak: int = 0
    #: What watching itself read, bytes.
    read: int = 0


@contextmanager
def watched(interval_s: float = 0.002) -> Iterator[Watch]:
    """Sample this process's memory while the block runs."""
    status, watch, done = Path("/proc/self/status"), Watch(), threading.Event()
    before = anonymous_bytes(status.read_text())

    def look() -> None:
        while not done.wait(interval_s):
            text = status.read_text()
            watch.read += len(text)
            watch.peak = max(watch.peak, anonymous_bytes(text) - before)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        done.set()
        thread.join()


def evict(file: Path) -> None:
    """Out of the page cache, so that what is there afterwards was read afterwards."""
    with file.open("rb") as content:
        os.fsync(content.fileno())
        os.posix_fadvise(content.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cached_bytes(file: Path) -> int:
    """Of a file: how much lies in the page cache (mincore)."""
    libc = ctypes.CDLL(None, use_errno=True)
    size = file.stat().st_size
    with file.open("r+b") as content, mmap.mmap(content.fileno(), size, access=mmap.ACCESS_COPY) as mapped:
        anchor = ctypes.c_char.from_buffer(mapped)
        pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        failed = libc.mincore(ctypes.c_void_p(ctypes.addressof(anchor)), ctypes.c_size_t(size), pages)
        del anchor
    assert not failed, os.strerror(ctypes.get_errno())
    return sum(page & 1 for page in pages) * mmap.PAGESIZE


def apply_here(spec_file: Path, teacher: Path, out: Path) -> Json:
    """Run the command in this process, which has imported everything that it needs."""
    read, began = bytes_read(), time.monotonic()
    with watched() as watch:
        status = apply([str(spec_file), "--teacher", str(teacher), "--out", str(out)])
    assert status == 0, "espalier apply failed"
    seconds = time.monotonic() - began
    return {"anonymous": watch.peak, "read": bytes_read() - read - watch.read, "seconds": seconds}


def measure_apply(scale: str, folder: Path) -> Json:
    """Write a teacher, apply a spec to it in another process, and remove both."""
    teacher, out, spec_file = folder / "teacher", folder / "out", folder / "spec.json"
    write_teacher(teacher, config_of(scale))
    source = resolve_teacher("teacher", [folder])
    student, selection = half_of(family_of(source.config).parse(source.config))
    spec = spec_of(source, student, selection)
    spec_file.write_text(json.dumps(to_json(spec)))
    for file in source.weight_files:
        evict(file)
    command = [sys.executable, "-m", "benchmarks.pruning", "--apply", str(spec_file), str(teacher), str(out)]
    found: Json = json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    )
    dropped = [f for f in source.weight_files if f.stem[6:].isdigit() and int(f.stem[6:]) not in selection.layers]
    kept = [tensor for tensor in source.tensors.values() if tensor.file not in dropped]
    shards = sorted(out.glob("*.safetensors"))
    found |= {
        "scale": scale,
        "teacher": sum(file.stat().st_size for file in source.weight_files),
        "student": sum(tensor.num_bytes for tensor in read_headers(shards).values()),
        "largest": max(tensor.num_bytes for tensor in source.tensors.values()),
        "kept": sum(tensor.num_bytes for tensor in kept),
        "dropped": sum(file.stat().st_size for file in dropped),
        # The header is read, and with it the page that holds its end.
        "dropped_cached": sum(cached_bytes(file) for file in dropped),
        "dropped_headers": sum(_header_pages(file) for file in dropped),
        "shards": len(shards),
    }
    shutil.rmtree(teacher)
    shutil.rmtree(out)
    return found


def _header_pages(file: Path) -> int:
    with file.open("rb") as content:
        length = 8 + int.from_bytes(content.read(8), "little")
    return -(-length // mmap.PAGESIZE) * mmap.PAGESIZE


# --- what cutting costs ---------------------------------------------------------------------------------------------


def measure_building(data_dir: Path, *, steps: int = 20, repeats: int = 5) -> Json:
    """Building students of stories260K from the loaded teacher, beside their distillation of the first search.

    The brief run's time is that of `steps` steps, after as many to warm up, times its number of steps.
    """
    teacher = load_teacher(resolve_teacher("stories260K", [data_dir / "models"]))
    settings = DistillationRequest(tokens=819_200, batch_tokens=2048, learning_rate=1e-3)
    generator = torch.Generator().manual_seed(0)
    windows: Tensor = torch.randint(teacher.architecture.vocab_size, (2 * steps * 8, 256), generator=generator)
    importance = score(teacher, windows[:64], batch_windows=8)
    student = teacher.architecture.with_axes(
        num_hidden_layers=4, intermediate_size=92, num_attention_heads=4, num_key_value_heads=2
    )
    builds = []
    for _ in range(repeats):
        began = time.perf_counter()
        model = build_student(teacher, student, select(importance, student, teacher=teacher.architecture))
        builds.append(time.perf_counter() - began)
    short = replace(settings, tokens=2 * steps * settings.batch_tokens)
    training = Training(model, LiveTargets(teacher.model, windows), windows, short, seed=0)
    training.advance(steps)
    began = time.perf_counter()
    training.advance(2 * steps)
    brief = (time.perf_counter() - began) / steps * settings.steps
    return {"build": median(builds), "slowest": max(builds), "brief": brief, "steps": settings.steps}


# --- the report -----------------------------------------------------------------------------------------------------


def report(rows: Sequence[Json], building: Json) -> str:
    """Markdown."""
    lines = [
        "# Pruning: memory, bytes read, and time",
        "",
        f"- **Machine**: {machine()}",
        f"- **Versions**: {versions()}",
        f"- **Threads**: {torch.get_num_threads()}",
        "",
        "## `espalier apply`",
        "",
        "Random Llamas in bfloat16, a shard for each layer; every other layer dropped, every axis narrowed to three "
        "quarters. *Held* is the peak of RssAnon during `apply` in a process of its own, above what it was once "
        "everything is imported, sampled every 2 ms; *allowed* is the student + 2 x the largest tensor + 200 MiB. "
        "*Kept* are the tensors of kept layers, embeddings and head; *read beyond* is the kernel's count of bytes read "
        "through system calls, less those: headers, spec, config. The files were evicted from the page cache before; "
        "*dropped, cached* is what lies there afterwards of the dropped layers' files, beside *their headers'* pages.",
        "",
        "| | teacher | student | largest tensor | held | allowed | kept | dropped | read beyond | dropped, cached "
        "| their headers' | time |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
        *map(_row, rows),
        "",
        f"Within the allowance: {sum(row['anonymous'] < allowed(row) for row in rows)} of {len(rows)}. Seed 0 of the "
        "weights; one run each.",
        "",
        "## Building a student",
        "",
        f"stories260K, 4 layers, FFN 92, 4/2 heads: choosing and cutting takes {building['build'] * 1e3:.1f} ms "
        f"(median of 5, slowest {building['slowest'] * 1e3:.1f} ms); its brief distillation, "
        f"{building['steps']} steps x 2,048 tokens, {building['brief']:.1f} s at the pace of 20 steps. That is "
        f"{building['build'] / building['brief']:.2%}; the aim is below 2 %.",
        "",
    ]
    return "\n".join(lines)


def allowed(row: Json) -> int:
    """Anonymous memory that `apply` may hold, bytes."""
    return int(row["student"] + 2 * row["largest"] + ALLOWANCE_BYTES)


def _row(row: Json) -> str:
    sizes = [row[name] for name in ("teacher", "student", "largest", "anonymous")]
    sizes += [allowed(row), row["kept"], row["dropped"]]
    few = (row["read"] - row["kept"], row["dropped_cached"], row["dropped_headers"])
    small = [f"{size / 1024:,.0f} KiB" for size in few]
    cells = [row["scale"], *(f"{size / MIB:,.1f} MiB" for size in sizes), *small, f"{row['seconds']:.1f} s"]
    return f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pruning", description=__doc__)
    parser.add_argument("--scales", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--machine-kind", default="cpu", help="for the report's name, e.g. cpu or h100")
    parser.add_argument("--apply", nargs=3, type=Path, metavar=("SPEC", "TEACHER", "OUT"), help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    if chosen.apply:
        print(json.dumps(apply_here(*chosen.apply)))
        return 0
    data_dir = os.environ.get("ESPALIER_DATA_DIR")
    if not data_dir or not Path(data_dir).is_dir():
        print("ESPALIER_DATA_DIR names no folder of real models and corpora", file=sys.stderr)
        return 2
    building = measure_building(Path(data_dir).resolve())
    with tempfile.TemporaryDirectory(prefix="espalier-benchmark-") as folder:
        rows = [measure_apply(scale, Path(folder)) for scale in chosen.scales]
    text = report(rows, building)
    print(text)
    (REPORTS / f"{datetime.now(UTC):%Y-%m-%d}-pruning-{chosen.machine_kind}.md").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
