"""NLVR as a user has it, by the commands: pre-train, fine-tune on its dev set, measure on its test set."""

from __future__ import annotations

import json

import pytest

from tldr.model.base import load_model
from tldr.model.nlvr2 import Nlvr2


def test_nlvrs_own_sets_are_trained_and_evaluated_on(command, project, test_data):
    root = test_data / "nlvr"
    for split in ("dev", "test"):
        if not (root / f"{split}.tar").is_file():
            pytest.skip(f"no {split}.tar in {root}")
    given = f"data=nlvr data.root={root} verify=exists logger=none"  # every drawing that is used is decoded then
    command("python train.py model=blip out=blip logger=none")
    said = command(f"python train.py model=nlvr2 model.pictures=1 model.backbone=blip out=judge {given}")
    assert "trained Nlvr2 for 4 steps on 5934 pairs" in said  # 989 sentences of dev, six drawings each
    told = "next: python evaluate.py checkpoint=judge evaluator=nlvr2 data=..."
    assert told in said
    assert isinstance(load_model(project / "judge"), Nlvr2)

    said = command(f"{told.removeprefix('next: ').removesuffix(' data=...')} data.split=test {given}")
    written = json.loads((project / "judge" / "evaluation-nlvr2-nlvr.json").read_text())
    numbers = written["metrics"]
    assert numbers["nlvr2/sentences"] == 5940  # of test, all of it
    details = json.loads((project / "judge" / "evaluation-nlvr2-nlvr-details.json").read_text())
    assert all(record["uid"].startswith("test-") for record in details)
    right = sum(record["right"] for record in details)
    assert numbers["nlvr2/accuracy"] == pytest.approx(100 * right / 5940)
    assert 0 <= numbers["nlvr2/consistency"] < numbers["nlvr2/accuracy"]  # whose groups are many drawings each
    for name in ("nlvr2/accuracy", "nlvr2/consistency"):
        assert f"{numbers[name]:.2f}" in said
