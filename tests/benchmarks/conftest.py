"""A benchmark run as a user runs it, in a folder of its own."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.forked import run_forked

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def module() -> Iterator[Callable[[str], Any]]:
    """``module("train_step")``: a benchmark, or a part of one, to call."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield importlib.import_module
    sys.path.remove(str(ROOT / "benchmarks"))


@pytest.fixture
def benchmark(tmp_path: Path) -> Callable[..., str]:
    """``benchmark("learning", "--size", "200")``, in `tmp_path`; what it printed."""

    def run(name: str, *words: str, **environment: str) -> str:
        script = ROOT / "benchmarks" / f"{name}.py"
        done = run_forked([script, *words], cwd=tmp_path, env={**os.environ, **environment})
        assert done.returncode == 0, done.stdout[-5000:]
        return done.stdout

    return run
