import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from search.errors import UnknownAttribute, UnusableTeacher
from search.sources import TeacherSource, resolve_teacher
from tests.support.llamas import logits_of, some_tokens
from tests.support.teachers import make_teacher
from workers.compress.model import count_parameters
from workers.compress.teacher import check_finite, load_teacher

Spoil = Callable[[dict[str, Tensor]], None]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_teacher(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_teacher(
        tmp_path_factory.mktemp("models") / "tied", tie_word_embeddings=True, attention_bias=True, mlp_bias=True
    )


def source_of(path: Path) -> TeacherSource:
    return resolve_teacher(path.name, [path.parent])


def spoilt(made: Path, copy: Path, spoil: Spoil) -> TeacherSource:
    """A copy of the teacher with other tensors."""
    shutil.copytree(made, copy)
    tensors = {name: tensor.clone() for name, tensor in load_file(copy / "model.safetensors").items()}
    spoil(tensors)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    return source_of(copy)


@pytest.mark.parametrize("which", ["made", "tied"])
def test_it_computes_what_transformers_computes_bit_for_bit(which: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(which)
    stock = AutoModelForCausalLM.from_pretrained(path, attn_implementation="sdpa", dtype=torch.float32)
    teacher = load_teacher(source_of(path))
    tokens = some_tokens(batch=2, length=64, vocab_size=teacher.architecture.vocab_size)
    assert torch.equal(logits_of(teacher.model, tokens), logits_of(stock, tokens))
    assert count_parameters(teacher.model) == stock.num_parameters()


def test_two_loads_share_the_pages_of_the_mapped_file(made: Path) -> None:
    one, other = load_teacher(source_of(made)), load_teacher(source_of(made))
    weights = str(made / "model.safetensors")
    mappings = [
        (range(*(int(bound, 16) for bound in line.split()[0].split("-"))), line.split()[1])
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(weights)
    ]
    assert len(mappings) >= 2
    assert all(access.endswith("p") for _, access in mappings)  # private: a write could not reach the file
    for teacher in (one, other):
        for parameter in teacher.model.parameters():
            assert any(parameter.data_ptr() in addresses for addresses, _ in mappings)
    assert one.tensors["model.norm.weight"].data_ptr() != other.tensors["model.norm.weight"].data_ptr()


def test_the_model_and_the_tensors_are_the_same_memory(tied: Path) -> None:
    teacher = load_teacher(source_of(tied))
    parameters = dict(teacher.model.named_parameters())
    assert parameters.keys() == teacher.tensors.keys()
    assert all(parameters[name].data_ptr() == tensor.data_ptr() for name, tensor in teacher.tensors.items())
    assert not any(parameter.requires_grad for parameter in parameters.values())


def test_shards_are_read_as_one(made: Path, tmp_path: Path) -> None:
    stock = AutoModelForCausalLM.from_pretrained(made)
    stock.save_pretrained(tmp_path / "sharded", max_shard_size="50KB")
    shutil.copy(made / "tokenizer.json", tmp_path / "sharded")
    source = source_of(tmp_path / "sharded")
    assert len(source.weight_files) > 1
    whole, parts = load_teacher(source_of(made)).tensors, load_teacher(source).tensors
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def converted(made: Path, copy: Path, dtype: torch.dtype, *, only: str = "") -> TeacherSource:
    def convert(tensors: dict[str, Tensor]) -> None:
        tensors.update({name: tensor.to(dtype) for name, tensor in tensors.items() if only in name})

    return spoilt(made, copy, convert)


def test_a_teacher_in_bfloat16_computes_in_it_unless_float32_is_asked_for(made: Path, tmp_path: Path) -> None:
    source = converted(made, tmp_path / "half", torch.bfloat16)
    narrow, wide = load_teacher(source), load_teacher(source, dtype="float32")
    for teacher, dtype in ((narrow, torch.bfloat16), (wide, torch.float32)):
        assert teacher.stored_dtype == "bfloat16"
        assert teacher.dtype == dtype
        assert {tensor.dtype for tensor in teacher.tensors.values()} == {dtype}
        assert {parameter.dtype for parameter in teacher.model.parameters()} == {dtype}
        tokens = some_tokens(batch=2, length=16, vocab_size=teacher.architecture.vocab_size)
        stock = AutoModelForCausalLM.from_pretrained(source.path, attn_implementation="sdpa", dtype=dtype)
        assert torch.equal(logits_of(teacher.model, tokens), logits_of(stock, tokens))


@pytest.mark.parametrize(
    ("dtype", "only", "stored"),
    [
        (torch.float32, "", "float32"),
        (torch.float16, "", "float16"),
        (torch.bfloat16, "mlp", "bfloat16+float32"),
    ],
)
def test_any_other_teacher_computes_in_float32(
    made: Path, tmp_path: Path, dtype: torch.dtype, only: str, stored: str
) -> None:
    teacher = load_teacher(converted(made, tmp_path / "other", dtype, only=only))
    assert (teacher.dtype, teacher.stored_dtype) == (torch.float32, stored)
    assert {tensor.dtype for tensor in teacher.tensors.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"),
            r"got .no model\.layers\.1\.mlp\.up_proj\.weight, of layer 1",
        ),
        (lambda tensors: tensors.update(surplus=torch.zeros(1)), "surplus"),
        (
            lambda tensors: tensors.update({"model.norm.weight": torch.zeros(47)}),
            r"model\.norm\.weight of shape \[47\] instead of \[48\]",
        ),
    ],
    ids=["missing", "unexpected", "misshapen"],
)
def test_tensors_that_do_not_belong_to_the_config_are_named(
    made: Path, tmp_path: Path, spoil: Spoil, message: str
) -> None:
    with pytest.raises(UnusableTeacher, match=message) as caught:
        load_teacher(spoilt(made, tmp_path / "spoilt", spoil))
    assert caught.value.where == ("teacher", "model")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_named(made: Path, tmp_path: Path, value: float) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors["model.layers.2.self_attn.k_proj.weight"][3, 4] = value

    teacher = load_teacher(spoilt(made, tmp_path / "spoilt", spoil))
    with pytest.raises(UnusableTeacher, match=r"1 NaN or infinite .* model\.layers\.2\.self_attn\.k_proj\.weight"):
        check_finite(teacher)


def test_a_sound_teacher_is_finite(made: Path) -> None:
    check_finite(load_teacher(source_of(made)))


def test_a_truncated_file_is_named(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "short")
    weights = tmp_path / "short" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UnusableTeacher, match=r"whole safetensors file, got 'model\.safetensors'"):
        load_teacher(source_of(tmp_path / "short"))


def test_rotary_frequencies_that_old_checkpoints_carry_are_passed_over(made: Path, tmp_path: Path) -> None:
    def age(tensors: dict[str, Tensor]) -> None:
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(6)

    assert (
        load_teacher(spoilt(made, tmp_path / "old", age)).tensors.keys() == load_teacher(source_of(made)).tensors.keys()
    )


def test_a_second_copy_of_a_tied_embedding_is_passed_over_and_another_head_is_refused(
    tied: Path, tmp_path: Path
) -> None:
    def repeat(tensors: dict[str, Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    def untie(tensors: dict[str, Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1

    assert "lm_head.weight" not in load_teacher(spoilt(tied, tmp_path / "twice", repeat)).tensors
    with pytest.raises(UnusableTeacher, match=r"lm_head\.weight"):
        load_teacher(spoilt(tied, tmp_path / "untied", untie))


def test_an_attribute_that_nobody_understands_is_refused_unless_the_user_vouches_for_it(
    made: Path, tmp_path: Path
) -> None:
    shutil.copytree(made, tmp_path / "odd")
    config = json.loads((made / "config.json").read_text())
    (tmp_path / "odd" / "config.json").write_text(json.dumps({**config, "gradient_checkpointing": True}))
    with pytest.raises(UnknownAttribute, match="gradient_checkpointing"):
        load_teacher(source_of(tmp_path / "odd"))
    assert load_teacher(source_of(tmp_path / "odd"), ignore=["gradient_checkpointing"]).architecture.hidden_size == 48


def test_what_says_nothing_of_plain_weights_and_a_stock_class_is_left_behind(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "copy")
    config = json.loads((made / "config.json").read_text())
    more = {"auto_map": {"AutoModelForCausalLM": "mine.Mine"}, "quantization_config": {"quant_method": "bitsandbytes"}}
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config | more))
    teacher, plain = load_teacher(source_of(tmp_path / "copy")), load_teacher(source_of(made))
    assert teacher.config == plain.config == config
    assert teacher.architecture == plain.architecture


@pytest.mark.data
def test_a_real_teacher_computes_what_transformers_computes_bit_for_bit(data_dir: Path) -> None:
    teacher = load_teacher(source_of(data_dir / "models" / "stories260K"))
    assert count_parameters(teacher.model) == 260_032
    tokens = some_tokens(batch=2, length=256, vocab_size=512)
    stock = AutoModelForCausalLM.from_pretrained(
        data_dir / "models" / "stories260K", attn_implementation="sdpa", dtype=torch.float32
    )
    assert torch.equal(logits_of(teacher.model, tokens), logits_of(stock, tokens))
