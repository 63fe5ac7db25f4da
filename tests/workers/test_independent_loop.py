"""The pipeline against a loop that shares no code with it: same teacher, text windows and architecture, same losses.

Below the line is that loop, written from the method's description alone: its own Llama, importance, indices,
divergence and optimiser, from tensors up. It reads the packed windows that the pipeline stored, so that both see the
same sequences, and nothing else.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention, silu

from search.artifacts import FsspecArtifactStore
from search.counting import parameters
from search.data import DataRequest
from search.distillation import DistillationRequest
from search.planning import plan
from search.ports import EvaluationTask
from search.records import JobState, Progress, RunResult, SearchRecord
from search.request import BudgetRequest, ImportanceRequest, SearchRequest, StrategyRequest, TeacherRequest
from workers.compress.pipeline import evaluate
from workers.compress.preparation import prepare
from workers.compress.workbench import Workbench

STEPS = 80


@pytest.mark.slow
@pytest.mark.data
def test_the_pipeline_and_an_independent_loop_end_at_the_same_losses(data_dir: Path, tmp_path: Path) -> None:
    ours, theirs = both(data_dir, tmp_path, steps=STEPS, layers=4, hidden=56, ffn=84, groups=4, queries_per_group=2)
    assert ours.keys() == theirs.keys()
    for metric, loss in theirs.items():
        assert ours[metric] == pytest.approx(loss, abs=0.005), (ours, theirs)
    # Neither comparison is empty: the start is bad, the end is not, and the teacher is better.
    assert theirs["before"] > theirs["after"] + 1 > theirs["teacher"] + 1


def both(
    data_dir: Path, folder: Path, *, steps: int, layers: int, hidden: int, ffn: int, groups: int, queries_per_group: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Validation losses of one architecture from the pipeline and from the loop: teacher, before, after."""
    model_roots, data_roots = [data_dir / "models"], [data_dir / "corpora"]
    artifacts = FsspecArtifactStore(str(folder / "artifacts"), cache_dir=folder / "cache")
    request = SearchRequest(
        teacher=TeacherRequest(model="stories260K"),
        budgets=(BudgetRequest(ratio=0.5),),
        data=DataRequest(train="tinystories", calibration_samples=128),
        importance=ImportanceRequest(score="activation", sequence_aggregate="mean"),
        distillation=DistillationRequest(tokens=2048 * steps, learning_rate=1e-3, warmup_steps=steps // 20),
        strategy=StrategyRequest(kind="tpe", rungs=(1.0,)),
    )
    new = plan(request, model_roots=model_roots, data_roots=data_roots).new_search
    search = SearchRecord(
        id="s",
        state=JobState.RUNNING,
        request=request,
        teacher=new.teacher,
        budgets=new.budgets,
        progress=Progress(planned=1),
        created_at=datetime.now(UTC),
    )
    preparation = prepare(search, model_roots=model_roots, data_roots=data_roots, artifacts=artifacts)
    search = replace(search, preparation=preparation)
    architecture = new.teacher.architecture.with_axes(
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_key_value_heads=groups,
        num_attention_heads=groups * queries_per_group,
    )
    task = EvaluationTask(
        search=search,
        candidate_id="c",
        run_id="r",
        architecture=architecture,
        parameters=parameters(architecture),
        seed=0,
    )
    bench = Workbench.load(search, model_roots=model_roots, artifacts=artifacts)
    ours = {"teacher": preparation.teacher_metrics["validation_loss"]}
    for news in evaluate(bench, task):
        if not isinstance(news, RunResult):
            (loss,) = (m.value for m in news.measurements if m.metric == "validation_loss")
            ours["after" if news.measurements[0].tokens else "before"] = loss
    theirs = independent_loop(
        load_file(data_dir / "models" / "stories260K" / "model.safetensors"),
        load_file(artifacts.local_path(preparation.tokens_artifact)),
        steps=steps,
        shape=Shape(layers=layers, hidden=hidden, ffn=ffn, groups=groups, queries_per_group=queries_per_group),
    )
    return ours, theirs


# --- the loop -------------------------------------------------------------------------------------------------------

Weights = dict[str, Tensor]

HEAD_DIM, EPSILON, ROPE_BASE = 8, 1e-5, 10_000.0


@dataclass(frozen=True)
class Shape:
    layers: int
    hidden: int
    ffn: int
    groups: int
    queries_per_group: int


TEACHER = Shape(layers=5, hidden=64, ffn=172, groups=4, queries_per_group=2)


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + EPSILON).sqrt() * weight


def rotate(x: Tensor) -> Tensor:
    """Rotary positions on (B, heads, T, HEAD_DIM): channel i is paired with channel i + HEAD_DIM / 2."""
    half = HEAD_DIM // 2
    angle = torch.arange(x.shape[2])[:, None] * ROPE_BASE ** (-torch.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


def logits(w: Weights, shape: Shape, tokens: Tensor, see: Callable[[str, Tensor], None] = lambda *_: None) -> Tensor:
    batch, length = tokens.shape
    x = w["model.embed_tokens.weight"][tokens]
    for i in range(shape.layers):
        p = f"model.layers.{i}."
        before = x
        h = norm(x, w[p + "input_layernorm.weight"])
        see("channel", h)
        q, k, v = (
            (h @ w[p + f"self_attn.{name}_proj.weight"].T).view(batch, length, -1, HEAD_DIM).transpose(1, 2)
            for name in "qkv"
        )
        q, k = rotate(q), rotate(k)
        k, v = (t.repeat_interleave(shape.queries_per_group, 1) for t in (k, v))
        heads = scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        see(f"heads {i}", heads.pow(2).sum(-1).sqrt())
        x = x + heads.reshape(batch, length, -1) @ w[p + "self_attn.o_proj.weight"].T
        h = norm(x, w[p + "post_attention_layernorm.weight"])
        see("channel", h)
        h = silu(h @ w[p + "mlp.gate_proj.weight"].T) * (h @ w[p + "mlp.up_proj.weight"].T)
        see(f"neurons {i}", h)
        x = x + h @ w[p + "mlp.down_proj.weight"].T
        see(f"cosine {i}", (before * x).sum(-1) / (before.norm(dim=-1) * x.norm(dim=-1)))
    h = norm(x, w["model.norm.weight"])
    see("channel", h)
    return h @ w["model.embed_tokens.weight"].T


def prune(w: Weights, shape: Shape, calibration: Tensor) -> Weights:
    """Score everything in one pass over all calibration windows at once, and keep the best of each axis."""
    seen: dict[str, list[Tensor]] = {}
    logits(w, TEACHER, calibration, see=lambda name, activation: seen.setdefault(name, []).append(activation))
    scores = {
        name: torch.stack([a.abs().mean(1).pow(2).sum(0).sqrt() for a in activations]).sum(0)
        for name, activations in seen.items()
        if not name.startswith("cosine")
    }

    def best(values: Tensor, count: int) -> list[int]:
        return sorted(range(len(values)), key=lambda i: -float(values[i]))[:count]

    influence = torch.stack([1 - seen[f"cosine {i}"][0].mean() for i in range(TEACHER.layers)])
    channels = torch.tensor(sorted(best(scores["channel"], shape.hidden)))
    student = {name: w[name][..., channels] for name in ("model.embed_tokens.weight", "model.norm.weight")}
    for new, old in enumerate(sorted(best(influence, shape.layers))):
        of_heads = scores[f"heads {old}"].view(TEACHER.groups, TEACHER.queries_per_group)
        groups = sorted(best(of_heads.sum(1), shape.groups))
        queries = [
            g * TEACHER.queries_per_group + h
            for g in groups
            for h in sorted(best(of_heads[g], shape.queries_per_group))
        ]
        q_rows = torch.tensor([head * HEAD_DIM + d for head in queries for d in range(HEAD_DIM)])
        kv_rows = torch.tensor([group * HEAD_DIM + d for group in groups for d in range(HEAD_DIM)])
        neurons = torch.tensor(sorted(best(scores[f"neurons {old}"], shape.ffn)))
        rows = {"self_attn.q_proj": q_rows, "self_attn.k_proj": kv_rows, "self_attn.v_proj": kv_rows}
        rows |= {"mlp.gate_proj": neurons, "mlp.up_proj": neurons}
        columns = {"self_attn.o_proj": q_rows, "mlp.down_proj": neurons}
        into, out_of = f"model.layers.{new}.", f"model.layers.{old}."
        for name, kept in rows.items():
            student[f"{into}{name}.weight"] = w[f"{out_of}{name}.weight"][kept][:, channels]
        for name, kept in columns.items():
            student[f"{into}{name}.weight"] = w[f"{out_of}{name}.weight"][channels][:, kept]
        for name in ("input_layernorm", "post_attention_layernorm"):
            student[f"{into}{name}.weight"] = w[f"{out_of}{name}.weight"][channels]
    return {name: tensor.clone() for name, tensor in student.items()}


def loss_on(w: Weights, shape: Shape, windows: Tensor) -> float:
    """Nats a token over all next tokens within the windows."""
    log_p = torch.cat([logits(w, shape, batch)[:, :-1].log_softmax(-1) for batch in windows.split(16)])
    return -float(log_p.gather(2, windows[:, 1:, None]).double().mean())


def rate_at(step: int, steps: int) -> float:
    """1e-3; warm-up over a twentieth of the run, cosine to a tenth."""
    warmup = steps // 20
    if step < warmup:
        return 1e-3 * (step + 1) / warmup
    return 1e-3 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))))


def independent_loop(teacher: Weights, tokens: Weights, *, steps: int, shape: Shape) -> dict[str, float]:
    windows = {split: packed.long() for split, packed in tokens.items()}
    with torch.no_grad():
        student = prune(teacher, shape, windows["calibration"])
        losses = {
            "teacher": loss_on(teacher, TEACHER, windows["validation"]),
            "before": loss_on(student, shape, windows["validation"]),
        }
    order = torch.randperm(len(windows["train"]), generator=torch.Generator().manual_seed(0))
    mean, square = ([torch.zeros_like(p) for p in student.values()] for _ in range(2))
    for step in range(steps):
        batch = windows["train"][order[step * 8 : step * 8 + 8]]
        with torch.no_grad():
            log_p = logits(teacher, TEACHER, batch).log_softmax(-1)
        weights = {name: p.detach().requires_grad_() for name, p in student.items()}
        log_q = logits(weights, shape, batch).log_softmax(-1)
        (log_p.exp() * (log_p - log_q)).sum(-1).mean().backward()
        gradients = [p.grad for p in weights.values() if p.grad is not None]
        total = math.sqrt(sum(float(g.pow(2).sum()) for g in gradients))
        with torch.no_grad():
            for p, g, m, v in zip(student.values(), gradients, mean, square, strict=True):
                g = g * min(1.0, 1.0 / total)
                m.mul_(0.9).add_(0.1 * g)
                v.mul_(0.95).add_(0.05 * g * g)
                corrected = m / (1 - 0.9 ** (step + 1)) / ((v / (1 - 0.95 ** (step + 1))).sqrt() + 1e-8)
                p -= rate_at(step, steps) * corrected
    with torch.no_grad():
        losses["after"] = loss_on(student, shape, windows["validation"])
    return losses
