"""The size and cost of an architecture: closed forms over its family's terms, no model needed."""

from search.architecture import Architecture
from search.families import FAMILIES
from search.request import Basis


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


def flops_per_token(architecture: Architecture, *, sequence_length: int) -> int:
    """FLOPs of a forward pass, averaged over the tokens of a sequence and rounded down.

    Two for each multiply-add of a matrix product; norms, softmax, rotary positions and activations are left out.

    1. Every weight matrix of the body is multiplied with once a token: 2 per parameter. Biases only add.
    2. So is the LM head, tied or not: 2 · vocab_size · hidden_size. The input embedding is a look-up.
    3. In each layer each query head multiplies its query with every visible key and its weights with every visible
       value: 2 · 2 · head_dim for each. Attention is causal, so token t of T sees t of them, (T + 1) / 2 on average
       (a kernel that computes the masked half as well does about twice this part).
    """
    a = architecture
    terms = FAMILIES[a.family].terms(a)
    matrices = sum(term.parameters for term in terms if term.kind == "body" and len(term.shape) == 2)
    head = a.vocab_size * a.hidden_size
    attention = a.num_hidden_layers * a.num_attention_heads * a.head_dim * (sequence_length + 1)
    return 2 * (matrices + head + attention)


def kv_cache_bytes_per_token(architecture: Architecture, *, bytes_per_value: int = 2) -> int:
    """Bytes that generation keeps for each token: one key and one value per KV head and layer."""
    a = architecture
    return 2 * a.num_hidden_layers * a.num_key_value_heads * a.head_dim * bytes_per_value


#: Of a value in an exported checkpoint: students keep the float32 weights that they are trained with.
EXPORTED_BYTES_PER_VALUE = 4


def checkpoint_bytes(architecture: Architecture) -> int:
    """Bytes of an exported checkpoint's tensors: what Hugging Face's weight index calls ``total_size``.

    Not counted are the file's own header (about 100 bytes a tensor), the config and the tokenizer.
    """
    return EXPORTED_BYTES_PER_VALUE * parameters(architecture)
