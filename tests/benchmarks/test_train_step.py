"""The benchmark runs, counts what the mathematics says, and skips what a device cannot hold."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

FILE = Path(__file__).parents[2] / "benchmarks" / "train_step.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("train_step", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["train_step"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_row_for_every_model(bench, tmp_path, capsys):
    out = tmp_path / "speed.json"
    bench.main(["--models", "clip", "captioner", "--batch-sizes", "2", "4", "--seconds", "0.01", "--out", str(out)])
    found = json.loads(out.read_text())
    assert [(row["model"], row["batch"]) for row in found["rows"]] == [
        ("clip", 2), ("clip", 4), ("captioner", 2), ("captioner", 4),
    ]  # fmt: skip
    for row in found["rows"]:
        assert row["images/s"] == pytest.approx(row["batch"] / row["ms"] * 1000)
        assert row["share"] == pytest.approx(row["TFLOP"] / row["ms"] * 1000 / found["matrix_tflops"])
    assert found["rows"][1]["TFLOP"] == pytest.approx(2 * found["rows"][0]["TFLOP"], rel=0.1)
    said = capsys.readouterr().out
    assert found["machine"] in said
    assert said.count("| captioner | tiny | 4 | no |") == 2


def test_the_flops_are_those_of_the_mathematics(bench):
    """CLIP's image tower in size tiny, by hand: forward, and twice that backward."""
    model = bench.build("clip", "tiny", pixels=None, checkpointing=False).image_encoder
    tokens, width, depth = 16, 96, 2
    with bench.FlopCounterMode(display=False) as counter:
        model.vit.blocks(torch.zeros(3, tokens, width)).sum().backward()
    layer = 2 * tokens * 12 * width**2 + 2 * 2 * tokens**2 * width
    # The first layer's input is no parameter: of its first product only the weight's gradient is needed.
    expected = 3 * (3 * depth * layer - 2 * tokens * 3 * width**2)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.05)


def test_what_does_not_fit_is_skipped(bench):
    with bench.memory_permitting() as why:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
    assert why == ["CUDA out of memory"]
    row = {"model": "blip", "size": "large", "batch": 9, "compiled": True, "skipped": why[0]}
    assert "| blip | large | 9 | yes |" in bench.table([row])
    assert "skipped: CUDA out of memory" in bench.table([row])
    with pytest.raises(RuntimeError, match="other"), bench.memory_permitting():
        raise RuntimeError("other")
