"""The size and cost of an architecture: closed forms over its family's terms, no model needed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Literal

from search.architecture import Architecture
from search.context import Context
from search.families import FAMILIES
from search.request import Basis

Dtype = Literal["float32", "bfloat16"]

BYTES_PER_VALUE: Mapping[Dtype, int] = {"float32": 4, "bfloat16": 2}

#: Of exported checkpoints, and so what they compute in as they are: students keep the weights that they are trained in.
EXPORTED_DTYPE: Dtype = "float32"

#: What caches are counted in where nothing else is said: what models are served in (float16 takes as much).
SERVED_DTYPE: Dtype = "bfloat16"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Something that an architecture costs: ``tensors(a) + attention(a) * sees(a.num_hidden_layers)``, over `tokens`.

    Each part is arithmetic that broadcasts over widths, so that `search.lattice` counts with it, too. Neither is less
    where an axis is larger.
    """

    #: Affine in depth and in ``intermediate_size``.
    tensors: Callable[[Architecture], int]
    #: Of one layer and one of what `sees` counts. Depth and ``intermediate_size`` have no part in it.
    attention: Callable[[Architecture], int] = lambda _: 0
    #: What attention sees, or keeps, in so many layers: not affine where layers differ.
    sees: Callable[[int], int] = lambda _: 0
    #: What it is averaged over.
    tokens: int = 1

    def total(self, architecture: Architecture) -> int:
        """Of all tokens together."""
        a = architecture
        return self.tensors(a) + self.attention(a) * self.sees(a.num_hidden_layers)

    def average(self, total: int) -> int:
        """A total by the token, rounded up: at most m exactly where the total is at most m times the tokens."""
        return -(-total // self.tokens)

    def __call__(self, architecture: Architecture) -> int:
        """By the token."""
        return self.average(self.total(architecture))


def parameters(architecture: Architecture) -> int:
    """All parameters; a tied LM head counts once."""
    return sum(term.parameters for term in FAMILIES[architecture.family].terms(architecture))


def non_embedding_parameters(architecture: Architecture) -> int:
    """Parameters without the input embedding and the LM head."""
    terms = FAMILIES[architecture.family].terms(architecture)
    return sum(term.parameters for term in terms if term.kind == "body")


def count(architecture: Architecture, basis: Basis) -> int:
    """Parameters on a budget's basis."""
    return parameters(architecture) if basis == "total" else non_embedding_parameters(architecture)


def flops(context: Context) -> Cost:
    """FLOPs of a forward pass over a sequence, averaged over its tokens.

    Two for each multiply-add of a matrix product; norms, softmax, rotary positions and activations are left out.

    1. Every weight matrix of the body is multiplied with once a token: 2 per parameter. Biases only add.
    2. So is the LM head, tied or not: 2 · vocab_size · hidden_size. The input embedding is a look-up.
    3. In each layer each query head multiplies its query with every key that it sees and its weights with every value:
       2 · 2 · head_dim for each. Attention is causal, and a sliding layer sees its window alone: token t of T sees t of
       them, or the window's; see `Context.visible`.

    Only what is seen counts, as that is what a model has to compute. Kernels that compute masked pairs as well do more,
    and ``torch.utils.flop_counter`` counts all T² pairs of each layer, masked or not, fused or not.
    """
    tokens = context.sequence_length

    def matrices(a: Architecture) -> int:
        body = (term for term in FAMILIES[a.family].terms(a) if term.kind == "body" and len(term.shape) == 2)
        return 2 * tokens * (sum(term.parameters for term in body) + a.vocab_size * a.hidden_size)

    return Cost(
        tensors=matrices,
        attention=lambda a: 4 * a.num_attention_heads * a.head_dim,
        sees=context.visible,
        tokens=tokens,
    )


def flops_per_token(architecture: Architecture, context: Context) -> int:
    """See `flops`; rounded up."""
    return flops(context)(architecture)


def kv_cache_bytes(context: Context, *, dtype: Dtype = SERVED_DTYPE) -> Cost:
    """Bytes that the cache holds after a sequence, averaged over its tokens: one key and one value per KV head, layer
    and token that is still seen. Without windows they are the same for every length.
    """
    return Cost(
        tensors=lambda _: 0,
        attention=lambda a: 2 * a.num_key_value_heads * a.head_dim * BYTES_PER_VALUE[dtype],
        sees=context.cached,
        tokens=context.sequence_length,
    )


def kv_cache_bytes_per_token(architecture: Architecture, context: Context, *, dtype: Dtype = SERVED_DTYPE) -> int:
    """See `kv_cache_bytes`; rounded up."""
    return kv_cache_bytes(context, dtype=dtype)(architecture)


@lru_cache(maxsize=2**16)  # candidates are shown again and again
def costs(architecture: Architecture, context: Context) -> Mapping[str, int]:
    """What is shown of an architecture beside its parameters, in the dtypes that it is exported and served in."""
    shown = {
        "flops_per_token": flops_per_token(architecture, context),
        "kv_cache_bytes_per_token": kv_cache_bytes_per_token(architecture, context),
        "kv_cache_bytes_per_token_float32": kv_cache_bytes_per_token(architecture, context, dtype=EXPORTED_DTYPE),
        "checkpoint_bytes": checkpoint_bytes(architecture),
        "checkpoint_bytes_bfloat16": checkpoint_bytes(architecture, dtype=SERVED_DTYPE),
    }
    return MappingProxyType(shown)


def checkpoint_bytes(architecture: Architecture, *, dtype: Dtype = EXPORTED_DTYPE) -> int:
    """Bytes of a checkpoint's tensors: what Hugging Face's weight index calls ``total_size``.

    Not counted are the file's own header (about 100 bytes a tensor), the config and the tokenizer.
    """
    return BYTES_PER_VALUE[dtype] * parameters(architecture)
