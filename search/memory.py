"""How much memory training takes: closed forms, so that a candidate that cannot fit is refused before it starts.

A run's peak is the largest of three moments of a step. What is there all the time, 12 bytes a parameter: the student's
weights and both moments of AdamW, in float32. On top of it:

* *the end of the forward pass*: what autograd has saved in every layer, and the LM head's work, which forms the head's
  gradient there already (`workers.compress.chunked`);
* *the beginning of the backward pass*: the same saved tensors, the head's gradient, and what one layer's backward pass
  computes beside them;
* *its end*: all gradients, and for a moment the embedding's twice where it is added to another.

Where gradients are accumulated over micro batches, all of them are there from the second micro batch on. Losses on
hidden states add their lift, and for each place the lifted state, its difference and its gradient.

What a layer saves is counted from the stock class, tensor by tensor: every matrix product keeps its input; a norm its
input, the normalised values and a factor a token; attention its rotated queries, keys, values, its output and one
number a head (or, without a fused kernel, the scores). `tests/workers/compress/test_memory.py` counts them in a real
backward graph of each family. Under bfloat16 autocast the residual stream and the norms stay float32, matrix products
keep bfloat16 inputs, and a copy of each matrix in bfloat16 stands beside it. Compiled layers save less, which is not
counted: on an H100 it was a fifth of all that was estimated (docs/LOG.md).

Legend: N tokens of a micro batch, T of a window, H hidden channels, A of all query heads together, K of all KV heads,
F neurons, V vocabulary, P parameters.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from search.architecture import Architecture
from search.counting import parameters
from search.distillation import DistillationLoss, DistillationRequest
from search.families import FAMILIES

_SCHEMA: dict[str, Any] = {"extra": "forbid", "use_attribute_docstrings": True}

_FLOAT32 = 4
_BFLOAT16 = 2

#: What the LM head may work in at a time, in bytes: the defaults of `workers.compress.chunked`.
HEAD_WORK_BYTES = {"cpu": 256 * 2**20, "cuda": 768 * 2**20}

#: Families whose logits are capped.
_CAPPED = ("gemma2",)

#: On a GPU, where forward KL is compiled: two models' logits and the gradient, in the larger of their dtypes.
HEAD_MATRICES_FUSED = 3

#: It takes a multiple of so many tokens at a time, where it takes more.
HEAD_ALIGNMENT = 128

#: How many float32 matrices (n, V) of a chunk's n tokens exist at once, without and with cross-entropy mixed in.
#: `workers.compress.chunked` reckons with 6 for forward KL and TAID alone and with 10 elsewhere when it chooses n.
HEAD_MATRICES: dict[DistillationLoss, tuple[int, int]] = {
    "forward_kl": (5, 7),
    "reverse_kl": (7, 7),
    "jensen_shannon": (9, 10),
    "logit_mse": (5, 6),
    "logit_cosine": (6, 7),
    "taid": (6, 6),
    "cross_entropy": (4, 4),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """What one layer keeps for its backward pass, for each token: multiples of H, A, K, F, the heads, the scores."""

    hidden: float
    queries: float
    keys: float
    neurons: float
    query_heads: float = 1
    key_value_heads: float = 0
    #: Of T numbers for each query head: where attention's scores exist.
    scores: float = 0
    #: Norms' factors and the like.
    numbers: float = 2

    def of(self, a: Architecture, sequence_length: int) -> float:
        """For one token of a window of that length."""
        return (
            self.hidden * a.hidden_size
            + self.queries * a.num_attention_heads * a.head_dim
            + self.keys * a.num_key_value_heads * a.head_dim
            + self.neurons * a.intermediate_size
            + self.query_heads * a.num_attention_heads
            + self.key_value_heads * a.num_key_value_heads
            + self.scores * a.num_attention_heads * sequence_length
            + self.numbers
        )


_LLAMA = Saved(hidden=6, queries=2, keys=2, neurons=4)
_LLAMA_BYTES = Saved(hidden=26, queries=4, keys=4, neurons=8, query_heads=4, numbers=8)

#: By family: float32 numbers a token and layer.
SAVED: dict[str, Saved] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": Saved(hidden=6, queries=4, keys=4, neurons=4, query_heads=2, key_value_heads=1),
    "phi3": Saved(hidden=6, queries=4, keys=3, neurons=4),
    "olmo2": Saved(hidden=6, queries=4, keys=4, neurons=4, numbers=4),
    "gemma2": Saved(hidden=10, queries=4, keys=0, neurons=4, query_heads=0, scores=2, numbers=4),
    "gemma3_text": Saved(hidden=10, queries=4, keys=4, neurons=4, query_heads=2, key_value_heads=1, numbers=4),
    "nemotron": Saved(hidden=4, queries=3, keys=2, neurons=2, numbers=4),
    "gpt_neox": Saved(hidden=4, queries=3, keys=3, neurons=2, numbers=4),
    "gpt2": Saved(hidden=4, queries=2, keys=2, neurons=5, numbers=4),
}

#: The same under bfloat16 autocast, in bytes.
SAVED_BYTES_BFLOAT16: dict[str, Saved] = {
    "llama": _LLAMA_BYTES,
    "mistral": _LLAMA_BYTES,
    "qwen2": _LLAMA_BYTES,
    "qwen3": Saved(hidden=26, queries=10, keys=10, neurons=8, query_heads=8, key_value_heads=4, numbers=8),
    "phi3": Saved(hidden=20, queries=8, keys=6, neurons=8, query_heads=4, numbers=8),
    "olmo2": Saved(hidden=26, queries=12, keys=12, neurons=8, query_heads=4, numbers=16),
    "gemma2": Saved(hidden=42, queries=8, keys=0, neurons=8, query_heads=0, scores=8, numbers=16),
    "gemma3_text": Saved(hidden=42, queries=10, keys=10, neurons=8, query_heads=8, key_value_heads=4, numbers=16),
    "nemotron": Saved(hidden=16, queries=6, keys=4, neurons=4, query_heads=4, numbers=16),
    "gpt_neox": Saved(hidden=10, queries=6, keys=6, neurons=4, query_heads=4, numbers=16),
    "gpt2": Saved(hidden=12, queries=4, keys=4, neurons=10, query_heads=4, numbers=16),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """Bytes at the peak of a training step, by what they are for."""

    __pydantic_config__: ClassVar[Any] = _SCHEMA

    weights: int
    """The student's, in float32."""
    optimizer: int
    """AdamW's two moments."""
    gradients: int
    """Those that exist at the peak: all, or the LM head's."""
    activations: int
    """What is kept of every layer for the backward pass, and what one layer computes beside it."""
    head: int
    """What the loss works in: some tokens' logits and what is made of them."""
    teacher: int
    """Its weights, those of another model that students are cut from, and what is kept of its outputs for a micro
    batch."""
    total: int


def estimate_memory(
    student: Architecture,
    teacher: Architecture,
    distillation: DistillationRequest,
    *,
    micro_batch_tokens: int,
    sequence_length: int,
    teacher_bytes_per_value: int,
    device: str,
    other_parameters: int = 0,
) -> MemoryEstimate:
    """The peak of distilling `student`, once the optimiser has its state.

    Args:
        student: what is trained.
        teacher: what it learns from.
        distillation: the settings.
        micro_batch_tokens: N; smaller than `distillation.batch_tokens` where gradients are accumulated.
        sequence_length: T.
        teacher_bytes_per_value: of its weights and outputs: 2 or 4.
        device: ``cpu`` or ``cuda``: decides what `precision` ``auto`` is, and how much the head works in at a time.
        other_parameters: of models that a worker holds beside the teacher, in as many bytes each.
    """
    a, tokens, count = student, micro_batch_tokens, parameters(student)
    in_bfloat16 = distillation.precision == "bfloat16" or (distillation.precision == "auto" and device == "cuda")
    head_weight = a.vocab_size * a.hidden_size
    layer = _layer_bytes(a, tokens, sequence_length, in_bfloat16=in_bfloat16)
    stream = _FLOAT32 * tokens * a.hidden_size
    checkpointing = distillation.activation_checkpointing  # keeps a layer's input, and computes one layer again
    body = a.num_hidden_layers * (stream if checkpointing else layer) + 3 * stream  # the final norm's
    body += len(distillation.hidden_losses) * (stream + 3 * _FLOAT32 * tokens * teacher.hidden_size)
    beside = _backward_bytes(a, tokens, in_bfloat16=in_bfloat16) + (layer if checkpointing else 0)
    copies = _BFLOAT16 * head_weight if in_bfloat16 else 0
    of_logit = max(teacher_bytes_per_value, _BFLOAT16 if in_bfloat16 else _FLOAT32)
    head = _head_work_bytes(a, tokens, distillation, device, of_logit) + stream + copies
    accumulated = _FLOAT32 * count if tokens < distillation.batch_tokens else 0
    forward_end = (accumulated + _FLOAT32 * head_weight, body, head)
    backward_start = (accumulated + _FLOAT32 * head_weight, body + beside, 0)
    twice = head_weight if accumulated or a.tie_word_embeddings else 0  # the embedding's, added to what is there
    backward_end = (_FLOAT32 * (count + twice), 0, 0)
    gradients, activations, work = max(forward_end, backward_start, backward_end, key=sum)
    states = 1 + len(distillation.hidden_losses)
    ahead = 2 if device == "cuda" else 1  # the next ones are on their way while these are learnt from
    outputs = ahead * tokens * teacher.hidden_size * teacher_bytes_per_value * states
    of_teacher = (parameters(teacher) + other_parameters) * teacher_bytes_per_value + outputs
    trained = count + (a.hidden_size * teacher.hidden_size if distillation.hidden_losses else 0)
    weights, moments = _FLOAT32 * trained, 2 * _FLOAT32 * trained
    return MemoryEstimate(
        weights=weights,
        optimizer=moments,
        gradients=gradients,
        activations=activations,
        head=work,
        teacher=of_teacher,
        total=weights + moments + gradients + activations + work + of_teacher,
    )


def _layer_bytes(a: Architecture, tokens: int, sequence_length: int, *, in_bfloat16: bool) -> int:
    """What one layer saves."""
    if not in_bfloat16:
        return int(_FLOAT32 * tokens * SAVED[a.family].of(a, sequence_length))
    matrices = sum(
        term.parameters // term.count
        for term in FAMILIES[a.family].terms(a)
        if term.kind == "body" and "{layer}" in term.name and len(term.shape) == 2
    )
    return int(tokens * SAVED_BYTES_BFLOAT16[a.family].of(a, sequence_length)) + _BFLOAT16 * matrices


def _head_work_bytes(
    a: Architecture, tokens: int, distillation: DistillationRequest, device: str, bytes_per_value: int
) -> int:
    """One chunk of tokens: as many as the bytes allow, one at least."""
    mixed = distillation.cross_entropy_weight > 0
    of_matrix = _FLOAT32 * a.vocab_size
    reckoned = 6 if distillation.loss in ("forward_kl", "taid") and not mixed else 10
    chunk = _aligned(HEAD_WORK_BYTES[device] // (reckoned * of_matrix))
    if device == "cuda" and tokens > chunk and _may_be_fused(a, distillation):
        of_token = HEAD_MATRICES_FUSED * bytes_per_value * a.vocab_size
        return min(tokens, _aligned(HEAD_WORK_BYTES[device] // of_token)) * of_token
    return min(tokens, chunk) * HEAD_MATRICES[distillation.loss][mixed] * of_matrix


def _may_be_fused(a: Architecture, distillation: DistillationRequest) -> bool:
    """As `workers.compress.chunked` decides."""
    is_plain = distillation.temperature == 1 and not distillation.cross_entropy_weight
    return distillation.loss == "forward_kl" and is_plain and a.family not in _CAPPED


def _aligned(tokens: int) -> int:
    return max(1, tokens if tokens < HEAD_ALIGNMENT else tokens - tokens % HEAD_ALIGNMENT)


def _backward_bytes(a: Architecture, tokens: int, *, in_bfloat16: bool) -> int:
    """Beside what is saved: the gradients of the residual stream and of a gated MLP's three inner tensors."""
    of_neurons = (_BFLOAT16 if in_bfloat16 else _FLOAT32) * a.intermediate_size
    return tokens * (2 * _FLOAT32 * a.hidden_size + 3 * of_neurons)
