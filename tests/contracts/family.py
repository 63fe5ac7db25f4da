"""What every model family keeps to: both halves, the one that counts and the one that cuts, against the stock model."""

import shutil
from abc import ABC
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from search.architecture import AXES, Architecture
from search.budget import Budget
from search.checkpoint import by_name_in_file, expected_shapes
from search.context import Context
from search.counting import Dtype, flops, kv_cache_bytes, parameters
from search.errors import IllegalArchitecture, InvalidInput, UnknownAttribute, UnusableTeacher
from search.families import FAMILIES
from search.families.base import Family
from search.request import BudgetRequest, SpaceRequest
from search.selection import Selection
from search.sources import resolve_teacher
from search.space import SearchSpace
from tests.support.families import (
    cut,
    cuts,
    cuts_with_residuals,
    exact,
    legal_widths,
    random_importance,
    random_teacher,
    silenced,
    student_of,
    with_residual_heads,
)
from tests.support.llamas import logits_of, some_tokens
from workers.compress.head import head_of
from workers.compress.importance import score
from workers.compress.model import build_model
from workers.compress.slicing import select, slice_tensors
from workers.compress.states import StateReader
from workers.compress.teacher import Teacher, load_teacher
from workers.compress.workbench import build_student
from workers.export import WEIGHTS, write_companions, write_weights
from workers.families import FAMILIES as TORCH_FAMILIES
from workers.families.dimensions import Axis, Each, entries

TOKENS = some_tokens()

#: What stock classes call a layer's attention.
_ATTENTIONS = ("self_attn", "attention", "attn")

#: Longer than any case's window.
LONG = some_tokens(batch=1, length=16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What a family is held to."""

    #: A tiny model's complete config.
    config: Mapping[str, Any]
    #: Changes to it that cover what the stock class offers: multi-head, grouped and multi-query attention, tied and
    #: untied embeddings, biases on and off, heads that are not hidden_size wide together, windows and caps.
    variants: Mapping[str, Mapping[str, Any]]
    #: Published models: ``config.json`` and the number of parameters.
    published: Mapping[str, tuple[Mapping[str, Any], int]]


class FamilyContract(ABC):
    """Subclasses give a `case`; their folder a fixture `tokenizer`, a directory with one."""

    case: ClassVar[Case]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        for fixture, names in (("variant", self.case.variants), ("model", self.case.published)):
            if fixture in metafunc.fixturenames:
                metafunc.parametrize(fixture, list(names))

    @pytest.fixture
    def family(self) -> Family:
        return FAMILIES[self.case.config["model_type"]]

    @pytest.fixture
    def teacher_config(self, variant: str) -> dict[str, Any]:
        return {**self.case.config, **self.case.variants[variant]}

    @pytest.fixture
    def teacher(self, teacher_config: dict[str, Any]) -> Teacher:
        return random_teacher(teacher_config)

    # --- counting ---------------------------------------------------------------------------------------------------

    def test_what_is_counted_is_what_is_built(self, family: Family, teacher_config: dict[str, Any]) -> None:
        teacher = family.parse(teacher_config)
        widths = legal_widths(teacher)

        @settings(max_examples=20, deadline=None)
        @given(st.data())
        def check(data: st.DataObject) -> None:
            layers = sorted(data.draw(st.sets(st.integers(0, teacher.num_hidden_layers - 1), min_size=1)))
            smaller = teacher.with_axes(
                num_hidden_layers=len(layers),
                intermediate_size=data.draw(st.integers(1, teacher.intermediate_size)),
                **data.draw(st.sampled_from(widths)),
            )
            config = family.config(smaller, teacher_config, layers=layers)
            assert family.parse(config) == smaller
            shapes = {name: tuple(tensor.shape) for name, tensor in on_meta(config).named_parameters()}
            assert expected_shapes(smaller) == shapes

        check()

    def test_a_published_model_has_its_published_parameters(self, family: Family, model: str) -> None:
        config, published = self.case.published[model]
        assert parameters(family.parse(config)) == published
        assert sum(tensor.numel() for tensor in on_meta(dict(config)).parameters()) == published

    def test_half_of_a_published_model_is_within_reach_of_its_default_space(self, family: Family, model: str) -> None:
        teacher = family.parse(self.case.published[model][0])
        space = SearchSpace.from_request(teacher, SpaceRequest())
        assert {axis: values[-1] for axis, values in space.axes.items()} == teacher.axes
        half = Budget.from_request(BudgetRequest(ratio=0.5), teacher_parameters=parameters(teacher))
        points = space.within(half).points
        assert len(points) >= 20
        assert all(family.illegal(point) is None for point in points)
        for axis in ("num_hidden_layers", "hidden_size", "num_attention_heads"):
            assert len({getattr(point, axis) for point in points}) >= 3, axis

    def test_flops_are_what_the_counter_sees_but_for_masked_pairs(
        self, family: Family, teacher_config: dict[str, Any]
    ) -> None:
        """The counter takes all T² pairs of each layer; how many of them are masked is read off the stock masks."""
        for student in students(family, teacher_config):
            a, model = student.architecture, stock_model(student.config)
            with FlopCounterMode(display=False) as counter, torch.no_grad(), masks_of(model) as masks:
                model(LONG, use_cache=False)
            masked = 4 * a.num_attention_heads * a.head_dim * sum(int((mask != 0).sum()) for mask in masks)
            assert flops(student.context).total(a) == counter.get_total_flops() - masked
            for mask, window in zip(masks, student.windows, strict=True):
                assert (mask == 0).sum() == replace(student.context, windows=(window,)).visible(1)

    def test_the_kv_cache_is_what_generation_holds(self, family: Family, teacher_config: dict[str, Any]) -> None:
        prompt = LONG[:, :8]
        new_tokens = LONG.shape[1] - 8 + 1  # the last one is not read
        dtypes: tuple[Dtype, ...] = ("float32", "bfloat16")
        for student, dtype in zip(students(family, teacher_config), dtypes, strict=True):
            model: Any = stock_model(student.config).to(getattr(torch, dtype))  # transformers' types are its own
            generated = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=False,
                min_new_tokens=new_tokens,
                max_new_tokens=new_tokens,
                return_dict_in_generate=True,
            )
            held = sum(layer.keys.nbytes + layer.values.nbytes for layer in generated.past_key_values.layers)
            assert kv_cache_bytes(student.context, dtype=dtype).total(student.architecture) == held

    def test_a_layer_keeps_its_window_and_a_proposal_counts_the_dearest(
        self, family: Family, teacher_config: dict[str, Any]
    ) -> None:
        whole, smaller = students(family, teacher_config)
        assert smaller.windows == whole.windows[1:]
        for cost in (flops, kv_cache_bytes):
            proposed = cost(whole.context).total(smaller.architecture)
            kept = cost(whole.context.keeping(range(1, len(whole.windows)))).total(smaller.architecture)
            assert kept == cost(smaller.context).total(smaller.architecture) <= proposed

    def test_a_window_that_is_no_size_is_refused_where_a_layer_has_it(
        self, family: Family, teacher_config: dict[str, Any]
    ) -> None:
        for value in ("5", 0, 2.5):
            config = teacher_config | {"sliding_window": value}
            if family.windows(teacher_config):
                with pytest.raises(IllegalArchitecture, match="sliding_window"):
                    family.parse(config)
            assert family.windows(config) == ()  # configs that are stored are read all the same

    # --- configs ----------------------------------------------------------------------------------------------------

    def test_a_config_comes_back_as_it_was(self, family: Family, teacher_config: dict[str, Any]) -> None:
        assert round_trip(family, teacher_config) == teacher_config

    def test_a_published_config_comes_back_as_it_was(self, family: Family, model: str) -> None:
        config, _ = self.case.published[model]
        assert round_trip(family, config) == config

    def test_what_the_stock_class_writes_comes_back_as_it_was(
        self, family: Family, teacher_config: dict[str, Any]
    ) -> None:
        config: dict[str, Any] = stock_config(teacher_config).to_dict()
        assert family.parse(config) == family.parse(teacher_config)
        assert round_trip(family, config) == config

    def test_an_absent_attribute_is_the_config_classs_default_or_refused(
        self, family: Family, teacher_config: dict[str, Any]
    ) -> None:
        for name in teacher_config.keys() - {"model_type"}:
            config = {key: value for key, value in teacher_config.items() if key != name}
            try:
                architecture = family.parse(config)
            except IllegalArchitecture:
                continue
            shapes = {name: tuple(tensor.shape) for name, tensor in on_meta(config).named_parameters()}
            assert expected_shapes(architecture) == shapes, name

    def test_an_attribute_that_nobody_understands_is_quoted_with_its_value(
        self, family: Family, teacher_config: dict[str, Any]
    ) -> None:
        config = teacher_config | {"num_local_experts": 3}
        with pytest.raises(UnknownAttribute, match="'num_local_experts': 3"):
            family.parse(config)
        assert family.parse(config, ignore=["num_local_experts"]) == family.parse(teacher_config)

    def test_an_attribute_that_no_stock_code_reads_passes(self, family: Family, teacher_config: dict[str, Any]) -> None:
        assert family.parse(teacher_config | {"num_moons": 3}) == family.parse(teacher_config)

    @pytest.mark.parametrize("value", ["7", 7.5, -1, True, [7], {}])
    def test_an_understood_attribute_of_any_type_never_reaches_a_stack_trace(self, family: Family, value: Any) -> None:
        for name in self.case.config:
            config = {**self.case.config, name: value}
            try:
                architecture = family.parse(config)
            except InvalidInput:
                continue
            layers = range(architecture.num_hidden_layers)
            assert family.config(architecture, config, layers=layers) == config, name

    def test_every_axis_is_described(self, family: Family) -> None:
        prunable = [axis.name for axis in family.axes if axis.prunable]
        assert [axis for axis in AXES if axis in prunable] == prunable
        assert all(axis.description for axis in family.axes)

    # --- the table --------------------------------------------------------------------------------------------------

    def test_the_table_lists_the_tensors_that_are_counted(self, family: Family) -> None:
        counted: set[str] = set()
        for changes in self.case.variants.values():
            architecture = family.parse({**self.case.config, **changes})
            counted |= {term.name for term in family.terms(architecture)}
        assert TORCH_FAMILIES[family.model_type].dimensions.keys() == counted

    def test_a_dimension_is_as_long_as_its_elements_take(self, teacher: Teacher) -> None:
        a = teacher.architecture
        everything = {axis: range(getattr(a, axis.value)) for axis in Axis}
        for term in FAMILIES[a.family].terms(a):
            dimensions = teacher.family.dimensions[term.name]
            assert len(dimensions) == len(term.shape), term.name
            for dimension, size in zip(dimensions, term.shape, strict=True):
                found = entries(dimension, everything, a)
                assert found is None or found == list(range(size)), term.name

    def test_a_permuted_teacher_computes_the_same(self, teacher: Teacher) -> None:
        a = teacher.architecture
        generator = torch.Generator().manual_seed(3)
        groups = torch.randperm(a.num_key_value_heads, generator=generator)
        within = torch.randperm(a.queries_per_group, generator=generator)
        order = {
            Axis.HIDDEN: torch.randperm(a.hidden_size, generator=generator).tolist(),
            Axis.NEURON: torch.randperm(a.intermediate_size, generator=generator).tolist(),
            Axis.KEY_VALUE_HEAD: groups.tolist(),
            Axis.QUERY_HEAD: (groups[:, None] * a.queries_per_group + within).flatten().tolist(),
        }
        permuted = {
            name: permute(teacher.tensors[name], [entries(dimension, order, a) for dimension in dimensions])
            for template, dimensions in teacher.family.dimensions.items()
            for layer in range(a.num_hidden_layers)
            if (name := template.format(layer=layer)) in teacher.tensors
        }
        model = exact(build_model(teacher.config, permuted, dtype=torch.float64))
        close(logits_of(model, TOKENS), logits_of(teacher.model, TOKENS), 1e-10)

    # --- slicing ----------------------------------------------------------------------------------------------------

    def test_keeping_everything_is_the_teacher_bit_for_bit(self, teacher: Teacher) -> None:
        a = teacher.architecture
        selection = select(random_importance(a), a, teacher=a)
        assert selection == Selection.identity(a)
        tensors = cut(teacher, selection)
        assert tensors.keys() == teacher.tensors.keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, teacher.tensors[name])
            assert tensor.data_ptr() != teacher.tensors[name].data_ptr()  # training it leaves the teacher alone
        plain = build_model(teacher.config, teacher.tensors, dtype=torch.float64)
        student = build_model(round_trip(FAMILIES[a.family], teacher.config), tensors, dtype=torch.float64)
        assert torch.equal(logits_of(student, TOKENS), logits_of(plain, TOKENS))

    def test_cutting_is_silencing(self, teacher: Teacher) -> None:
        a = teacher.architecture
        whole = logits_of(teacher.model, TOKENS)
        with silenced(teacher, Selection.identity(a)):
            close(logits_of(teacher.model, TOKENS), whole, 1e-10)
        for cut_axis, smaller in cuts(a).items():
            selection = select(random_importance(a), smaller, teacher=a)
            with silenced(teacher, selection):
                expected = logits_of(teacher.model, TOKENS)
            assert (expected - whole).abs().max() > 1e-3, cut_axis
            assert {name: tuple(t.shape) for name, t in cut(teacher, selection).items()} == expected_shapes(smaller)
            assert all(tensor.is_contiguous() for tensor in cut(teacher, selection).values())
            close(logits_of(student_of(teacher, smaller, selection), TOKENS), expected, 1e-9)

    def test_residuals_are_the_whole_model_with_the_kept_heads_changed(self, teacher: Teacher) -> None:
        a = teacher.architecture
        importance = random_importance(a)
        for smaller in cuts_with_residuals(a):
            selection = select(importance, smaller, teacher=a, head_residuals=True)
            plain = replace(selection, residual_heads=())
            assert plain == select(importance, smaller, teacher=a)
            student = logits_of(student_of(teacher, smaller, selection), TOKENS)
            assert (student - logits_of(student_of(teacher, smaller, plain), TOKENS)).abs().max() > 1e-3
            changed = with_residual_heads(teacher, importance, plain)
            with silenced(changed, plain):
                close(student, logits_of(changed.model, TOKENS), 1e-9)

    def test_every_layer_can_be_dropped(self, teacher: Teacher) -> None:
        """A layer's kind of attention goes with it, wherever it then stands."""
        a = teacher.architecture
        for dropped in range(a.num_hidden_layers):
            kept = tuple(layer for layer in range(a.num_hidden_layers) if layer != dropped)
            selection = without_layers(a, kept)
            smaller = a.with_axes(num_hidden_layers=len(kept))
            with silenced(teacher, selection):
                expected = logits_of(teacher.model, TOKENS)
            close(logits_of(student_of(teacher, smaller, selection), TOKENS), expected, 1e-9)

    def test_cutting_twice_is_cutting_once(self, teacher: Teacher) -> None:
        a = teacher.architecture
        middle = cuts(a)["together"]
        first = select(random_importance(a), middle, teacher=a)
        small = cuts(middle)["together"]
        second = select(random_importance(middle, seed=5), small, teacher=middle)
        twice = slice_tensors(cut(teacher, first), second, teacher.family, teacher=middle)
        once = cut(teacher, composed(first, second))
        assert twice.keys() == once.keys()
        for name, tensor in once.items():
            if teacher.family.embeddings_times_root_hidden:  # two factors of √ against one
                close(twice[name], tensor, 1e-12)
            else:
                assert torch.equal(twice[name], tensor), name

    # --- around it --------------------------------------------------------------------------------------------------

    def test_the_head_gives_the_stock_models_logits(self, teacher: Teacher) -> None:
        with torch.no_grad():
            hidden = teacher.model.base_model(input_ids=TOKENS, use_cache=False).last_hidden_state
            close(head_of(teacher.model)(hidden), logits_of(teacher.model, TOKENS), 1e-12)

    def test_where_importance_is_read_is_what_it_is_called(self, teacher: Teacher) -> None:
        """Every norm over the channels and no other; the activation function of all neurons, not a layer beside it."""
        a, family = teacher.architecture, teacher.family
        over_channels = [name for name, dimensions in family.dimensions.items() if dimensions == (Each(Axis.HIDDEN),)]
        norms = {name.removesuffix(".weight") for name in over_channels if name.endswith(".weight")}
        assert {*family.layer_norms, family.final_norm} == norms
        widths: list[int] = []
        for layer in range(a.num_hidden_layers):
            activation = teacher.model.get_submodule(family.mlp_activation.format(layer=layer))
            assert not list(activation.parameters())
            activation.register_forward_pre_hook(lambda _module, args: widths.append(args[0].shape[-1]))
        logits_of(teacher.model, TOKENS)
        assert widths == [a.intermediate_size] * a.num_hidden_layers

    def test_states_are_what_the_next_blocks_attention_reads(self, teacher: Teacher) -> None:
        layers = teacher.architecture.num_hidden_layers
        read: dict[str, Tensor] = {}

        def see(state: str, entering: Tensor) -> None:
            read[state] = entering

        for state, layer in (("embedding_output", 0), ("block_output", max(0, layers - 3) + 1)):
            projection = teacher.model.get_submodule(teacher.family.head_projections[0].format(layer=layer))
            projection.register_forward_pre_hook(lambda _module, args, state=state: see(state, args[0]))
        with torch.no_grad():
            outputs = StateReader(teacher.model, teacher.family, ("block_output", "embedding_output"))(TOKENS)
        assert outputs.inside.keys() == read.keys()
        for state, entering in read.items():
            close(outputs.inside[state], entering, 1e-12)  # type: ignore[index]

    def test_importance_is_read_where_the_table_says(self, teacher: Teacher) -> None:
        importance = score(teacher, TOKENS, batch_windows=2)
        shapes = {name: scores.shape for name, scores in random_importance(teacher.architecture).tensors.items()}
        assert {name: scores.shape for name, scores in importance.tensors.items()} == shapes
        assert all(bool(scores.isfinite().all()) for scores in importance.tensors.values())
        assert all(float(scores.std()) > 0 for scores in importance.tensors.values() if scores.shape[-1] > 1)

    # --- files ------------------------------------------------------------------------------------------------------

    def test_what_save_pretrained_wrote_ends_as_what_from_pretrained_reads(
        self, teacher_config: dict[str, Any], tmp_path: Path, tokenizer: Path
    ) -> None:
        teacher = self.stored(teacher_config, tmp_path, tokenizer)
        smaller = cuts(teacher.architecture)["together"]
        selection = select(random_importance(teacher.architecture), smaller, teacher=teacher.architecture)
        student = build_student(teacher, smaller, selection)
        out = tmp_path / "student"
        out.mkdir()
        write_weights(out, by_name_in_file(cut(teacher, selection), smaller).items())
        write_companions(out, smaller, selection, teacher=teacher.path, teacher_config=teacher.config)
        attention = student.config._attn_implementation
        loaded: Any = AutoModelForCausalLM.from_pretrained(out, attn_implementation=attention, output_loading_info=True)
        plain, report = loaded
        assert not any(report.values()), report
        assert torch.equal(logits_of(plain, TOKENS), logits_of(student, TOKENS))
        plain.save_pretrained(tmp_path / "again")
        assert load_file(tmp_path / "again" / WEIGHTS).keys() == load_file(out / WEIGHTS).keys()
        assert AutoTokenizer.from_pretrained(out)("the fox").input_ids
        generated = plain.generate(
            TOKENS,
            attention_mask=torch.ones_like(TOKENS),
            min_new_tokens=6,
            max_new_tokens=6,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        rerun = logits_of(plain, generated.sequences)[:, TOKENS.shape[1] - 1 : -1]
        close(torch.stack(generated.logits, dim=1), rerun, 1e-3)

    def test_a_file_of_the_class_without_a_head_is_read_where_the_head_is_tied(
        self, teacher_config: dict[str, Any], tmp_path: Path
    ) -> None:
        """Stock `from_pretrained` puts the missing prefix before the names, and draws a missing head at random."""
        teacher = random_teacher(teacher_config, dtype=torch.float32)
        write_stock(teacher.model.base_model, tmp_path / "teacher")
        source = resolve_teacher("teacher", [tmp_path])
        assert not any(name in teacher.tensors for name in source.tensors)
        if teacher.architecture.tie_word_embeddings:
            tensors = load_teacher(source).tensors
            assert tensors.keys() == teacher.tensors.keys()
            assert all(torch.equal(tensor, teacher.tensors[name]) for name, tensor in tensors.items())
        else:
            head = FAMILIES[teacher.architecture.family].name_in_file("lm_head.weight")
            with pytest.raises(UnusableTeacher, match=head):
                load_teacher(source)

    def test_a_head_by_the_name_that_it_has_in_memory_is_read_too(
        self, teacher_config: dict[str, Any], tmp_path: Path
    ) -> None:
        teacher = random_teacher(teacher_config, dtype=torch.float32)
        path = tmp_path / "teacher"
        write_stock(teacher.model, path)
        save_file(dict(teacher.tensors), path / WEIGHTS, metadata={"format": "pt"})
        tensors = load_teacher(resolve_teacher("teacher", [tmp_path])).tensors
        assert all(torch.equal(tensors[name], tensor) for name, tensor in teacher.tensors.items())

    def stored(self, config: dict[str, Any], folder: Path, tokenizer: Path) -> Teacher:
        """A teacher of `config` in a directory of its own, written by the stock class and loaded from there."""
        path = folder / "teacher"
        shutil.copytree(tokenizer, path)
        write_stock(random_teacher(config, dtype=torch.float32).model, path)
        return load_teacher(resolve_teacher("teacher", [folder]))


def write_stock(model: Any, path: Path) -> None:
    """What the stock class writes, and an empty tokenizer where there is none yet."""
    model.save_pretrained(path)
    if not (path / "tokenizer.json").exists():
        (path / "tokenizer.json").write_text("{}")


def stock_config(config: Mapping[str, Any]) -> Any:
    """The stock class's config, without special tokens outside a tiny vocabulary."""
    tokens = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    return CONFIG_MAPPING[config["model_type"]].from_dict({**config, **tokens})


def on_meta(config: Mapping[str, Any]) -> PreTrainedModel:
    """The stock model, without memory."""
    hf_config = stock_config(config)
    with torch.device("meta"):
        # transformers leaves it unannotated
        model: PreTrainedModel = AutoModelForCausalLM.from_config(hf_config)  # type: ignore[no-untyped-call]
    return model


def stock_model(config: Mapping[str, Any]) -> PreTrainedModel:
    """The stock model, its attention two plain matrix products, which can be counted."""
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        stock_config(config), attn_implementation="eager"
    )
    return model.eval()  # type: ignore[no-untyped-call, no-any-return]


class Student(NamedTuple):
    """A stock model, and what its costs depend on."""

    config: dict[str, Any]
    architecture: Architecture
    context: Context

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Of each layer."""
        return self.context.windows or (None,) * self.architecture.num_hidden_layers


def students(family: Family, teacher_config: Mapping[str, Any]) -> list[Student]:
    """The teacher, and what is left of it without its first layer."""
    teacher = family.parse(teacher_config)
    found = []
    for first in (0, 1):
        layers = range(first, teacher.num_hidden_layers)
        architecture = teacher.with_axes(num_hidden_layers=len(layers))
        config = family.config(architecture, teacher_config, layers=layers)
        context = Context(sequence_length=LONG.shape[1], windows=family.windows(config))
        found.append(Student(config, architecture, context))
    return found


@contextmanager
def masks_of(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """What each layer's attention is masked by in the passes inside the block: (1, 1, T, T), 0 where it sees."""
    masks: list[Tensor] = []

    def keep(_module: nn.Module, _args: Any, given: dict[str, Any]) -> None:
        masks.append(given["attention_mask"])

    attentions = [module for name, module in model.named_modules() if name.rpartition(".")[2] in _ATTENTIONS]
    handles = [module.register_forward_pre_hook(keep, with_kwargs=True) for module in attentions]
    try:
        yield masks
    finally:
        for handle in handles:
            handle.remove()


def round_trip(family: Family, config: Mapping[str, Any]) -> dict[str, Any]:
    architecture = family.parse(config)
    return family.config(architecture, config, layers=range(architecture.num_hidden_layers))


def close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def permute(tensor: Tensor, orders: list[list[int] | None]) -> Tensor:
    for dimension, order in enumerate(orders):
        if order is not None:
            tensor = tensor.index_select(dimension, torch.tensor(order))
    return tensor


def without_layers(a: Architecture, kept: tuple[int, ...]) -> Selection:
    whole = Selection.identity(a)
    return Selection(
        layers=kept,
        hidden_channels=whole.hidden_channels,
        neurons=tuple(whole.neurons[layer] for layer in kept),
        key_value_heads=tuple(whole.key_value_heads[layer] for layer in kept),
        query_heads=tuple(whole.query_heads[layer] for layer in kept),
    )


def composed(first: Selection, second: Selection) -> Selection:
    """What is left after both, by the first teacher's indices."""

    def through(lists: tuple[tuple[int, ...], ...], then: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
        pairs = zip(second.layers, then, strict=True)
        return tuple(tuple(lists[layer][index] for index in kept) for layer, kept in pairs)

    return Selection(
        layers=tuple(first.layers[layer] for layer in second.layers),
        hidden_channels=tuple(first.hidden_channels[channel] for channel in second.hidden_channels),
        neurons=through(first.neurons, second.neurons),
        key_value_heads=through(first.key_value_heads, second.key_value_heads),
        query_heads=through(first.query_heads, second.query_heads),
    )
