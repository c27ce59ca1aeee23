"""A benchmark run as a user runs it, in a folder of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def benchmark(tmp_path: Path) -> Callable[..., str]:
    """``benchmark("learning", "--size", "200")``, in `tmp_path`; what it printed."""

    def run(name: str, *words: str, **environment: str) -> str:
        done = subprocess.run(
            [sys.executable, ROOT / "benchmarks" / f"{name}.py", *words], cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
        return done.stdout

    return run
