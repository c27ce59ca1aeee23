"""What every test may count on: nothing is uploaded or downloaded; `test_data` is where real data lies, if anywhere."""

import os
from pathlib import Path

import pytest

os.environ["WANDB_MODE"] = "offline"  # before anything imports them
os.environ["HF_HUB_OFFLINE"] = "1"

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real data: ``$TLDR_TEST_DATA``, else ``../shared/data``. Users never need it."""
    folder = Path(os.environ.get("TLDR_TEST_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set TLDR_TEST_DATA to its folder")
    return folder.resolve()
