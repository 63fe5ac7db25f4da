"""How fast a model reads a prompt and generates after it.

Legend: B sequences, P tokens of a prompt.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from search.evaluation import LatencyRequest
from workers.compress.head import head_of
from workers.compress.modes import evaluating


@torch.inference_mode()
def measure_latency(model: PreTrainedModel, workload: LatencyRequest) -> Mapping[str, float]:
    """Speed by median over `workload.repeats` timed runs, after one to warm up, on the model's device and in its dtype.

    A run reads B random prompts and keeps the KV cache (prefill), then takes the likeliest token after each and feeds
    it back, until there are ``new_tokens`` (decode). The first of them comes from the prompt, so decode is
    ``new_tokens`` steps that each *read* one token. Only the last position's logits are computed, as in serving.

    Returns:
        ``prefill_tokens_per_s`` and ``decode_tokens_per_s``, of all B sequences together; ``prefill_spread`` and
        ``decode_spread``, the range of the times over their median; on CUDA ``peak_memory_bytes``: of the model's
        parameters and all that a run needs besides.
    """
    device = model.device
    generator = torch.Generator().manual_seed(0)
    shape = (workload.batch_size, workload.prompt_tokens)
    prompts_BP = torch.randint(model.config.vocab_size, shape, generator=generator).to(device)
    before = _begin_memory(device)
    with evaluating(model):
        runs = [_run(model, prompts_BP, workload.new_tokens) for _ in range(workload.repeats + 1)][1:]
    prefill, decode = ([run[part] for run in runs] for part in (0, 1))
    return {
        "prefill_tokens_per_s": prompts_BP.numel() / median(prefill),
        "prefill_spread": _spread(prefill),
        "decode_tokens_per_s": workload.batch_size * workload.new_tokens / median(decode),
        "decode_spread": _spread(decode),
        **_peak_memory(model, before),
    }


def _run(model: PreTrainedModel, prompts_BP: Tensor, new_tokens: int) -> tuple[float, float]:
    """Seconds of prefill and of decode."""
    head, cache = head_of(model), None

    def step(ids: Tensor) -> Tensor:
        nonlocal cache
        output = model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        return head(output.last_hidden_state[:, -1:]).argmax(dim=-1)

    def generate() -> None:
        ids = first
        for _ in range(new_tokens):
            ids = step(ids)

    first, prefill = timed(lambda: step(prompts_BP), model.device)
    _, decode = timed(generate, model.device)
    return prefill, decode


def timed(act: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """What `act` returns, and its seconds: by CUDA events on a GPU, so that what was queued before does not count."""
    if device.type != "cuda":
        start = time.perf_counter()
        result = act()
        return result, time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    result = act()
    end.record()
    torch.cuda.synchronize(device)
    return result, begin.elapsed_time(end) / 1_000


def _spread(seconds: Sequence[float]) -> float:
    return (max(seconds) - min(seconds)) / median(seconds)


def _begin_memory(device: torch.device) -> int:
    """Bytes that are allocated now, where the device tells."""
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _peak_memory(model: PreTrainedModel, before: int) -> Mapping[str, float]:
    if model.device.type != "cuda":
        return {}
    own = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return {"peak_memory_bytes": float(own + torch.cuda.max_memory_allocated(model.device) - before)}


def latency_metrics(model: PreTrainedModel, workload: LatencyRequest | None) -> dict[str, float]:
    """As `search.records.Measurement` names them; none where none were asked for."""
    measured = measure_latency(model, workload) if workload else {}
    return {f"latency/{name}": value for name, value in measured.items()}
