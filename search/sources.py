"""Teachers, texts and tasks by names below configured roots. Nothing outside a root, behind a link, or that runs code.

A name is a path relative to a root (an absolute path is accepted where it lies below one); the first root that holds
it wins. A root itself may be a symbolic link, since whoever configured it chose it; nothing below one may be. Messages
quote names, never the server's own paths.
"""

import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from search.accidents import Fault, StoredTensor, quantisation
from search.checkpoint import read_headers, refuse
from search.errors import ForbiddenSource, InvalidRequest, SourceNotFound, UnusableTeacher
from search.patience import checkpoint
from search.textfiles import format_of, is_compressed

#: Files that `pickle` writes: loading one runs whatever it says.
_PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})
_TEXTS = ".txt, .jsonl or .parquet (the first two also with .gz, .bz2 or .zst behind)"
_TASKS = ".txt or .jsonl"
#: What to do with files that people have and that are not read.
_CURES = {
    ".json": "Where JSON has an object on every line, have its name end in .jsonl; where it is one list: "
    "jq -c '.[]' FILE.json > FILE.jsonl.",
    ".arrow": "What save_to_disk wrote becomes Parquet by: datasets.load_from_disk(…).to_parquet(…).",
    ".csv": "A table becomes Parquet by: pandas.read_csv(…).to_parquet(…).",
    ".tsv": "A table becomes Parquet by: pandas.read_csv(…, sep='\\t').to_parquet(…).",
    ".zip": "Unpack the archive.",
    ".tar": "Unpack the archive.",
    ".tgz": "Unpack the archive.",
    ".xz": "Decompress it: xz -d.",
    ".md": "Where it is text to train on, have its name end in .txt.",
    "": "Where it is text to train on, have its name end in .txt.",
}

_CONFIG = "config.json"
_TOKENIZER = "tokenizer.json"
_TOKENIZER_CONFIG = "tokenizer_config.json"
_ADAPTER_CONFIG = "adapter_config.json"
_WEIGHTS = "model.safetensors"
_WEIGHTS_INDEX = "model.safetensors.index.json"

#: Where a model's files name Python code of its own.
_CODE = "auto_map"
#: Where a config says that its weights are quantised: transformers' attribute, and an older one of compressed-tensors.
_QUANTISED = ("quantization_config", "compression_config")

#: What says nothing once the weights are known to be plain and the class is a stock one. No export has it.
_LEFT_OVER = frozenset({*_QUANTISED, _CODE})

#: What a JSON file beside the weights may have; the largest published (indices, added tokens) have a tenth of it.
MAX_JSON_BYTES = 20_000_000

#: What a task's files may have together. Zorro has 3 million, BLiMP 30 million.
MAX_TASK_BYTES = 100_000_000

#: How many levels of folders, and how many names, a "there is also …" looks through.
_OFFER_DEPTH = 3
_OFFER_NAMES = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherSource:
    """A Hugging Face model directory with everything in it that is needed, its weights not yet read."""

    path: Path
    #: Its ``config.json``, without what says nothing of plain weights and stock classes.
    config: dict[str, Any]
    #: One safetensors file, or every shard of an index, sorted by name.
    weight_files: tuple[Path, ...]
    #: What their headers list.
    tensors: Mapping[str, StoredTensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSource:
    """The files of a name that are read: see `search.textfiles`."""

    #: Sorted by their path below the name, so that the text is the same on every machine.
    files: tuple[Path, ...]
    num_bytes: int
    #: What else is in the folder, by its path in it, sorted; hidden files are not told.
    passed_over: tuple[str, ...] = ()

    @property
    def most_tokens(self) -> int | None:
        """What it may hold at most, as a token is a byte or more; None where files are compressed: nobody knows."""
        return None if any(map(is_compressed, self.files)) else self.num_bytes

    @property
    def hint(self) -> str | None:
        """What is passed over, and what to do where it is to be read; None where nothing is."""
        if not self.passed_over:
            return None
        cures = dict.fromkeys(cure for name in self.passed_over if (cure := _cure(name)))
        return " ".join([f"Not read: {shortened(self.passed_over)}.", *cures])


def resolve_teacher(name: str, roots: Sequence[Path]) -> TeacherSource:
    """The model directory `name` below the first of `roots` that holds it.

    Raises:
        SourceNotFound: no root holds it; the hint names what they do hold.
        ForbiddenSource: it leaves the roots, leads through a symlink, has a tokenizer that wants to run code of
            its own, or its weights in pickle files only.
        UnusableTeacher: a file is missing or torn, the config is no JSON object, the weights are quantised, or it is
            an adapter and no model.
    """
    path = _locate(name, roots)
    if path is None or not path.is_dir():
        raise SourceNotFound(
            expected="a Hugging Face model directory below a model root", got=name, hint=_offer(_models(roots))
        )
    _refuse_links(path, name, os.listdir(path))
    _refuse_adapter(path)
    config = _json_object(path / _CONFIG, name)
    if not (path / _TOKENIZER).is_file():
        raise UnusableTeacher(
            expected=f"a directory with {_TOKENIZER}",
            got=name,
            hint="Save the tokenizer in the fast format: AutoTokenizer.from_pretrained(…).save_pretrained(…).",
        )
    if (path / _TOKENIZER_CONFIG).is_file():
        _refuse_code(_json_object(path / _TOKENIZER_CONFIG, name), _TOKENIZER_CONFIG)
    weight_files, index = _weight_files(path, name)
    tensors = read_headers(weight_files, index=index)
    _refuse_quantised(tensors, config)
    return TeacherSource(
        path=path,
        config={name: value for name, value in config.items() if name not in _LEFT_OVER},
        weight_files=weight_files,
        tensors=tensors,
    )


def resolve_text(name: str, roots: Sequence[Path]) -> TextSource:
    """The text file `name`, or all text files in the directory `name`, below the first of `roots` that holds it.

    Raises:
        SourceNotFound: no root holds it, or there is no text in it; the hint names what the roots hold.
        ForbiddenSource: it leaves the roots or leads through a symlink.
        InvalidRequest: a file whose name says that it is none of `search.textfiles`.
    """
    return _resolve_files("text", name, roots, is_text, _TEXTS)


def resolve_task(name: str, roots: Sequence[Path]) -> TextSource:
    """The file `name`, or all files in the directory `name`, that hold a task: found, and refused, like a text.

    Raises:
        InvalidInput: as `resolve_text` does.
        InvalidRequest: the files are larger than any task: they are read as a whole when a search is submitted.
    """
    source = _resolve_files("task", name, roots, _is_task, _TASKS)
    if source.num_bytes > MAX_TASK_BYTES:
        raise InvalidRequest(
            expected=f"a task of at most {MAX_TASK_BYTES:,} bytes",
            got=f"{source.num_bytes:,} bytes in {len(source.files)} file(s)",
            hint="Name a task's own folder, not the folder of a corpus.",
        )
    return source


def resolve_task_file(name: str, roots: Sequence[Path]) -> Path:
    """The ``.yaml`` file `name`, which describes a task, below the first of `roots` that holds it.

    Raises:
        SourceNotFound: no root holds it.
        ForbiddenSource: it leaves the roots or leads through a symlink.
    """
    path = _locate(name, roots)
    if path is None or not path.is_file():
        raise SourceNotFound(expected="a .yaml file below a data root", got=name)
    return path


def resolve_dataset(name: str, roots: Sequence[Path]) -> Path | None:
    """The folder `name`, a copy of the hub's dataset of that name, below the first of `roots` that holds it, or None.

    Raises:
        ForbiddenSource: there is a symlink on the way or inside.
    """
    path = _locate(name, roots)
    if path is None or not path.is_dir():
        return None
    _files(path, name, is_text)  # looks at everything inside
    return path


def is_text(file: Path) -> bool:
    """Whether a file is read where it lies in a text's folder: hidden ones are not, whatever they are called."""
    return format_of(file) is not None and not _is_hidden(file)


def _is_task(file: Path) -> bool:
    """Tasks are read as a whole when a search is submitted: compressed, they could be of any size."""
    return is_text(file) and not is_compressed(file)


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".") and path.name not in (".", "..")


def _resolve_files(
    kind: str, name: str, roots: Sequence[Path], is_wanted: Callable[[Path], bool], known: str
) -> TextSource:
    path = _locate(name, roots)
    if path is None:
        raise SourceNotFound(
            expected=f"a {kind} file or directory below a data root", got=name, hint=_offer(_texts(roots))
        )
    if path.is_dir():
        files, others = _files(path, name, is_wanted)
    elif path.is_file() and is_wanted(path):
        files, others = (path,), ()
    else:
        raise InvalidRequest(expected=f"a {known} file, or a directory of them", got=name, hint=_cure(path.name))
    source = TextSource(files=files, num_bytes=sum(file.stat().st_size for file in files), passed_over=others)
    if not files:
        raise SourceNotFound(
            expected=f"a directory with {known} files", got=name, hint=source.hint or _offer(_texts(roots))
        )
    return source


def _cure(name: str) -> str | None:
    return _CURES.get(Path(name).suffix.lower())


def shortened(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    more = f" and {len(names) - _OFFER_NAMES:,} more" if len(names) > _OFFER_NAMES else ""
    return ", ".join(names[:_OFFER_NAMES]) + more


def _locate(name: str, roots: Sequence[Path]) -> Path | None:
    """Where `name` is; None where no root holds it. Raises ForbiddenSource."""
    if "\0" in name or ".." in PurePosixPath(name).parts:
        raise ForbiddenSource(expected="a path without '..' or NUL", got=name)
    for root in map(_absolute, roots):
        if not PurePosixPath(name).is_absolute():
            path = root / name
        elif Path(name).is_relative_to(root):
            path = Path(name)
        else:
            continue
        if _exists_without_links(path, root, name):
            return path
    if PurePosixPath(name).is_absolute() and not any(Path(name).is_relative_to(_absolute(root)) for root in roots):
        raise ForbiddenSource(
            expected="a path below a configured root", got=name, hint="Name it relative to one of the server's roots."
        )
    return None


def _absolute(root: Path) -> Path:
    return root.expanduser().absolute()


def _exists_without_links(path: Path, root: Path, name: str) -> bool:
    """Whether `path` exists; every component below `root` is looked at without following it."""
    place = root
    for part in path.relative_to(root).parts:
        place = place / part
        try:
            mode = place.lstat().st_mode
        except (OSError, ValueError):  # absent, too long for a file name, not encodable: no such thing here
            return False
        if stat.S_ISLNK(mode):
            raise _link(name, place.relative_to(root).as_posix())
    return path.exists()


def _refuse_links(folder: Path, name: str, entries: Sequence[str]) -> None:
    for entry in sorted(entries):
        if (folder / entry).is_symlink():
            raise _link(name, entry)


def _link(name: str, entry: str) -> ForbiddenSource:
    return ForbiddenSource(
        expected="a path and files without symbolic links",
        got=name,
        hint=f"{entry!r} is a link. Copy what it points to (hf download --local-dir makes real files).",
    )


def _json_object(path: Path, name: str) -> dict[str, Any]:
    """The JSON object in one of the teacher's files."""
    if not path.is_file():
        raise UnusableTeacher(expected=f"a directory with {path.name}", got=name)
    if path.stat().st_size > MAX_JSON_BYTES:
        raise UnusableTeacher(
            expected=f"a {path.name} of at most {MAX_JSON_BYTES:,} bytes", got=f"{path.stat().st_size:,} bytes"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or nested beyond reason
        raise UnusableTeacher(expected=f"valid JSON in {path.name}", got=name, hint=f"{error}.") from None
    if not isinstance(content, dict):
        raise UnusableTeacher(expected=f"a JSON object in {path.name}", got=name)
    return content


def _refuse_adapter(folder: Path) -> None:
    if (folder / _ADAPTER_CONFIG).is_file():
        base = _json_object(folder / _ADAPTER_CONFIG, folder.name).get("base_model_name_or_path")
        raise UnusableTeacher(
            expected="a whole model",
            got=f"an adapter ({_ADAPTER_CONFIG}) to {base!r}",
            hint="Merge it into its base: PeftModel.from_pretrained(…).merge_and_unload().save_pretrained(…).",
        )


def _refuse_code(config: Mapping[str, Any], file: str) -> None:
    if config.get(_CODE):
        raise ForbiddenSource(
            expected=f"a stock tokenizer, so no {_CODE} in {file}",
            got=config[_CODE],
            hint="Code that comes with a model is never run. If the stock class reads the text the same way, remove "
            "the attribute from a copy of your own.",
        )


def _refuse_quantised(tensors: Mapping[str, StoredTensor], config: Mapping[str, Any]) -> None:
    """By what is there: a config may still speak of a quantisation that was undone."""
    fault = quantisation(tensors)
    if fault is None:
        return
    said = [
        f"{attribute} with quant_method {settings.get('quant_method')!r}"
        for attribute in _QUANTISED
        if isinstance(settings := config.get(attribute), dict)
    ]
    refuse([Fault("; ".join([fault.found, *said]), fault.cure)])


def _weight_files(folder: Path, name: str) -> tuple[tuple[Path, ...], Mapping[str, str] | None]:
    """The safetensors files that transformers would load: the single file, else the shards of the index, and that."""
    if (folder / _WEIGHTS).is_file():
        return (folder / _WEIGHTS,), None
    if (folder / _WEIGHTS_INDEX).is_file():
        return _shards(folder, name)
    pickles = sorted(entry.name for entry in folder.iterdir() if entry.suffix in _PICKLE_SUFFIXES)
    if pickles:
        raise ForbiddenSource(
            expected="weights as safetensors only",
            got=name,
            hint=f"{', '.join(pickles)} may hold pickled code. Convert where you trust it: "
            "AutoModelForCausalLM.from_pretrained(…).save_pretrained(…) writes safetensors.",
            files=pickles,
        )
    raise UnusableTeacher(expected=f"a directory with {_WEIGHTS} or {_WEIGHTS_INDEX}", got=name)


def _shards(folder: Path, name: str) -> tuple[tuple[Path, ...], Mapping[str, str]]:
    weight_map = _json_object(folder / _WEIGHTS_INDEX, name).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UnusableTeacher(expected=f"a weight_map in {_WEIGHTS_INDEX}", got=name)
    index = {tensor: str(shard) for tensor, shard in weight_map.items()}
    shards = sorted(set(index.values()))
    foreign = [s for s in shards if PurePosixPath(s).name != s or not s.endswith(".safetensors") or "\0" in s]
    if foreign:
        raise ForbiddenSource(
            expected=f"plain names of safetensors files in {_WEIGHTS_INDEX}", got=name, files=foreign[:_OFFER_NAMES]
        )
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise UnusableTeacher(
            expected=f"every shard that {_WEIGHTS_INDEX} lists",
            got=name,
            hint=f"Missing: {', '.join(missing[:_OFFER_NAMES])}.",
            missing=missing,
        )
    return tuple(folder / shard for shard in shards), index


def _files(folder: Path, name: str, is_wanted: Callable[[Path], bool]) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """The files below a folder that are wanted, and the names of the others. Raises ForbiddenSource for a link."""
    found: list[Path] = []
    others: list[str] = []
    for place, folders, files in os.walk(folder):
        checkpoint()
        _refuse_links(Path(place), name, [*folders, *files])
        folders[:] = [each for each in folders if not _is_hidden(Path(each))]
        for file in (Path(place, each) for each in files if not _is_hidden(Path(each))):
            if is_wanted(file) and file.is_file():  # a pipe would block whoever reads it
                found.append(file)
            else:
                others.append(file.relative_to(folder).as_posix())
    return tuple(sorted(found, key=lambda file: file.relative_to(folder).as_posix())), tuple(sorted(others))


# What the roots hold, for the hints.


def _offer(names: Iterator[str]) -> str:
    offered = sorted(dict.fromkeys(name for name, _ in zip(names, range(_OFFER_NAMES), strict=False)))
    return f"The server offers: {', '.join(offered)}." if offered else "The server's roots hold none at all."


def _models(roots: Sequence[Path]) -> Iterator[str]:
    return (name for name, _, files in _folders(roots) if _CONFIG in files)


def _texts(roots: Sequence[Path]) -> Iterator[str]:
    return (name for name, _, files in _folders(roots) if any(is_text(Path(file)) for file in files))


def _folders(roots: Sequence[Path]) -> Iterator[tuple[str, list[str], list[str]]]:
    """(name, folders, files) of every folder near the top of the roots, none of them a link."""
    for root in map(_absolute, roots):
        for place, folders, files in os.walk(root):
            checkpoint()
            name = Path(place).relative_to(root)
            folders[:] = sorted(folders) if len(name.parts) < _OFFER_DEPTH else []
            yield name.as_posix(), folders, files
