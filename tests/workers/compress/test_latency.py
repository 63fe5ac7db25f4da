import time
from typing import Any

import pytest
import torch

from search.evaluation import LatencyRequest
from tests.support.families import random_teacher
from tests.support.llamas import logits_of, random_llama
from tests.workers.compress.test_family_scores import case_of
from workers.compress import latency
from workers.compress.latency import latency_metrics, measure_latency, timed
from workers.families import FAMILIES

WORKLOAD = LatencyRequest(batch_size=2, prompt_tokens=7, new_tokens=3, repeats=4)


def seen_by(model: Any, workload: LatencyRequest) -> list[torch.Tensor]:
    """What goes into the model, call by call."""
    calls: list[torch.Tensor] = []
    model.get_input_embeddings().register_forward_pre_hook(lambda _module, args: calls.append(args[0]))
    measure_latency(model, workload)
    return calls


def test_every_run_reads_the_prompts_and_generates_token_by_token() -> None:
    calls = seen_by(random_llama().model, WORKLOAD)
    assert [tuple(ids.shape) for ids in calls] == [(2, 7), (2, 1), (2, 1), (2, 1)] * (1 + WORKLOAD.repeats)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_generated_with_the_cache_is_what_is_generated_without(family: str) -> None:
    case = case_of(family)
    model = random_teacher({**case.config, **next(iter(case.variants.values()))}).model
    prompts, *generated = seen_by(model, LatencyRequest(batch_size=2, prompt_tokens=5, new_tokens=3, repeats=1))[:4]
    for ids in generated:
        assert torch.equal(ids[:, 0], logits_of(model, prompts)[:, -1].argmax(dim=-1))
        prompts = torch.cat([prompts, ids], dim=1)


def test_speeds_are_medians_of_all_sequences_and_spreads_are_relative(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = iter([(99.0, 99.0), (1.0, 4.0), (2.0, 6.0), (3.0, 8.0), (90.0, 8.0)])  # the first one warms up
    monkeypatch.setattr(latency, "_run", lambda *_: next(runs))
    assert measure_latency(random_llama().model, WORKLOAD) == {
        "prefill_tokens_per_s": 2 * 7 / 2.5,
        "prefill_spread": 89 / 2.5,
        "decode_tokens_per_s": 2 * 3 / 7,
        "decode_spread": 4 / 7,
    }


def test_a_clock_runs_while_something_is_done() -> None:
    def act() -> str:
        time.sleep(0.01)
        return "done"

    result, seconds = timed(act, torch.device("cpu"))
    assert result == "done"
    assert seconds >= 0.01


def test_metrics_are_named_apart_and_there_are_none_where_none_were_asked_for() -> None:
    model = random_llama().model
    assert latency_metrics(model, None) == {}
    metrics = latency_metrics(model, WORKLOAD)
    assert all(name.startswith("latency/") and value >= 0 for name, value in metrics.items())
    assert metrics["latency/decode_tokens_per_s"] > 0
