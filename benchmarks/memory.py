"""The estimate of a training step's memory against measured peaks: all families, shapes, micro batches, losses.

    python -m benchmarks.memory

On the CPU what torch allocates is counted storage by storage; on a GPU its allocator says, and models are four times as
wide and batches four times as large, so that the workspace that matrix products take there does not count.
"""

import argparse
import gc
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import torch

from benchmarks.first_search import REPORTS, machine, versions
from search.checkpoint import expected_shapes
from search.counting import parameters
from search.distillation import DistillationRequest, HiddenState
from search.families import family_of
from search.memory import estimate_memory
from tests.support.peak import PeakMemory
from workers.compress.distill import Training
from workers.compress.head import Head
from workers.compress.hidden_losses import HiddenLosses
from workers.compress.model import build_model
from workers.compress.targets import KeptTargets
from workers.families import FAMILIES as TORCH_FAMILIES

_LLAMA: dict[str, Any] = {
    "num_hidden_layers": 4,
    "hidden_size": 256,
    "intermediate_size": 680,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "vocab_size": 4096,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
_NEOX = {name: value for name, value in _LLAMA.items() if name not in ("num_key_value_heads", "head_dim")}
_GPT2 = {
    "n_layer": 4,
    "n_embd": 256,
    "n_inner": 680,
    "n_head": 8,
    "n_positions": 1024,
    **{name: _LLAMA[name] for name in ("vocab_size", "bos_token_id", "eos_token_id")},
    "tie_word_embeddings": True,
}
_WIDTHS = ("hidden_size", "intermediate_size", "head_dim", "query_pre_attn_scalar", "n_embd", "n_inner")
_FULL = {"layer_types": ["full_attention"] * 4, "tie_word_embeddings": True}

#: A config for each family, small enough for a test and large enough for its activations to count.
CONFIGS: Mapping[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "mistral": {**_LLAMA, "sliding_window": None},
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "phi3": {name: value for name, value in _LLAMA.items() if name != "head_dim"}
    | {"original_max_position_embeddings": 1024},
    "olmo2": {name: value for name, value in _LLAMA.items() if name != "head_dim"},
    "gemma2": _LLAMA | _FULL | {"query_pre_attn_scalar": 32},
    "gemma3_text": _LLAMA | _FULL | {"query_pre_attn_scalar": 32},
    "nemotron": _LLAMA,
    "gpt_neox": _NEOX,
    "gpt2": _GPT2,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A student and how it is trained."""

    family: str
    windows: int
    sequence_length: int
    distillation: DistillationRequest = field(default_factory=DistillationRequest)
    changes: Mapping[str, Any] | None = None
    #: How many times as wide as its config, but for the vocabulary.
    scale: int = 1

    @property
    def config(self) -> dict[str, Any]:
        """The student's."""
        config = {"model_type": self.family, **CONFIGS[self.family], **(self.changes or {})}
        return config | {name: self.scale * config[name] for name in _WIDTHS if name in config}


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """Of a training step after the first, bytes, without the teacher."""

    estimated: int
    measured: int

    @property
    def deviation(self) -> float:
        """Of the estimate, as a fraction of what was measured."""
        return self.estimated / self.measured - 1


def peak(case: Case, *, device: str = "cpu") -> Peak:
    """Train for two steps; the second one's peak."""
    gc.collect()
    before = torch.cuda.memory_allocated() if device == "cuda" else 0
    architecture = family_of(case.config).parse(case.config)
    length, batch_tokens = case.sequence_length, case.windows * case.sequence_length
    settings = replace(case.distillation, tokens=4 * batch_tokens, batch_tokens=batch_tokens, learning_rate=1e-5)
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: (torch.randn(shape, generator=generator) * 0.02).to(device)
        for name, shape in expected_shapes(architecture).items()
    }
    student = build_model(case.config, tensors).requires_grad_()
    head = Head(
        weight_VH=torch.randn(architecture.vocab_size, architecture.hidden_size, generator=generator).to(device)
    )
    windows = torch.randint(architecture.vocab_size, (case.windows, length), generator=generator).int()
    outputs = torch.randn(case.windows, length, architecture.hidden_size, generator=generator)
    states = settings.hidden_losses
    targets = KeptTargets(head, [outputs], {state: [outputs] for state in states})
    hidden = HiddenLosses.of(
        student,
        settings,
        family=TORCH_FAMILIES[case.family],
        kept_channels=range(architecture.hidden_size),
        hidden_size=architecture.hidden_size,
    )
    training = Training(student, targets, windows, settings, seed=0, hidden=hidden)
    training.advance(1)
    lift = (hidden.lift.weight,) if hidden else ()
    existing = (*student.parameters(), *student.buffers(), *lift, head.weight_VH, windows, outputs)
    trained = parameters(architecture) + sum(weight.numel() for weight in lift)
    measured = _measured(training, existing, trained, device=device) - before
    estimate = estimate_memory(
        architecture,
        architecture,
        settings,
        micro_batch_tokens=settings.micro_batch_tokens or batch_tokens,
        sequence_length=length,
        teacher_bytes_per_value=4,
        device=device,
    )
    return Peak(estimated=estimate.total - 4 * parameters(architecture), measured=measured)


def _measured(training: Training, existing: Sequence[torch.Tensor], trained: int, *, device: str) -> int:
    """What the second step needs, with the `trained` weights and the optimiser's state."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        training.advance(2)
        return torch.cuda.max_memory_allocated() - existing[-3].nbytes
    counted = PeakMemory(existing)
    with counted:
        training.advance(2)
    return 12 * trained + counted.peak


def cases() -> Iterator[Case]:
    """Every family in float32 and under bfloat16 autocast, then shapes and settings of one."""
    plain = DistillationRequest()
    for family in CONFIGS:
        yield Case(family=family, windows=4, sequence_length=256)
        yield Case(family=family, windows=2, sequence_length=256, distillation=replace(plain, precision="bfloat16"))
    wide = {"vocab_size": 32_000}
    recomputed = replace(plain, activation_checkpointing=True)
    yield Case(family="llama", windows=4, sequence_length=256, distillation=recomputed)
    yield Case(
        family="llama", windows=4, sequence_length=256, distillation=recomputed, changes={"num_hidden_layers": 8}
    )
    yield Case(family="gpt2", windows=4, sequence_length=256, distillation=replace(recomputed, precision="bfloat16"))
    yield Case(family="llama", windows=8, sequence_length=128, distillation=replace(plain, micro_batch_tokens=256))
    yield Case(family="llama", windows=2, sequence_length=128, changes=wide)
    yield Case(family="llama", windows=2, sequence_length=128, changes=wide | {"tie_word_embeddings": True})
    yield Case(
        family="llama",
        windows=2,
        sequence_length=128,
        distillation=replace(plain, micro_batch_tokens=128),
        changes=wide | {"tie_word_embeddings": True},
    )
    other_losses: tuple[dict[str, Any], ...] = (
        {"loss": "jensen_shannon"},
        {"loss": "taid"},
        {"loss": "cross_entropy"},
        {"cross_entropy_weight": 0.5},
    )
    for settings in other_losses:
        yield Case(
            family="llama", windows=2, sequence_length=128, distillation=DistillationRequest(**settings), changes=wide
        )
    both: tuple[HiddenState, ...] = ("block_output", "embedding_output")
    hidden: tuple[dict[str, Any], ...] = (
        {"hidden_losses": both[:1]},
        {"hidden_losses": both, "hidden_distance": "mse"},
        {"hidden_losses": both, "precision": "bfloat16"},
    )
    for family in ("llama", "gemma2", "gpt2"):
        for settings in hidden:
            yield Case(family=family, windows=4, sequence_length=256, distillation=DistillationRequest(**settings))
    yield Case(family="llama", windows=1, sequence_length=64, changes={"num_hidden_layers": 12, "hidden_size": 384})
    yield Case(family="llama", windows=8, sequence_length=256, changes={"num_hidden_layers": 2, "hidden_size": 128})
    yield Case(family="llama", windows=16, sequence_length=32, changes={"vocab_size": 512})
    yield Case(family="gemma2", windows=1, sequence_length=512, changes={"vocab_size": 512})


_SEEN = {
    "cpu": "kernels' own workspaces are not seen",
    "cuda": "by the allocator, kernels' workspaces included",
}


def report(found: Sequence[tuple[Case, Peak]], *, device: str = "cpu") -> str:
    """Markdown."""
    worst = max((measured.deviation for _, measured in found), key=abs)
    lines = [
        "# Memory of a training step: estimated and measured",
        "",
        f"- **Machine**: {machine()}; {torch.cuda.get_device_name() if device == 'cuda' else 'one thread'}",
        f"- **Versions**: {versions()}",
        "- **Measured**: live tensor storages at the peak of a step after the first, weights and optimiser included, "
        f"the teacher left out; {_SEEN[device]}",
        f"- **Largest deviation**: {worst:+.1%}",
        "",
        "| family | layers, hidden, FFN | vocabulary | tokens at a time | settings | measured MiB | estimated MiB | "
        "deviation |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case, measured in found:
        a = family_of(case.config).parse(case.config)
        settings = case.distillation
        tokens = settings.micro_batch_tokens or case.windows * case.sequence_length
        named: list[str] = [settings.precision if settings.precision != "auto" else "float32"]
        named += ["recomputed"] if settings.activation_checkpointing else []
        named += ["accumulated"] if settings.micro_batch_tokens else []
        named += [settings.loss] if settings.loss != "forward_kl" else []
        named += ["+ cross-entropy"] if settings.cross_entropy_weight else []
        named += (
            [f"{len(settings.hidden_losses)} hidden ({settings.hidden_distance})"] if settings.hidden_losses else []
        )
        named += ["tied"] if a.tie_word_embeddings else []
        lines.append(
            f"| {case.family} | {a.num_hidden_layers}, {a.hidden_size}, {a.intermediate_size} | {a.vocab_size:,} | "
            f"{tokens:,} | {', '.join(named)} | {measured.measured / 2**20:.1f} | {measured.estimated / 2**20:.1f} | "
            f"{measured.deviation:+.1%} |"
        )
    return "\n".join([*lines, ""])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--machine-kind", default="cpu", help="for the report's name, e.g. cpu or h100")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = []
    for case in cases():
        if chosen.device == "cuda":
            case = replace(case, scale=4, windows=4 * case.windows)
        measured = peak(case, device=chosen.device)
        print(f"{case.family} {case.changes or ''}: {measured.deviation:+.1%}", file=sys.stderr, flush=True)
        found.append((case, measured))
    text = report(found, device=chosen.device)
    print(text)
    (REPORTS / f"{datetime.now(UTC):%Y-%m-%d}-memory-{chosen.machine_kind}.md").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
