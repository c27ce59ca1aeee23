"""The benchmark of learning, tiny: every number it promises is there. What the numbers are, the benchmark shows."""

from __future__ import annotations

import json

WORDS = "--data shapes --models clip vilt captioner --size 200 --eval-images 8 --share 0.005 --head-steps 2 --out out"


def test_a_row_for_every_model_beside_chance(benchmark, tmp_path):
    def run() -> str:
        return benchmark("learning", *WORDS.split())

    said = run()
    rows = {row["model"]: row for row in json.loads((tmp_path / "out" / "results.json").read_text())["rows"]}
    assert list(rows) == ["chance", "clip", "vilt", "captioner"]
    assert rows["chance"]["retrieval/tr@1"] == rows["chance"]["retrieval/ir@1"] == 12.5  # one of eight pictures
    assert rows["chance"]["nlvr2/accuracy"] == 50
    assert 0 < rows["chance"]["vqa/accuracy"] < 100
    for model, task in (("clip", "retrieval/tr@1"), ("vilt", "retrieval/tr@1"), ("captioner", "captioning/cider")):
        assert {task, "nlvr2/accuracy", "vqa/accuracy", "first loss", "last loss"} <= set(rows[model])
    assert "captioning/cider" not in rows["clip"]
    assert "| shapes | clip | 2 |" in (tmp_path / "out" / "results.md").read_text()
    assert "checkpoint=out/200-8-0.005-2-s0/shapes/vilt/retrieval" in said  # it is fine-tuned first
    assert "/shapes/clip/retrieval" not in said
    assert said.count("model.backbone=out/200-8-0.005-2-s0/shapes/vilt/vqa ") == 1  # statements after questions
    assert said.count("$ python train.py") == 11  # three each, for ViLT also the CLIP it begins from and retrieval
    assert run().count("$ python") == 0  # what is there is not computed again
