from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from search.distillation import DistillationRequest
from search.evaluation import LatencyRequest
from tests.support.families import random_teacher
from tests.support.llamas import logits_of, random_llama, some_tokens
from tests.workers.compress.test_family_scores import case_of
from workers.compress.distill import Training
from workers.compress.evaluate import held_out, held_out_loss
from workers.compress.head import head_of
from workers.compress.latency import measure_latency
from workers.compress.modes import evaluating
from workers.compress.targets import LiveTargets
from workers.compress.tasks import Item, Passage, Task, judge
from workers.families import FAMILIES

WINDOWS = some_tokens(batch=4, length=9).int()
WORKLOAD = LatencyRequest(batch_size=2, prompt_tokens=5, new_tokens=2, repeats=1)
TEACHER = random_llama(seed=1).model
TASK = Task(kind="last_word", items=(Item(group="", passages=(Passage(tokens=(1, 2, 3), first=1),)),))

MEASUREMENTS: dict[str, Callable[[PreTrainedModel], object]] = {
    "latency": lambda model: measure_latency(model, WORKLOAD),
    "loss": lambda model: held_out_loss(model, WINDOWS, batch_windows=2),
    "divergence": lambda model: held_out(model, LiveTargets(TEACHER, WINDOWS), WINDOWS, batch_windows=2),
    "task": lambda model: judge(model, TASK, batch_tokens=64),
}


def modes_of(model: PreTrainedModel) -> dict[str, bool]:
    return {name: module.training for name, module in model.named_modules()}


def checkpointed(model: PreTrainedModel) -> Training:
    request = DistillationRequest(tokens=36, batch_tokens=18, activation_checkpointing=True, learning_rate=1e-3)
    return Training(model, LiveTargets(TEACHER, WINDOWS), WINDOWS, request, seed=0)


def test_modes_come_back_module_by_module() -> None:
    model = random_llama().model
    model.model.layers[1].training = True
    model.model.norm.train()
    before = modes_of(model)
    with evaluating(model, but=[model.model.layers[0]]):
        assert [name for name, training in modes_of(model).items() if training] == ["model.layers.0"]
    assert modes_of(model) == before


def test_modes_come_back_where_what_was_measured_fails() -> None:
    model = random_llama().model
    model.train()
    with pytest.raises(ZeroDivisionError), evaluating(model):
        _ = 1 // 0
    assert all(modes_of(model).values())


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_a_measurement_runs_in_evaluation_mode_and_leaves_the_model_as_it_was(name: str) -> None:
    model = random_llama().model
    seen: set[bool] = set()
    model.model.layers[0].train()
    before = modes_of(model)
    model.model.layers[0].register_forward_pre_hook(lambda *_: seen.update(modes_of(model).values()))
    MEASUREMENTS[name](model)
    assert seen == {False}
    assert modes_of(model) == before


def test_a_run_that_was_measured_goes_on_computing_its_layers_again() -> None:
    """What measures calls `eval()`, lm-evaluation-harness among it."""
    model: PreTrainedModel = random_llama().model.requires_grad_()
    calls: list[None] = []
    training = checkpointed(model)
    model.get_submodule("model.layers.0.mlp").register_forward_pre_hook(lambda *_: calls.append(None))
    training.advance(1)
    assert len(calls) == 2
    model.eval()  # type: ignore[no-untyped-call]
    training.advance(2)
    assert len(calls) == 4
    assert not any(modes_of(model).values())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_whose_layers_were_computed_again_keeps_its_cache_and_decodes_greedily(family: str) -> None:
    case = case_of(family)
    model = random_teacher({**case.config, **next(iter(case.variants.values()))}).model.requires_grad_()
    windows = torch.randint(3, model.config.vocab_size, (4, 9), generator=torch.Generator().manual_seed(0)).int()
    request = DistillationRequest(tokens=18, batch_tokens=18, activation_checkpointing=True, learning_rate=1e-4)
    Training(model, LiveTargets(model, windows), windows, request, seed=0).advance(1)
    ids: Tensor = windows[:1, :6].long()
    with torch.inference_mode():
        output = model.base_model(input_ids=ids, use_cache=True)
        assert output.past_key_values.get_seq_length() == 6
        made = model.generate(
            ids,  # type: ignore[operator]  # which torch's __getattr__ hides
            max_new_tokens=3,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
        )
    for _ in range(3):
        ids = torch.cat([ids, logits_of(model, ids)[:, -1:].argmax(dim=-1)], dim=1)
    assert torch.equal(made, ids)
    assert head_of(model).weight_VH.requires_grad
