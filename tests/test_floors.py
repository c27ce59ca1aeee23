"""The rules of the house that a reader relies on, held over every file of `tldr/` by reading its syntax tree.

Floors: tasks stand on methods, methods on signals and data, these on networks, everything on the ground floor.
"""

import ast
import graphlib
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOUSE = (  # from the ground up
    "pairs cluster engine ledger atomic check metric",
    "nn",
    "data",
    "signal hub",
    "report model selector refiner evaluator",
    "tasks",
)
FLOORS = {name: floor for floor, names in enumerate(HOUSE) for name in names.split()}
SIBLINGS = ("model", "selector", "refiner", "evaluator")  # each file of these is one way of several
MAX_LINES = 320

FILES = {path.relative_to(ROOT).as_posix(): path for path in sorted((ROOT / "tldr").rglob("*.py"))}
SCRIPTS = sorted(ROOT.glob("*.py"))
every_file = pytest.mark.parametrize("path", FILES.values(), ids=FILES)


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path) for path in FILES.values()}


def imports(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it; ``from a import b`` is ``a.b`` where that is one of ours."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{path}: write imports out, `from tldr...`, not `from .`"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inner & MODULES or {node.module}
    return found


def ours(path: Path) -> set[str]:
    return {name for name in imports(path) if name.split(".")[0] == "tldr" and name != "tldr"}


def group(module: str) -> str:
    return module.split(".")[1]


def test_every_module_has_a_floor():
    groups = {group(name) for name in MODULES if name != "tldr"}
    assert groups <= set(FLOORS), f"give {groups - set(FLOORS)} a floor"


@every_file
def test_imports_point_downward(path):
    name = name_of(path)
    if name == "tldr":
        assert not ours(path)
        return
    for other in ours(path):
        assert other in MODULES, f"{name} imports {other}, which is not there"
        below = FLOORS[group(other)] < FLOORS[group(name)]
        ground = FLOORS[group(other)] == FLOORS[group(name)] == 0
        assert below or ground or group(other) == group(name), f"{name} imports {other}, which is not below it"


@every_file
def test_siblings_do_not_import_each_other(path):
    """A method can be read, and removed, without the ones beside it; what they share stands in `base` or below."""
    name = name_of(path)
    for other in ours(path) - {name}:
        if group(other) == group(name) and group(name) in SIBLINGS:
            assert other == f"tldr.{group(name)}.base", f"{name} imports its sibling {other}"
        if group(other) == group(name) == "data":
            source = FILES[other.replace(".", "/") + ".py"].read_text(encoding="utf-8")
            assert not re.search(r"^class \w+\(Reader\)", source, re.M), f"{name} imports the reader {other}"


def test_no_import_goes_in_a_circle():
    graph = {name_of(path): ours(path) for path in FILES.values()}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names them


@every_file
def test_hydra_stops_at_the_door(path):
    configs = {"hydra", "omegaconf", "argparse"}
    assert not configs & {name.split(".")[0] for name in imports(path)}, "take plain, typed arguments"


@every_file
def test_file_is_named_told_and_short(path):
    assert path.stem not in ("utils", "util", "helpers", "misc", "common"), "name it for what it holds"
    source = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(source)), "open with a paragraph: what, paper, shapes"
    lines = source.count("\n")
    assert lines <= MAX_LINES, f"{lines} lines; past {MAX_LINES} a file holds two ideas: give the second its own"


# ---------------------------------------------------------------- dependencies


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = chain(project["dependencies"], *project["optional-dependencies"].values())
    return {canonical(re.split(r"[^\w.-]", line)[0]) for line in lines}


def test_what_is_imported_is_declared():
    distributions = packages_distributions()
    used = {name.split(".")[0] for path in (*FILES.values(), *SCRIPTS) for name in imports(path)}
    for name in sorted(used - sys.stdlib_module_names - {"tldr"}):
        owners = {canonical(owner) for owner in distributions[name]}
        assert owners & declared(), f"{name} is imported but {' or '.join(owners)} is not in pyproject.toml"


def test_what_is_declared_is_pinned():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert [line for line in pins if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []  # no paths, no hosts, no ranges
    names = {canonical(line.split("==")[0]) for line in pins}
    assert len(names) == len(pins)
    assert declared() - {"faiss-cpu"} <= names  # elsewhere than where constraints.txt was made
