import json
import time

import pytest
import torch

from tldr.ledger import Ledger


def test_stages_are_timed_in_order(tmp_path):
    ledger = Ledger()
    with ledger.stage("read") as stage:
        time.sleep(0.02)
        stage.images = 12
    with ledger.stage("select"):
        pass
    read, select = ledger.stages
    assert read.seconds >= 0.02 > select.seconds
    assert ledger.seconds == pytest.approx(read.seconds + select.seconds)
    written = json.loads(ledger.write(tmp_path).read_text())
    assert [stage["name"] for stage in written] == ["read", "select"]
    assert written[0] | {"seconds": 0, "device_seconds": 0} == {
        "name": "read", "seconds": 0, "device_seconds": 0, "images": 12, "cached": False,
    }  # fmt: skip


@pytest.mark.parametrize("devices", [0, 2])
def test_accelerators_cost_while_they_are_used(monkeypatch, devices):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: devices > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    ledger = Ledger()
    with ledger.stage("signals"):
        time.sleep(0.01)
    with ledger.stage("cached") as stage:
        stage.cached = True
        time.sleep(0.01)
    work, cached = ledger.stages
    assert work.device_seconds == pytest.approx(devices * work.seconds)
    assert cached.device_seconds == 0


def test_a_stage_that_fails_is_on_the_account():
    ledger = Ledger()

    def fail() -> None:
        with ledger.stage("train"):
            time.sleep(0.01)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert ledger.seconds >= 0.01
