"""A Python script run as from a shell, but in a fork of a process that has imported what the three scripts need: else
most tests would wait longer for that than for anything else. The fork runs this file."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

IMPORTED = ["hydra", "tldr.tasks.select", "tldr.tasks.train", "tldr.tasks.evaluate"]


def run_forked(
    words: Sequence[str | Path], *, cwd: Path, env: Mapping[str, str], timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """What ``python words`` does in ``cwd`` with ``env``; stdout has what it wrote there and to stderr. Raises
    subprocess.TimeoutExpired."""
    context = multiprocessing.get_context("forkserver")  # no fork of this process: threads and locks would come along
    context.set_forkserver_preload(IMPORTED)
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder, "said")
        job = {"words": list(map(str, words)), "cwd": str(cwd), "env": dict(env), "said": str(said)}
        process = context.Process(target=runpy.run_path, args=(__file__, {"job": job}))
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(job["words"], timeout, said.read_text())
        return subprocess.CompletedProcess(job["words"], process.exitcode or 0, said.read_text(), "")


def _run(words: list[str], cwd: str, env: dict[str, str], said: str) -> None:
    """Make of this fork what a new interpreter would be, as far as scripts can tell."""
    output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(output, stream.fileno())
    atexit._clear()  # what was registered so far would tidy away what other forks use
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    warnings.resetwarnings()
    warnings.simplefilter(env.get("PYTHONWARNINGS", "default"))  # pyright: ignore[reportArgumentType]
    script = Path(words[0]).resolve()
    sys.argv = words
    sys.path.insert(0, str(script.parent))
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:  # which a process of multiprocessing leaves out
        atexit._run_exitfuncs()


if "job" in globals():
    _run(**globals()["job"])
