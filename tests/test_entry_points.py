"""The three scripts start from anywhere, and `select.py` hides nothing from the standard library.

Where `select` is built into Python it cannot: the tests then prove less, and the one that shows the failure skips.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CHECK = """
def check(_):
    import asyncio, select, selectors, subprocess, sys
    selectors.DefaultSelector().close()
    subprocess.run([sys.executable, "-c", ""], check=True)
    asyncio.run(asyncio.sleep(0))
    assert select is sys.modules["select"] and select.__spec__.name == "select" and not hasattr(select, "main")
    return select.select([], [], [], 0)
"""
SCRIPT = f"""
import multiprocessing, sys
import hydra
{CHECK}
@hydra.main(version_base="1.3", config_path=None)
def main(cfg):
    check(0)
    with multiprocessing.get_context("spawn").Pool(2) as pool:  # its workers know this file as __mp_main__
        assert pool.map(check, range(4)) == [([], [], [])] * 4
    print("job", cfg.x, "is fine")

if __name__ == "__main__":
    main()
"""


def python(*args, cwd, path=""):
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | {"PYTHONPATH": path}
    command = [sys.executable, *map(str, args)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def house(tmp_path):
    """A folder with our select.py and a script that needs the real one."""
    folder = tmp_path / "house"
    folder.mkdir()
    shutil.copy(ROOT / "select.py", folder)
    (folder / "script.py").write_text(SCRIPT)
    return folder


# ---------------------------------------------------------------- the three scripts


@pytest.mark.parametrize("script", ["train.py", "select.py", "evaluate.py"])
@pytest.mark.parametrize("place", ["root", "elsewhere"])
def test_script_composes_its_config(script, place, tmp_path):
    cwd, name = (ROOT, script) if place == "root" else (tmp_path, ROOT / script)
    run = python(name, "--cfg", "job", cwd=cwd)
    assert run.returncode == 0, run.stderr
    assert "out:" in run.stdout


@pytest.mark.parametrize("script", ["train.py", "select.py", "evaluate.py"])
def test_script_refuses_a_typo(script, tmp_path):
    run = python(ROOT / script, "outt=here", cwd=tmp_path)
    assert run.returncode != 0
    assert "Could not override 'outt'" in run.stderr


# ---------------------------------------------------------------- select.py steps aside


@pytest.mark.parametrize("script", ["train.py", "select.py", "evaluate.py"])
def test_help_begins_with_what_to_type(script, tmp_path):
    said = python(ROOT / script, "--help", cwd=tmp_path).stdout
    assert said.startswith(("Train", "Reduce", "Measure"))
    assert f"  python {script} " in said.partition("== Configuration groups ==")[0]


def test_a_script_and_its_spawned_workers_find_the_real_select(house):
    run = python("script.py", "+x=1", cwd=house)
    assert run.returncode == 0, run.stderr
    assert "job 1 is fine" in run.stdout


def test_multirun_from_another_directory_finds_the_real_select(house, tmp_path):
    run = python(house / "script.py", "--multirun", "+x=1,2", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "job 1 is fine" in run.stdout
    assert "job 2 is fine" in run.stdout


@pytest.mark.parametrize("way", ["working directory", "path", "link", "link and path"])
def test_every_way_onto_the_path_finds_the_real_select(house, tmp_path, way):
    link = tmp_path / "link"
    link.symlink_to(house)
    path = {"working directory": "", "path": house, "link": link, "link and path": f"{link}{os.pathsep}{house}"}[way]
    run = python("-c", CHECK + "check(0)", cwd=house if way == "working directory" else tmp_path, path=str(path))
    assert run.returncode == 0, run.stderr


def test_pytest_as_a_module_runs_from_the_root():
    run = python("-m", "pytest", "-p", "no:cacheprovider", "tests/test_atomic.py", cwd=ROOT)
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout


@pytest.mark.skipif("select" in sys.builtin_module_names, reason="select is built into this Python: nothing hides it")
def test_without_stepping_aside_all_this_fails(house):
    ours = (house / "select.py").read_text()
    (house / "select.py").write_text(ours.replace('__name__ == "select"', "False"))
    assert (house / "select.py").read_text() != ours
    for command in (["script.py", "+x=1"], ["-c", CHECK + "check(0)"]):
        run = python(*command, cwd=house)
        assert run.returncode != 0
        assert str(house / "select.py") in run.stderr  # the standard library came by our file


@pytest.mark.parametrize(
    ("given", "found"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")]
)
def test_threads_spin_for_a_moment_unless_told_otherwise(given, found, monkeypatch):
    """Said before the OpenMP of PyTorch begins."""
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    code = "import os, sys, hydra, tldr; assert 'torch' not in sys.modules; print(os.environ.get('GOMP_SPINCOUNT'))"
    done = python("-c", code, cwd=ROOT, path=str(ROOT))
    assert (done.stdout.strip(), done.stderr) == (found, "")
