"""The benchmark runs, counts what the mathematics says, and skips what a device cannot hold."""

import json

import pytest
import torch


@pytest.fixture(scope="module")
def bench(module):
    return module("train_step")


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
    with bench.flop_counter() as counter:
        model.vit.blocks(torch.zeros(3, tokens, width)).sum().backward()
    products = 2 * tokens * 12 * width**2  # of a layer: four in attention, twice four in the MLP
    scores = 2 * tokens**2 * width  # of all heads; their use for the values is as much
    # Backward, each product is two, and the scores are computed once more: attention keeps none.
    assert counter.get_total_flops() == 3 * depth * (3 * products + (2 + 4 + 1) * scores)


def test_what_does_not_fit_is_skipped(bench):
    with bench.memory_permitting() as why:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
    assert why == ["CUDA out of memory"]
    row = {"model": "blip", "size": "large", "batch": 9, "compiled": True, "skipped": why[0]}
    assert "| blip | large | 9 | yes |" in bench.table([row])
    assert "skipped: CUDA out of memory" in bench.table([row])
    with pytest.raises(RuntimeError, match="other"), bench.memory_permitting():
        raise RuntimeError("other")


@pytest.mark.parametrize(("where", "error", "told"), [
    ("build", ValueError("text.width=96 must be\nthe image's"), "failed: ValueError: text.width=96 must be |"),
    ("Step", torch.OutOfMemoryError("CUDA out of memory. Tried"), "skipped: CUDA out of memory |"),
])  # fmt: skip
def test_one_that_cannot_be_measured_stops_no_other(bench, tmp_path, monkeypatch, capsys, where, error, told):
    """Whether it cannot be built, or not be run."""
    real, out = getattr(bench, where), tmp_path / "speed.json"

    def fake(first, *rest, **more):
        if first == "vilt" or type(first).__name__ == "Vilt":
            raise error
        return real(first, *rest, **more)

    monkeypatch.setattr(bench, where, fake)
    monkeypatch.setattr(bench, "matrix_rate", lambda *_, **__: 1e11)
    asked = ["--models", "vilt", "clip", "--batch-sizes", "2", "--seconds", "0.01", "--out", str(out)]
    if told.startswith("failed"):
        with pytest.raises(SystemExit, match="1 of 2 combinations failed: vilt tiny"):
            bench.main(asked)
    else:
        bench.main(asked)
    first, second = json.loads(out.read_text())["rows"]
    how, _, why = told.removesuffix(" |").partition(": ")
    assert first == {"model": "vilt", "size": "tiny", "batch": 2, "compiled": False, how: why}
    assert second["model"] == "clip"
    assert second["images/s"] > 0
    assert f"| vilt | tiny | 2 | no |  |  |  |  | {told}" in capsys.readouterr().out


def test_what_was_measured_is_written_before_the_next_begins(bench, tmp_path, monkeypatch):
    out = tmp_path / "speed.json"

    def measure(name, *_):
        if name == "vilt":
            raise KeyboardInterrupt
        return {"images/s": 1.0, "share": 0.5}

    monkeypatch.setattr(bench, "measure", measure)
    monkeypatch.setattr(bench, "matrix_rate", lambda *_, **__: 1e11)
    with pytest.raises(KeyboardInterrupt):
        bench.main(["--models", "clip", "vilt", "--seconds", "0.01", "--out", str(out)])
    assert [row["model"] for row in json.loads(out.read_text())["rows"]] == ["clip"]
