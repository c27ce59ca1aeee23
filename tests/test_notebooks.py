"""The notebooks run from top to bottom and draw their pictures. They look and never define, and are committed as they
were written: without outputs."""

import ast
import itertools
import os
import re
import shlex
from pathlib import Path

import nbformat
import pytest
from hydra import compose, initialize_config_dir
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}

pytestmark = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path, kind: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def commands(path: Path) -> list[tuple[str, list[str]]]:
    """The project's commands in the text: script, and arguments."""
    text = "\n".join(cell.source for cell in cells(path, "markdown"))
    lines = itertools.chain(*(block.splitlines() for block in re.findall(r"```bash\n(.*?)```", text, re.S)))
    words = (shlex.split(line, comments=True) for line in lines)
    return [(Path(script).stem, rest) for _, script, *rest in filter(None, words)]


def test_committed_as_it_was_written(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata == METADATA
    for cell in notebook.cells:
        assert re.fullmatch(r"[a-z-]+", cell.id), f"cell {cell.id}: an id that a person gave says what the cell is"
        assert not cell.metadata, f"cell {cell.id} holds metadata"
    for cell in cells(path, "code"):
        assert (cell.outputs, cell.execution_count) == ([], None), f"cell {cell.id} holds outputs"


def test_looks_and_never_defines(path):
    for cell in cells(path, "code"):
        source = re.sub(r"^[!%].*$", "", cell.source, flags=re.M)
        for node in ast.walk(ast.parse(source)):
            assert not isinstance(node, ast.ClassDef | ast.FunctionDef), f"cell {cell.id} defines {node.name}"


def test_commands_in_the_text_compose(path):
    found = commands(path)
    assert found
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for script, words in found:
            first = [re.sub(r",.*", "", word) for word in words if word != "-m"]  # of a sweep, the first job
            compose(script, overrides=first if "-m" in words else words)


def test_runs_and_draws(path, tmp_path):
    """As a person runs it, on a pool and for a training so small that it learns nothing."""
    env = os.environ | {
        "TLDR_NOTEBOOK_SIZE": "600",
        "TLDR_NOTEBOOK_STEPS": "8",
        "TLDR_NOTEBOOK_OUT": str(tmp_path / "out"),
        "TLDR_DATA": str(tmp_path / "data"),
        "TLDR_CACHE": str(tmp_path / "cache"),
        "IPYTHONDIR": str(tmp_path / "ipython"),
    }
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where).execute(env=env)
    pictures = 0
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            pictures += "image/png" in output.get("data", {})
            assert "Traceback" not in output.get("text", ""), f"cell {cell.id}:\n{output.text}"  # of a command
    assert pictures >= 8
    assert (tmp_path / "out").is_dir()
