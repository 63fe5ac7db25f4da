"""``python -m workers.apply SPEC --teacher DIR --out DIR``: rebuild a spec's pruned, undistilled checkpoint.

Bit for bit what the search started to distil: the teacher's own values, gathered by the indices in the spec.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from search.architecture import Architecture
from search.errors import EspalierError, InvalidInput, UnusableTeacher
from search.selection import Indices, Selection
from search.serialization import from_json
from search.sources import resolve_teacher
from search.spec import SPEC_VERSION, Spec
from workers.compress.slicing import slice_tensors
from workers.compress.teacher import Teacher, expected_shapes, load_teacher, teacher_digest
from workers.export import WEIGHTS, new_directory, write_companions


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0, or 2 with a message on stderr where the input cannot work."""
    parser = argparse.ArgumentParser(prog="espalier apply", description="Rebuild a spec's pruned checkpoint.")
    parser.add_argument("spec", type=Path, help="the spec's JSON file")
    parser.add_argument("--teacher", type=Path, required=True, help="the teacher's Hugging Face directory")
    parser.add_argument("--out", type=Path, required=True, help="the directory to make; must not exist")
    options = parser.parse_args(arguments)
    try:
        spec = read_spec(options.spec)
        apply(spec, teacher=options.teacher, out=options.out)
    except (EspalierError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}: {spec.parameters:,} parameters, pruned from {spec.teacher.model}, not yet distilled")
    return 0


def read_spec(path: Path) -> Spec:
    """The spec in a JSON file.

    Raises:
        InvalidInput: the file holds no spec of this version.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        version = data.get("spec_version") if isinstance(data, dict) else None
        if version != SPEC_VERSION:
            raise InvalidInput(expected=f"a spec of version {SPEC_VERSION}", got=version, where=("spec_version",))
        return from_json(Spec, data)
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidInput(expected="a whole spec", got=first["msg"], where=first["loc"]) from error
    except ValueError as error:
        if isinstance(error, InvalidInput):
            raise
        raise InvalidInput(expected="a JSON file", got=str(path), hint=f"{error}.") from error


def apply(spec: Spec, *, teacher: Path, out: Path) -> None:
    """Write the pruned checkpoint of `spec` as directory `out`.

    Raises:
        UnusableTeacher: it is not the teacher that the spec was made from.
        InvalidInput: the spec contradicts itself, or `out` exists.
    """
    directory = teacher.expanduser().resolve()
    source = resolve_teacher(directory.name, [directory.parent])
    digest = teacher_digest(source)
    if digest != spec.teacher.digest:
        raise UnusableTeacher(
            expected=f"the spec's teacher {spec.teacher.model!r} with digest {spec.teacher.digest}",
            got=digest,
            where=("teacher",),
            hint="Config or weights differ from those that were searched.",
        )
    loaded = load_teacher(source, ignore=spec.teacher.ignored_attributes)
    tensors = _student_tensors(spec, loaded)
    with new_directory(out) as folder:
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        write_companions(folder, spec.architecture, spec.selection, teacher=loaded.path, teacher_config=loaded.config)


def _student_tensors(spec: Spec, teacher: Teacher) -> dict[str, Tensor]:
    _check_indices(spec.selection, teacher.architecture)
    tensors = slice_tensors(teacher.tensors, spec.selection, teacher.family, teacher=teacher.architecture)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if shapes != expected_shapes(spec.architecture):
        raise InvalidInput(
            expected="a selection that gives the spec's architecture", got=spec.architecture, where=("selection",)
        )
    return tensors


def _check_indices(selection: Selection, teacher: Architecture) -> None:
    chosen: dict[str, tuple[int, Sequence[Indices]]] = {
        "layers": (teacher.num_hidden_layers, [selection.layers]),
        "hidden_channels": (teacher.hidden_size, [selection.hidden_channels]),
        "neurons": (teacher.intermediate_size, selection.neurons),
        "key_value_heads": (teacher.num_key_value_heads, selection.key_value_heads),
        "query_heads": (teacher.num_attention_heads, selection.query_heads),
    }
    for axis, (size, lists) in chosen.items():
        for index in (index for indices in lists for index in indices):
            if not 0 <= index < size:
                raise InvalidInput(expected=f"indices from 0 to {size - 1}", got=index, where=("selection", axis))


if __name__ == "__main__":
    sys.exit(main())
