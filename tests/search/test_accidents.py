"""`search.accidents`: frequent accidents of checkpoints, each recognised, named and with its cure."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from search.accidents import StoredTensor
from search.checkpoint import check_parameters, expected_shapes, read_headers
from search.errors import UnusableTeacher
from search.families import family_of
from tests.support.files import CONFIG, tensors_of, write_safetensors
from tests.support.published import PHI3_MINI_4K

Tensors = dict[str, tuple[str, tuple[int, ...]]]
Change = Callable[[Tensors], Tensors]

Q_PROJ = "model.layers.0.self_attn.q_proj"


def prefixed(prefix: str) -> Change:
    return lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}


def with_more(**more: Any) -> Change:
    return lambda tensors: tensors | {name.replace("__", "."): ("F32", shape) for name, shape in more.items()}


def unmerged(tensors: Tensors) -> Tensors:
    """As PEFT keeps it: everything below its own prefix, the adapted weight beside its two factors."""
    base, factors = f"{Q_PROJ}.base_layer.weight", {f"{Q_PROJ}.lora_{f}.default.weight": (4, 64) for f in "AB"}
    moved = {base if name == f"{Q_PROJ}.weight" else name: tensor for name, tensor in tensors.items()}
    return prefixed("base_model.model.")(moved | {name: ("F32", shape) for name, shape in factors.items()})


def emptied(tensors: Tensors) -> Tensors:
    return {name: (dtype, (0,) if "q_proj" in name else shape) for name, (dtype, shape) in tensors.items()}


def resized(tensors: Tensors) -> Tensors:
    return {name: (d, (260, *s[1:]) if s[0] == 256 else s) for name, (d, s) in tensors.items()}


def mlx(tensors: Tensors) -> Tensors:
    scales = {f"{Q_PROJ}.scales": ("F16", (64, 1)), f"{Q_PROJ}.biases": ("F16", (64, 1))}
    return tensors | scales | {f"{Q_PROJ}.weight": ("U32", (64, 8))}


def without(*names: str) -> Change:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in names}


def packed(*suffixes: str) -> Change:
    """A weight's place taken by others."""
    more: Tensors = {f"{Q_PROJ}.{suffix}": ("I32", (8, 64)) for suffix in suffixes}
    return lambda tensors: without(f"{Q_PROJ}.weight")(tensors) | more


def between(wrapper: str) -> Change:
    return lambda tensors: {n.replace(".self_attn.", f".{wrapper}self_attn."): t for n, t in tensors.items()}


def refusal(change: Change, folder: Path, **config: Any) -> UnusableTeacher:
    """What is said of the weights of `CONFIG` after `change`, beside its config changed by `config`."""
    described = CONFIG | config
    write_safetensors(folder / "model.safetensors", change(tensors_of(CONFIG)))
    with pytest.raises(UnusableTeacher) as refused:
        check_parameters(read_headers([folder / "model.safetensors"]), family_of(described).parse(described))
    return refused.value


@pytest.mark.parametrize(
    ("change", "found", "cure"),
    [
        (prefixed("_orig_mod."), "names with '_orig_mod.' in them: _orig_mod.lm_head.weight", "save model._orig_mod"),
        (between("_fsdp_wrapped_module."), "names with '_fsdp_wrapped_module.' in them", "full state dict"),
        (prefixed("module."), "names with 'module.' in them", "save model.module"),
        (prefixed("base_model.model."), "names with 'base_model.model.' in them", "merge_and_unload()"),
        (prefixed("student.net."), "names with 'student.net.' in them", "leave out 'student.net.'"),
        (unmerged, "adapters that were not merged: model.layers.0.self_attn.q_proj.base_layer", "merge_and_unload()"),
        (
            with_more(v_head__summary__weight=(1, 64)),
            "a head of another task: v_head.summary.weight",
            "pretrained_model",
        ),
        (with_more(score__weight=(2, 64)), "a head of another task: score.weight", "language model alone"),
        (emptied, "empty tensors, as DeepSpeed's ZeRO-3 leaves", "zero_to_fp32.py"),
        (resized, "a vocabulary of 260 rows in lm_head.weight", "set vocab_size to 260"),
        (mlx, f"weights that MLX packed into U32: {Q_PROJ}.weight", "mlx_lm.convert --dequantize"),
        (packed("qweight", "qzeros", "scales", "g_idx"), f"GPTQ weights: {Q_PROJ}.g_idx", "made from"),
        (packed("qweight", "qzeros", "scales"), f"AWQ or GPTQ weights: {Q_PROJ}.qweight", "made from"),
        (with_more(**{f"{Q_PROJ}.weight.absmax": (64,)}), "bitsandbytes weights", "made from"),
        (packed("weight_packed", "weight_scale"), "packed weights of compressed-tensors", "made from"),
        (without("lm_head.weight"), "no lm_head.weight", "set tie_word_embeddings to true"),
        (without(f"{Q_PROJ}.weight"), f"no {Q_PROJ}.weight, of layer 0, where config.json has 4 layers", "copied"),
        (with_more(ghost=(3,)), "tensors that the config does not account for: ghost", "another model's"),
    ],
)
def test_an_accident_is_named_with_its_cure(change: Change, found: str, cure: str, tmp_path: Path) -> None:
    said = refusal(change, tmp_path)
    assert found in str(said.got)
    assert cure in str(said.hint)
    assert said.expected == "the tensors that config.json describes, in full precision (F64, F32, F16, BF16)"


def test_one_accident_is_one_finding(tmp_path: Path) -> None:
    for change in (prefixed("_orig_mod."), prefixed("module."), emptied, resized, mlx):
        assert ";" not in str(refusal(change, tmp_path).got)


def test_all_accidents_are_named_at_once(tmp_path: Path) -> None:
    said = refusal(
        lambda tensors: prefixed("_orig_mod.")(resized(with_more(v_head__weight=(1, 64))(tensors))), tmp_path
    )
    assert [finding.split()[:2] for finding in str(said.got).split("; ")] == [
        ["names", "with"],
        ["a", "head"],
        ["a", "vocabulary"],
    ]


@pytest.mark.parametrize(
    ("depth", "found"), [(2, "of layers 2 to 3, where config.json has 2"), (6, "of layers 4 to 5")]
)
def test_layers_that_are_too_many_or_too_few_are_counted(depth: int, found: str, tmp_path: Path) -> None:
    assert found in str(refusal(dict, tmp_path, num_hidden_layers=depth).got)


def test_a_depth_beyond_the_headers_is_a_short_message(tmp_path: Path) -> None:
    said = refusal(dict, tmp_path, num_hidden_layers=10_000)
    assert "of layers 4 to 9999, where config.json has 10,000 layers" in str(said.got)
    assert len(str(said)) < 1_000


@pytest.mark.parametrize("prefix", ["model.", ""])
def test_names_that_the_stock_class_reads_are_read(prefix: str, tmp_path: Path) -> None:
    architecture = family_of(CONFIG).parse(CONFIG)
    names = {
        name: name if name.startswith("lm_head") else prefix + name.removeprefix("model.")
        for name in tensors_of(CONFIG)
    }
    write_safetensors(tmp_path / "x.safetensors", {names[name]: t for name, t in tensors_of(CONFIG).items()})
    assert check_parameters(read_headers([tmp_path / "x.safetensors"]), architecture).keys() == names.keys()


def test_inert_buffers_of_old_checkpoints_are_passed_over(tmp_path: Path) -> None:
    write_safetensors(
        tmp_path / "x.safetensors", with_more(**{f"{Q_PROJ}.rotary_emb.inv_freq": (4,)})(tensors_of(CONFIG))
    )
    architecture = family_of(CONFIG).parse(CONFIG)
    assert (
        check_parameters(read_headers([tmp_path / "x.safetensors"]), architecture).keys()
        == expected_shapes(architecture).keys()
    )


# --- a head beside a tied embedding


def tied(folder: Path, *, spoiled: int | None) -> tuple[dict[str, StoredTensor], dict[str, Any]]:
    """A tied model with a head of its own; at a byte of that, if wanted, another value than in the embedding."""
    config = CONFIG | {"tie_word_embeddings": True, "vocab_size": 4096}
    file = folder / "model.safetensors"
    write_safetensors(file, {**tensors_of(config), "lm_head.weight": ("F32", (4096, 64))})
    tensors = read_headers([file])
    if spoiled is not None:
        with file.open("r+b") as content:
            content.seek(tensors["lm_head.weight"].offset + spoiled)
            content.write(b"\x01")
    return tensors, config


def test_a_second_copy_of_a_tied_embedding_is_passed_over(tmp_path: Path) -> None:
    tensors, config = tied(tmp_path, spoiled=None)
    assert "lm_head.weight" not in check_parameters(tensors, family_of(config).parse(config))


@pytest.mark.parametrize("spoiled", [0, 4096 * 64 * 4 // 16 * 15])
def test_a_head_of_its_own_beside_a_tied_embedding_is_refused(spoiled: int, tmp_path: Path) -> None:
    tensors, config = tied(tmp_path, spoiled=spoiled)
    with pytest.raises(UnusableTeacher, match=r"a lm_head\.weight of its own.*tie_word_embeddings to false"):
        check_parameters(tensors, family_of(config).parse(config))


def test_weights_of_a_published_model_are_accepted_with_all_that_its_config_says(tmp_path: Path) -> None:
    """As microsoft/Phi-3-mini-4k-instruct is published: with code of its own beside a stock class."""
    config, _ = PHI3_MINI_4K
    code = {"AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}
    config = config | {"auto_map": code, "_name_or_path": "Phi-3-mini-4k-instruct"}
    write_safetensors(tmp_path / "x.safetensors", tensors_of(config, dtype="BF16"))
    check_parameters(read_headers([tmp_path / "x.safetensors"]), family_of(config).parse(config))
