import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from search.checkpoint import Fingerprint
from search.context import Context
from search.counting import flops_per_token, kv_cache_bytes_per_token, non_embedding_parameters, parameters
from search.errors import UnusableTeacher
from search.planning import feasible_sets
from search.records import SearchRecord
from search.selection import Selection
from search.serialization import to_json
from search.sources import resolve_teacher
from search.spec import SPEC_VERSION, Recipe, Spec, SpecTeacher
from tests.support.homes import REPOSITORY, Home
from tests.support.llamas import some_tokens
from workers.apply import apply, main, narrow
from workers.compress.checkpoint import fingerprint, parameters_of
from workers.compress.importance import score
from workers.compress.slicing import select
from workers.compress.teacher import Teacher, load_teacher
from workers.compress.workbench import build_student
from workers.export import WEIGHTS


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def home(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("home"), tie_word_embeddings=request.param, mlp_bias=request.param)


@pytest.fixture(scope="module")
def teacher(home: Home) -> Teacher:
    return load_teacher(resolve_teacher("tiny", [home.models]))


def identity_of(path: Path, teacher: Teacher) -> Fingerprint:
    source = resolve_teacher(path.name, [path.parent])
    return fingerprint(source, parameters_of(source, teacher.architecture))


def spec_of(home: Home, teacher: Teacher, search: SearchRecord, selection: Selection, **sizes: int) -> Spec:
    architecture = teacher.architecture.with_axes(**sizes)
    request = search.request
    identity = identity_of(home.models / "tiny", teacher)
    return Spec(
        spec_version=SPEC_VERSION,
        search_id=search.id,
        candidate_id="c-0",
        teacher=SpecTeacher(
            model="tiny",
            digest=identity.digest,
            fingerprint=identity,
            parameters=search.teacher.parameters,
            metrics={},
            ignored_attributes=(),
        ),
        budget=search.budgets[0],
        architecture=architecture,
        config={},
        selection=selection,
        parameters=parameters(architecture),
        non_embedding_parameters=non_embedding_parameters(architecture),
        flops_per_token=flops_per_token(architecture, Context(sequence_length=32)),
        kv_cache_bytes_per_token=kv_cache_bytes_per_token(architecture, Context(sequence_length=32)),
        measurements=(),
        recipe=Recipe(loss="forward_kl", distillation=request.distillation, data=request.data, data_digest="", seed=0),
        checkpoint_artifact="",
        environment={},
    )


@pytest.fixture(scope="module")
def pruned(home: Home, teacher: Teacher) -> Spec:
    """The spec of a candidate that a search might propose, and that drops a layer."""
    search = home.search()
    (feasible,) = feasible_sets(search)
    architecture = next(point for point in feasible.points if point.num_hidden_layers == 2)
    windows = some_tokens(batch=4, length=32, vocab_size=architecture.vocab_size)
    selection = select(score(teacher, windows, batch_windows=4), architecture, teacher=teacher.architecture)
    return spec_of(home, teacher, search, selection, **architecture.axes)


def write(spec: Spec, path: Path, **changes: Any) -> str:
    path.write_text(json.dumps({**to_json(spec), **changes}))
    return str(path)


def test_the_pruned_checkpoint_is_what_the_search_began_to_distil_bit_for_bit(
    home: Home, teacher: Teacher, pruned: Spec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main([write(pruned, tmp_path / "s.json"), "--teacher", str(home.models / "tiny"), "--out", str(out)]) == 0
    assert f"{pruned.parameters:,} parameters" in capsys.readouterr().out
    student = build_student(teacher, pruned.architecture, pruned.selection)
    rebuilt, expected = load_file(out / "model.safetensors"), dict(student.named_parameters())
    assert rebuilt.keys() == expected.keys()
    assert all(torch.equal(rebuilt[name], tensor) for name, tensor in expected.items())


def test_what_it_writes_loads_in_plain_transformers(home: Home, pruned: Spec, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main([write(pruned, tmp_path / "s.json"), "--teacher", str(home.models / "tiny"), "--out", str(out)]) == 0
    loaded: Any = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    model, report = loaded
    assert not any(report.values()), report
    assert model.num_parameters() == pruned.parameters
    assert AutoTokenizer.from_pretrained(out).bos_token_id == 0


def test_the_spec_that_keeps_everything_is_the_teacher(home: Home, teacher: Teacher, tmp_path: Path) -> None:
    whole = spec_of(home, teacher, home.search(), Selection.identity(teacher.architecture))
    out = tmp_path / "out"
    assert main([write(whole, tmp_path / "s.json"), "--teacher", str(home.models / "tiny"), "--out", str(out)]) == 0
    rebuilt, original = (load_file(path / "model.safetensors") for path in (out, home.models / "tiny"))
    assert rebuilt.keys() == original.keys()
    assert all(torch.equal(rebuilt[name], tensor) for name, tensor in original.items())


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], out: Path) -> str:
    """The message of a command that ends with 2, having written nothing."""
    capsys.readouterr()
    assert main([*arguments, "--out", str(out)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert not out.exists()
    return captured.err


def with_other_weights(home: Home, copy: Path, others: Mapping[str, Tensor]) -> Path:
    """A copy of the teacher, some of its tensors replaced."""
    shutil.copytree(home.models / "tiny", copy)
    save_file(load_file(copy / WEIGHTS) | dict(others), copy / WEIGHTS, metadata={"format": "pt"})
    return copy


def test_other_weights_are_refused_by_the_tensors_name(
    home: Home, teacher: Teacher, pruned: Spec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"model.layers.{pruned.selection.layers[-1]}.mlp.down_proj.weight"
    other = with_other_weights(home, tmp_path / "other", {name: teacher.tensors[name] + 1})
    message = refused([write(pruned, tmp_path / "s.json"), "--teacher", str(other)], capsys, tmp_path / "out")
    assert message.startswith(f"error: teacher.model: expected {name} as it was searched, with SHA-256")
    assert "another one in model.safetensors" in message


def test_a_teacher_of_another_config_is_refused_before_its_weights_are_read(
    home: Home, pruned: Spec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = with_other_weights(home, tmp_path / "other", {})
    with (other / "config.json").open("a") as config:
        config.write("\n")
    message = refused([write(pruned, tmp_path / "s.json"), "--teacher", str(other)], capsys, tmp_path / "out")
    assert message.startswith("error: teacher: expected the spec's teacher 'tiny', whose config.json has SHA-256")


def test_a_fingerprint_that_is_not_that_of_the_digest_is_refused(
    home: Home, pruned: Spec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = write(replace(pruned, teacher=replace(pruned.teacher, digest="0" * 64)), tmp_path / "s.json")
    message = refused([spec, "--teacher", str(home.models / "tiny")], capsys, tmp_path / "out")
    assert message.startswith(f"error: teacher.fingerprint: expected the fingerprint with digest {'0' * 64}")


def dropped_layer(spec: Spec, teacher: Teacher) -> int:
    (dropped, *_) = set(range(teacher.architecture.num_hidden_layers)) - set(spec.selection.layers)
    return dropped


def test_each_tensor_of_a_kept_layer_is_read_once_and_no_byte_of_a_dropped_one(
    home: Home, teacher: Teacher, pruned: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[range] = []

    def spying(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        length = original(descriptor, buffers, offset)
        read.append(range(offset, offset + length))
        return length

    original = os.preadv
    monkeypatch.setattr(os, "preadv", spying)
    monkeypatch.setattr(os, "pread", lambda *_: pytest.fail("a digest of the whole was taken"))
    apply(pruned, teacher=home.models / "tiny", out=tmp_path / "out")
    source = resolve_teacher("tiny", [home.models])
    dropped = f"model.layers.{dropped_layer(pruned, teacher)}."
    wanted = {t.offset: t.num_bytes for name, t in source.tensors.items() if not name.startswith(dropped)}
    assert len(wanted) < len(source.tensors)
    assert {part.start: len(part) for part in read} == wanted
    assert len(read) == len(wanted)


def test_damage_in_a_dropped_layer_changes_nothing(home: Home, teacher: Teacher, pruned: Spec, tmp_path: Path) -> None:
    name = f"model.layers.{dropped_layer(pruned, teacher)}.mlp.up_proj.weight"
    damaged = with_other_weights(home, tmp_path / "damaged", {name: teacher.tensors[name] + 1})
    apply(pruned, teacher=home.models / "tiny", out=tmp_path / "sound")
    apply(pruned, teacher=damaged, out=tmp_path / "out")
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (tmp_path / "sound" / WEIGHTS).read_bytes()


def test_shards_in_and_shards_out_hold_the_same_tensors(home: Home, pruned: Spec, tmp_path: Path) -> None:
    shutil.copytree(home.models / "tiny", tmp_path / "sharded", ignore=shutil.ignore_patterns(WEIGHTS))
    config = (tmp_path / "sharded" / "config.json").read_bytes()
    AutoModelForCausalLM.from_pretrained(home.models / "tiny").save_pretrained(
        tmp_path / "sharded", max_shard_size="50KB"
    )
    (tmp_path / "sharded" / "config.json").write_bytes(config)
    apply(pruned, teacher=home.models / "tiny", out=tmp_path / "whole")
    apply(pruned, teacher=tmp_path / "sharded", out=tmp_path / "parts", max_shard_bytes=40_000)

    index = json.loads((tmp_path / "parts" / "model.safetensors.index.json").read_text())
    shards = sorted(path.name for path in (tmp_path / "parts").glob("*.safetensors"))
    assert len(shards) > 1
    assert shards == [f"model-{number + 1:05}-of-{len(shards):05}.safetensors" for number in range(len(shards))]
    for shard in shards:
        held = load_file(tmp_path / "parts" / shard)
        assert sum(tensor.nbytes for tensor in held.values()) <= 40_000 or len(held) == 1
    whole = load_file(tmp_path / "whole" / WEIGHTS)
    assert index["weight_map"].keys() == whole.keys()
    for name, shard in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / "parts" / shard)[name], whole[name])
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "parts", output_loading_info=True)
    model, report = loaded
    assert not any(report.values()), report
    assert model.num_parameters() == pruned.parameters


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_stored_in_half_the_bits_stays_so_with_the_values_that_were_searched(
    home: Home, teacher: Teacher, pruned: Spec, tmp_path: Path, dtype: torch.dtype
) -> None:
    path = with_other_weights(
        home, tmp_path / "half", {name: tensor.to(dtype) for name, tensor in teacher.tensors.items()}
    )
    half = load_teacher(resolve_teacher("half", [tmp_path]))
    identity = identity_of(path, half)
    spec = replace(pruned, teacher=replace(pruned.teacher, fingerprint=identity, digest=identity.digest))
    apply(spec, teacher=path, out=tmp_path / "out")
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / WEIGHTS).values()} == {dtype}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    searched = dict(build_student(half, spec.architecture, spec.selection).named_parameters())
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert all(torch.equal(tensor, searched[name]) for name, tensor in loaded.named_parameters())


def with_residuals(home: Home, teacher: Teacher) -> Spec:
    """The spec of a candidate with half of the heads, which take in the others' residuals."""
    half = teacher.architecture.with_axes(num_attention_heads=2, num_key_value_heads=2)
    windows = some_tokens(batch=4, length=32, vocab_size=half.vocab_size)
    scores = score(teacher, windows, batch_windows=4)
    selection = select(scores, half, teacher=teacher.architecture, head_residuals=True)
    assert all(
        len({*kept, *taken}) == 4 for kept, taken in zip(selection.query_heads, selection.residual_heads, strict=True)
    )
    return spec_of(home, teacher, home.search(), selection, **half.axes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_key_value_heads", [2, 4])
def test_residuals_are_what_the_search_began_to_distil_bit_for_bit(
    tmp_path: Path, num_key_value_heads: int, dtype: torch.dtype
) -> None:
    home = Home(tmp_path / "home", num_key_value_heads=num_key_value_heads, dtype=dtype)
    teacher = load_teacher(resolve_teacher("tiny", [home.models]))
    spec = with_residuals(home, teacher)
    out = tmp_path / "out"
    assert main([write(spec, tmp_path / "s.json"), "--teacher", str(home.models / "tiny"), "--out", str(out)]) == 0
    rebuilt = load_file(out / WEIGHTS)
    searched = dict(build_student(teacher, spec.architecture, spec.selection).named_parameters())
    assert rebuilt.keys() == searched.keys()
    assert all(torch.equal(rebuilt[name].float(), tensor) for name, tensor in searched.items())
    loaded: Any = AutoModelForCausalLM.from_pretrained(out)  # in what config.json says
    assert all(torch.equal(tensor, searched[name]) for name, tensor in loaded.named_parameters())
    computed = {"q_proj"} if num_key_value_heads == 2 else {"q_proj", "k_proj", "v_proj"}
    assert {name.split(".")[-2] for name, tensor in rebuilt.items() if tensor.dtype != dtype} == (
        computed if dtype is torch.bfloat16 else set()
    )


@pytest.mark.parametrize("outside", [-1, 4])
def test_residuals_of_heads_that_the_teacher_has_not_are_refused(
    home: Home, teacher: Teacher, tmp_path: Path, capsys: pytest.CaptureFixture[str], outside: int
) -> None:
    spec = with_residuals(home, teacher)
    (first, *others) = spec.selection.residual_heads
    wild = replace(spec.selection, residual_heads=((outside, *first[1:]), *others))
    path = write(replace(spec, selection=wild), tmp_path / "s.json")
    message = refused([path, "--teacher", str(home.models / "tiny")], capsys, tmp_path / "out")
    assert f"selection.residual_heads: expected indices from 0 to 3, got {outside}" in message


def test_residuals_of_heads_whose_keys_are_not_kept_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = Home(tmp_path / "home", num_key_value_heads=4)
    spec = with_residuals(home, load_teacher(resolve_teacher("tiny", [home.models])))
    fewer = replace(spec.selection, key_value_heads=tuple(kept[:1] for kept in spec.selection.key_value_heads))
    path = write(replace(spec, selection=fewer), tmp_path / "s.json")
    message = refused([path, "--teacher", str(home.models / "tiny")], capsys, tmp_path / "out")
    assert "a selection that gives the spec's architecture" in message


def test_a_value_that_fewer_bits_do_not_hold_keeps_its_bits() -> None:
    exact = torch.arange(4096.0).reshape(2048, 2)  # bfloat16 holds eight significant bits
    assert narrow(exact[:128], torch.bfloat16).dtype is torch.bfloat16
    assert narrow(exact, torch.bfloat16) is exact
    assert narrow(exact, torch.float32) is exact


def truncate(path: Path) -> None:
    os.truncate(path / WEIGHTS, (path / WEIGHTS).stat().st_size - 1)


def add_a_surplus_tensor(path: Path) -> None:
    save_file(load_file(path / WEIGHTS) | {"surplus": torch.zeros(1)}, path / WEIGHTS)


def leave_an_adapter(path: Path) -> None:
    (path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (truncate, "expected a whole safetensors file, got 'model.safetensors'"),
        (add_a_surplus_tensor, "got 'tensors that the config does not account for: surplus'"),
        (leave_an_adapter, "an adapter (adapter_config.json)"),
    ],
)
def test_a_spoilt_teacher_is_refused_by_name(
    home: Home,
    pruned: Spec,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], None],
    message: str,
) -> None:
    other = with_other_weights(home, tmp_path / "other", {})
    spoil(other)
    spec = write(pruned, tmp_path / "s.json")
    assert message in refused([spec, "--teacher", str(other)], capsys, tmp_path / "out")


@pytest.mark.parametrize("max_shard_bytes", [40_000, 5_000_000_000])
def test_a_teacher_that_is_refused_half_way_leaves_nothing_behind(
    home: Home, teacher: Teacher, pruned: Spec, tmp_path: Path, max_shard_bytes: int
) -> None:
    name = "model.norm.weight"  # late in the family's table: shards are written before it is read
    other = with_other_weights(home, tmp_path / "other", {name: teacher.tensors[name] + 1})
    (tmp_path / "place").mkdir()
    with pytest.raises(UnusableTeacher, match=name):
        apply(pruned, teacher=other, out=tmp_path / "place" / "out", max_shard_bytes=max_shard_bytes)
    assert list((tmp_path / "place").iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spec_version": 99}, "spec_version: expected a spec of version 1, got 99"),
        ({"selection": None}, "selection"),
        ({"surplus": 1}, "surplus"),
    ],
)
def test_a_file_that_is_no_spec_is_refused(
    home: Home,
    pruned: Spec,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    message: str,
) -> None:
    spec = write(pruned, tmp_path / "s.json", **changes)
    assert message in refused([spec, "--teacher", str(home.models / "tiny")], capsys, tmp_path / "out")


@pytest.mark.parametrize("content", ["{", "[]", "\N{SNOWMAN}", '{"spec_version": 1}'])
def test_a_file_that_is_no_json_object_is_refused(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    (tmp_path / "s.json").write_text(content)
    message = refused([str(tmp_path / "s.json"), "--teacher", str(home.models / "tiny")], capsys, tmp_path / "out")
    assert message.startswith("error: ")


def test_a_missing_file_and_a_missing_teacher_are_named(
    home: Home, pruned: Spec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = str(tmp_path / "absent")
    assert "absent" in refused([absent, "--teacher", str(home.models / "tiny")], capsys, tmp_path / "out")
    spec = write(pruned, tmp_path / "s.json")
    assert "absent" in refused([spec, "--teacher", absent], capsys, tmp_path / "out")


def test_a_directory_that_exists_is_left_alone(
    home: Home, pruned: Spec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    spec = write(pruned, tmp_path / "s.json")
    assert main([spec, "--teacher", str(home.models / "tiny"), "--out", str(tmp_path / "out")]) == 2
    assert "does not exist yet" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("outside", [-1, 48, 1_000])
def test_indices_that_the_teacher_has_not_are_refused(
    home: Home, pruned: Spec, tmp_path: Path, capsys: pytest.CaptureFixture[str], outside: int
) -> None:
    channels = tuple(sorted((*pruned.selection.hidden_channels[1:], outside)))
    wild = replace(pruned, selection=replace(pruned.selection, hidden_channels=channels))
    spec = write(wild, tmp_path / "s.json")
    message = refused([spec, "--teacher", str(home.models / "tiny")], capsys, tmp_path / "out")
    assert f"selection.hidden_channels: expected indices from 0 to 47, got {outside}" in message


def test_a_selection_of_another_architecture_is_refused(
    home: Home, pruned: Spec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fewer = replace(pruned.selection, hidden_channels=pruned.selection.hidden_channels[:-1])
    spec = write(replace(pruned, selection=fewer), tmp_path / "s.json")
    message = refused([spec, "--teacher", str(home.models / "tiny")], capsys, tmp_path / "out")
    assert "a selection that gives the spec's architecture" in message


def test_it_runs_as_a_module(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "workers.apply", "absent.json", "--teacher", "absent", "--out", str(tmp_path / "out")],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
