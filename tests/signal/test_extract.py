import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tldr.data.loading import Batch
from tldr.pairs import Pairs
from tldr.signal import store
from tldr.signal.extract import extract, fingerprint
from tldr.signal.store import Signals

ROWS = 48  # of a part; the pool of 400 makes nine, the last of 16


class Scorer:
    """Says simple things about pairs, ``seconds`` a batch; remembers its rows, and stops after ``patience`` batches."""

    image_size, resize_mode = 8, "squash"
    device = torch.device("cpu")

    def __init__(self, *, seconds: float = 0.0, patience: int = 10**6) -> None:
        self.seconds, self.patience = seconds, patience
        self.rows: list[int] = []

    def constants(self) -> dict[str, Tensor]:
        return {"codebook": torch.arange(6.0).view(3, 2)}

    def signals(self, batch: Batch) -> dict[str, Tensor]:
        time.sleep(self.seconds)
        self.patience -= 1
        if self.patience < 0:
            raise KeyboardInterrupt
        self.rows += batch["rows"].tolist()
        pixels = batch["images"].float()
        return {
            "codes": pixels[:, 0].flatten(1)[:, :5].long() * 257,  # to 65,535
            "embedding": pixels.mean((2, 3)) / 255,
            "alignment": pixels.std((1, 2, 3)) - torch.tensor([float(len(text)) for text in batch["captions"]]),
            "tokens": torch.tensor([len(text) for text in batch["captions"]]),
            "mine": pixels.amax((1, 2, 3)),
        }


@pytest.fixture(autouse=True)
def parts(monkeypatch):
    monkeypatch.setattr(store, "PART_ROWS", ROWS)


def run(pool: Pairs, folder: Path, scorer=None, **options: Any) -> Signals:
    return extract(pool, scorer or Scorer(), folder=folder, **{"batch_size": 20, **options})


def files(folder: Path) -> dict[str, bytes]:
    """All that extraction leaves, but for what killed processes did not finish."""
    found = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}
    return {name: file.read_bytes() for name, file in found.items() if not name.startswith(".")}


def test_what_the_model_says_is_stored_in_order(tiny_pool, tmp_path):
    scorer = Scorer()
    signals = run(tiny_pool, tmp_path, scorer)
    assert scorer.rows == list(range(400))
    assert {name: (signals[name].dtype, signals[name].shape) for name in signals} == {
        "codes": (np.uint16, (400, 5)),
        "embedding": (np.float16, (400, 3)),
        "alignment": (np.float32, (400,)),
        "tokens": (np.uint16, (400,)),
        "mine": (np.float32, (400,)),
    }
    assert signals["tokens"].read().tolist() == [len(text) for text in tiny_pool.captions.to_pylist()]
    assert signals["codes"].read().max() > 40_000
    assert signals.constant("codebook").tolist() == [[0, 1], [2, 3], [4, 5]]
    assert signals.errors() == {}
    assert sorted(path.name for path in tmp_path.glob("part-*")) == [f"part-{i:05d}" for i in range(9)]
    assert len(np.load(signals.part(8) / "alignment.npy")) == 16


def test_what_exists_is_not_computed_again(tiny_pool, tmp_path):
    run(tiny_pool, tmp_path)
    again = Scorer()
    assert len(run(tiny_pool, tmp_path, again)["codes"].read()) == 400
    assert again.rows == []


@pytest.mark.parametrize("options", [{}, {"num_workers": 1}], ids=["here", "worker"])
def test_an_interrupted_run_goes_on_where_it_was(tiny_pool, tmp_path, options):
    """In the middle of the third part, of three batches each."""
    whole = files(run(tiny_pool, tmp_path / "whole").folder)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_pool, tmp_path / "part", Scorer(patience=7), **options)
    assert Signals(tmp_path / "part", 400).missing() == list(range(2, 9))
    rest = Scorer()
    run(tiny_pool, tmp_path / "part", rest, **options)
    assert rest.rows == list(range(2 * ROWS, 400))
    assert files(tmp_path / "part") == whole


SLOW = """
import sys
from test_extract import ROWS, Scorer
from tldr.pairs import Pairs
from tldr.signal import store
from tldr.signal.extract import extract

store.PART_ROWS = ROWS
extract(Pairs.open(sys.argv[1]), Scorer(seconds=0.1), folder=sys.argv[2], batch_size=20)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_killed_run_goes_on_where_it_was(tiny_pool, tmp_path):
    """Byte for byte what an undisturbed run leaves, and what was finished is not touched."""
    whole, folder = files(run(tiny_pool, tmp_path / "whole").folder), tmp_path / "killed"
    path = f"{Path(__file__).parent}{os.pathsep}{Path(__file__).parents[2]}"
    pool = tiny_pool.write(tmp_path / "pool")
    process = subprocess.Popen([sys.executable, "-c", SLOW, pool, folder], env={**os.environ, "PYTHONPATH": path})
    patience = time.monotonic() + 120
    while not (folder / "part-00001").is_dir():
        assert process.poll() is None, "it ended by itself"
        assert time.monotonic() < patience
        time.sleep(0.02)
    time.sleep(0.15)  # into the next part
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = {file: file.stat() for part in folder.glob("part-*") for file in part.iterdir()}
    finished = 9 - len(Signals(folder, 400).missing())
    assert 2 <= finished < 9
    rest = Scorer()
    run(tiny_pool, folder, rest)
    assert rest.rows == list(range(finished * ROWS, 400))
    assert files(folder) == whole
    for file, before in done.items():
        after = file.stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_several_processes_share_the_parts(tiny_pool, tmp_path):
    whole = files(run(tiny_pool, tmp_path / "whole").folder)
    scorers = [Scorer(), Scorer()]
    for number, scorer in enumerate(scorers):
        run(tiny_pool, tmp_path / "shared", scorer, parts=range(number, 9, 2))
    assert scorers[1].rows == [row for row in range(400) if row // ROWS % 2]
    assert sorted(scorers[0].rows + scorers[1].rows) == list(range(400))
    assert files(tmp_path / "shared") == whole


def test_pictures_that_cannot_be_decoded_are_named_and_cost_no_other(tmp_path):
    for i in range(100):
        noise = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{i:02d}.png")
    names = [f"{i:02d}" for i in range(100)]
    columns = {"uid": names, "image": [f"{name}.png" for name in names], "caption": names}
    pool = Pairs.build(columns, root=tmp_path)
    good = run(pool, tmp_path / "good")
    (tmp_path / "07.png").write_bytes((tmp_path / "07.png").read_bytes()[:90])
    (tmp_path / "50.png").unlink()
    (tmp_path / "99.png").write_bytes(b"no picture")
    bad = run(pool, tmp_path / "bad")
    errors = bad.errors()
    assert list(errors) == [7, 50, 99]
    assert errors[50] == "50.png: missing file"
    assert all(errors[row].startswith(f"{row:02d}.png: ") for row in errors)
    assert [list(json.loads((bad.part(i) / "errors.json").read_text())) for i in range(3)] == [["7"], ["50"], ["99"]]
    others = np.setdiff1d(np.arange(100), [7, 50, 99])
    for name in good:
        assert np.array_equal(bad[name].read(others), good[name].read(others))
        assert len(bad[name].read()) == 100


def test_a_captioners_signals(tiny_pool, tiny_vqvlm, tmp_path):
    """Two runs of the same model give the same bytes; the model stays what it was."""
    before = fingerprint(tiny_vqvlm)
    one = run(tiny_pool, tmp_path / "one", tiny_vqvlm, batch_size=64)
    run(tiny_pool, tmp_path / "two", tiny_vqvlm, batch_size=64)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert fingerprint(tiny_vqvlm) == before
    assert one["codes"].shape == (400, 4)
    assert one["codes"].read().max() < len(one.constant("codebook")) == 16
    quantised = one.constant("codebook")[one["codes"].read()].mean(1)
    assert one["embedding"].read() == pytest.approx(quantised, abs=0.01)
    assert np.isfinite(one["alignment"].read()).all()
    assert one["alignment"].read().std() > 0


# ------------------------------------------------------------------------------------------------ fingerprints


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.norm = nn.Linear(3, 3), nn.BatchNorm1d(3)
        self.register_buffer("flag", torch.tensor(False))
        self.register_buffer("short", torch.ones(2, dtype=torch.bfloat16))


def test_a_fingerprint_is_of_weights_and_buffers():
    first = fingerprint(Net())
    assert len(first) == 16
    assert int(first, 16) >= 0
    assert fingerprint(Net().eval()) == fingerprint(Net().requires_grad_(False)) == first
    seen = {first}
    with torch.no_grad():
        for name, value in Net().state_dict().items():
            model = Net()
            changed = model.state_dict()[name]
            changed.copy_(~value if value.dtype == torch.bool else value + 1)
            seen.add(fingerprint(model))
    assert len(seen) == 1 + len(Net().state_dict())


def test_a_fingerprint_is_of_the_class():
    class Other(Net):
        pass

    assert fingerprint(Other()) != fingerprint(Net())


def test_training_changes_the_fingerprint_and_evaluation_does_not():
    model, rows = Net(), torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    before = fingerprint(model)
    model.norm.eval()(rows)
    assert fingerprint(model) == before
    model.norm.train()(rows)
    assert fingerprint(model) != before
