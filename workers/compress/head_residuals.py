"""The residual of pruned heads: something of a head that goes stays in one that is kept.

Of L heads, sorted by importance, the first K are kept (arXiv 2407.14679, section 2.3)::

    head_i  <-  head_i + (head_i - head_{2K-i+1})     for i = 2K-L+1, …, K

The least important kept head meets the most important pruned one, and so on outwards: each pruned head is met once.

- *Which heads*: under multi-head attention, those of a layer. Under grouped-query attention the query heads, as in the
  paper: they compete within their kept KV group, so L and K are numbers of queries a group.
- *Which i*: the paper writes [K-(L-K), K], but head 2K-i+1 of i = K-(L-K) would be number L+1; we begin one later. Then
  L-K = K is defined, which the paper's own 4 B model (24 heads of 48) needs. For L-K > K there are more pruned
  heads than kept ones, and nobody takes any in.
- *What a head is*: the weights and biases that compute its query, key and value, in the paper's words (section 2.1)
  head_i = Attn(X W^Q_i, X W^K_i, X W^V_i). Its columns of the output projection act on the heads' outputs and stay:
  with both changed, the formula would hold of neither product. So does the gain of a norm over queries (OLMo 2), which
  multiplies what the weights compute.
- *The sign* is the paper's: away from the pruned head. LaCo (arXiv 2402.11187), which it names as its source, adds the
  difference of the dropped one to the kept one; with a single partner that would be to swap them.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from search.architecture import Architecture
from search.selection import Indices, Selection
from workers.compress.importance import Importance
from workers.families.dimensions import Axis


def with_residuals(selection: Selection, importance: Importance, *, teacher: Architecture) -> Selection:
    """`selection`, each of its heads told whose residual it takes in; as it is where none takes any.

    Args:
        selection: of the highest scores.
        importance: the scores.
        teacher: the sizes of what is cut.
    """
    residual_heads = tuple(
        _of_layer(importance, layer, heads, teacher)
        for layer, heads in zip(selection.layers, selection.query_heads, strict=True)
    )
    return selection if residual_heads == selection.query_heads else replace(selection, residual_heads=residual_heads)


def residual_elements(selection: Selection, layer: int, teacher: Architecture) -> dict[Axis, Indices]:
    """Of the student's `layer`, whose residual each kept head takes in: what differs from what is kept."""
    partners = dict(zip(selection.query_heads[layer], selection.residual_heads[layer], strict=True))
    elements = {Axis.QUERY_HEAD: selection.residual_heads[layer]}
    if teacher.queries_per_group == 1:
        elements[Axis.KEY_VALUE_HEAD] = tuple(partners.get(head, head) for head in selection.key_value_heads[layer])
    return elements


def _of_layer(importance: Importance, layer: int, heads: Indices, teacher: Architecture) -> Indices:
    partners = {head: head for head in heads}
    for scores, first in _competitions(importance, layer, heads, teacher):
        ranked = (first + torch.sort(scores, descending=True, stable=True).indices).tolist()
        k = sum(head in partners for head in ranked)
        kept, pruned = ranked[:k], ranked[k:]
        if len(pruned) <= k:
            partners |= dict(zip(reversed(kept), pruned, strict=False))
    return tuple(partners[head] for head in heads)


def _competitions(
    importance: Importance, layer: int, heads: Indices, teacher: Architecture
) -> Iterator[tuple[Tensor, int]]:
    """Scores of heads that compete for being kept, and the number of the first of these heads."""
    size = teacher.queries_per_group
    if size == 1:
        yield importance.key_value_heads[layer], 0
        return
    for group in sorted({head // size for head in heads}):
        first = group * size
        yield importance.query_heads[layer, first : first + size], first
