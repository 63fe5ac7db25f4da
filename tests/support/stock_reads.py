"""Which config attributes the stock classes could read, by the source of the installed transformers.

``python -m tests.support.stock_reads`` writes what `search.families.reads` knows; a test compares the two. Nothing is
run: the source is parsed. It errs to the side of reading, since what is found here to be read is refused until somebody
looks at it, and what is not found passes:

1. In the modules of a family's config class, its bases and its model class: every attribute of anything, every
   parameter, every string but docstrings. Fields that are declared and never used are not read.
2. In all other modules but those of other models: every attribute of something called ``…config…``, and every string,
   since ``getattr(config, name)`` takes its names from anywhere.
3. Parts of names that are put together where a config is read: ``getattr(config, f"output_{kind}")``.
"""

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, GenerationConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from search.families import FAMILIES
from search.families.reads import FILE

_ROOT = Path(transformers.__file__).parent
#: What an attribute of a config may be called.
_NAME = re.compile(r"_?[a-z][a-z0-9_]*")
_ACCESSORS = frozenset({"delattr", "getattr", "hasattr", "setattr"})


def stock_reads() -> dict[str, Any]:
    """What ``search/families/reads.json`` has to hold."""
    bases, own = set[Path](), dict[str, set[Path]]()
    for model_type in FAMILIES:
        config = CONFIG_MAPPING[model_type]
        bases |= {file for file in map(_file, config.__mro__) if not file.is_relative_to(_ROOT / "models")}
        model: Any = MODEL_FOR_CAUSAL_LM_MAPPING[config]
        own[model_type] = {_file(config), _file(model)}
    generation = set(GenerationConfig._get_default_generation_params())
    shared, parts = _names_in({file: file in bases for file in _shared_modules()})
    families: dict[str, list[str]] = {}
    for model_type, files in sorted(own.items()):
        names, more = _names_in(dict.fromkeys(files, True))
        families[model_type] = sorted(names - (shared - generation))
        parts |= more
    return {
        "transformers": transformers.__version__,
        "generation": sorted(generation),
        "parts": sorted(parts),
        "shared": sorted(shared),
        "families": families,
    }


def as_text(content: dict[str, Any]) -> str:
    """JSON whose lists of names are wrapped."""

    def wrapped(value: Any, indent: int) -> str:
        if isinstance(value, list):
            return textwrap.fill(
                json.dumps(value), 120, initial_indent="", subsequent_indent=" " * indent, break_on_hyphens=False
            )
        if isinstance(value, dict):
            inner = ",\n".join(f'{" " * indent}"{name}": {wrapped(one, indent + 1)}' for name, one in value.items())
            return f"{{\n{inner}\n{' ' * (indent - 1)}}}"
        return json.dumps(value)

    return wrapped(content, 1) + "\n"


def _shared_modules() -> Iterator[Path]:
    """All of transformers outside ``models``, and the classes that choose a model."""
    yield from (file for file in _ROOT.rglob("*.py") if not file.is_relative_to(_ROOT / "models"))
    yield from (_ROOT / "models" / "auto").glob("*.py")


def _file(kind: type) -> Path:
    """Where a class is written; outside transformers counts as nowhere that reads a config."""
    file = Path(inspect.getsourcefile(kind) or "") if kind is not object else Path()
    return file if file.is_relative_to(_ROOT) else _ROOT / "__init__.py"


def _names_in(modules: Mapping[Path, bool]) -> tuple[set[str], set[str]]:
    """(names, parts of names) that are read in some modules; of those marked true, everything counts."""
    names, parts = set[str](), set[str]()
    for file, all_of_it in modules.items():
        tree = ast.parse(file.read_text(encoding="utf-8"))
        names |= _strings(tree) | (_attributes_and_parameters(tree) if all_of_it else _attributes_of_configs(tree))
        parts |= _parts(tree)
    return {name for name in names if _NAME.fullmatch(name)}, parts


def _attributes_and_parameters(tree: ast.Module) -> set[str]:
    attributes = {
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Store)
    }
    parameters = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    return attributes | parameters


def _attributes_of_configs(tree: ast.Module) -> set[str]:
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and "config" in _called(node.value)}


def _strings(tree: ast.Module) -> set[str]:
    scopes = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, scopes) and node.body and isinstance(node.body[0], ast.Expr)
    }
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
    }


def _parts(tree: ast.Module) -> set[str]:
    """The fixed parts of names that are put together to look something up in a config."""
    return {
        part.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _ACCESSORS
        if len(node.args) > 1 and "config" in _called(node.args[0]) and isinstance(node.args[1], ast.JoinedStr)
        for part in node.args[1].values
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
    }


def _called(node: ast.expr) -> str:
    """The last name of an expression: ``config`` of ``self.config``, ``get_text_config`` of ``x.get_text_config()``."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name.lower()
        case ast.Call(func=inner) | ast.Subscript(value=inner):
            return _called(inner)
        case _:
            return ""


if __name__ == "__main__":
    FILE.write_text(as_text(stock_reads()), encoding="utf-8")
