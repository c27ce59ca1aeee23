"""A copy of the three scripts and their configuration in sizes that a test can wait for, and a way to run commands."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.forked import run_forked

ROOT = Path(__file__).parents[2]
SMALL = {  # key: value, wherever it stands in conf/
    "data/shapes.yaml": {"size": "320", "eval_images": "20"},
    "model/size/tiny.yaml": {
        "image": "{backbone: conv_stem, image_size: 64, width: 32, depth: 1, heads: 2}",
        "text": "{width: 32, depth: 1, heads: 2, max_length: 64}",
    },
    "model/vqvlm.yaml": {"codebook_size": "32", "after": "4"},
    "model/blip.yaml": {"queue_size": "64", "embed_dim": "32"},
    "select.yaml": {"max_steps": "8", "batch_size": "32"},
    "train.yaml": {"max_steps": "4", "batch_size": "32"},
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project folder where defaults are tiny: the same commands, in seconds."""
    folder = tmp_path / "project"
    shutil.copytree(ROOT / "conf", folder / "conf")
    for script in ("select.py", "train.py", "evaluate.py"):
        shutil.copy(ROOT / script, folder)
    for name, values in SMALL.items():
        file = folder / "conf" / name
        text = file.read_text()
        for key, value in values.items():
            text, count = re.subn(rf"(?m)^( *){key}: .*$", rf"\g<1>{key}: {value}", text)
            assert count, f"{name} has no {key} any more"
        file.write_text(text)
    return folder


@pytest.fixture
def command(project: Path) -> Callable[..., str]:
    """Run ``python ...`` in the project; what it printed. ``fails=True``: it must fail; ``anew=True``: by a Python
    that has imported nothing yet."""

    def run(line: str, *, fails: bool = False, anew: bool = False) -> str:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default"}
        # As from a fresh shell: this process's own W&B service would take the runs of the command.
        own = ("TLDR_DATA", "TLDR_CACHE", "WANDB_SERVICE")
        environment = {key: value for key, value in environment.items() if key not in own}
        python, *words = line.split()
        assert python == "python"
        if anew:
            done = subprocess.run(
                [sys.executable, *words], cwd=project, env=environment, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, text=True, timeout=300, check=False,
            )  # fmt: skip
        else:
            done = run_forked(words, cwd=project, env=environment)
        assert (done.returncode != 0) == fails, done.stdout[-4000:]
        return done.stdout

    return run
