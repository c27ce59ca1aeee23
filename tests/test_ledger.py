import json
import time

import pytest
import torch

from tldr.ledger import Ledger, Meter, charge_found, metered


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
    assert written[0] | {"seconds": 0, "device_seconds": 0, "made_seconds": 0} == {
        "name": "read", "seconds": 0, "devices": 0, "device_seconds": 0, "images": 12, "cached": False, "flops": 0,
        "found_seconds": 0, "found_flops": 0, "made_seconds": 0, "made_flops": 0,
    }  # fmt: skip


@pytest.mark.parametrize("devices", [0, 2])
def test_accelerators_cost_while_they_are_used(devices):
    """Those of the stage, however many the machine has."""
    ledger = Ledger()
    with ledger.stage("signals") as stage:
        stage.devices = devices
        time.sleep(0.01)
    with ledger.stage("cached") as stage:
        stage.devices, stage.cached = devices, True
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


def test_what_is_found_again_tells_what_it_had_cost(tmp_path):
    first, second = Ledger(), Ledger()
    with first.stage("scorer", home=tmp_path) as made:
        made.flops = 7e9
        time.sleep(0.01)
    with second.stage("scorer", home=tmp_path) as found:
        found.cached = True
    assert (made.made_seconds, made.made_flops) == (made.seconds, 7e9)
    assert (found.made_seconds, found.made_flops) == (made.seconds, 7e9)
    assert found.flops == 0
    with second.stage("elsewhere", home=tmp_path / "other") as unknown:
        unknown.cached = True
    assert unknown.made_seconds is unknown.made_flops is None


def test_a_result_that_failed_has_no_cost(tmp_path):
    with pytest.raises(KeyError), Ledger().stage("scorer", home=tmp_path):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_the_meter_counts_a_few_batches_and_multiplies():
    """A product of (rows, 8) and (8, 5) needs 2 * 8 * 5 FLOPs a row; backward, as much for either factor."""
    weight, meter = torch.ones(8, 5, requires_grad=True), Meter(batches=2)
    for rows, width in ((4, 8), (4, 4), (2, 1)):
        with meter.batch(rows):
            (torch.ones(rows, width, requires_grad=True) @ weight[:width]).sum().backward()
    assert meter.per_row == 3 * 2 * 6 * 5  # 8 and 4 wide: 6 in the mean
    assert meter.flops == 10 * meter.per_row
    assert not meter.counting


def test_the_attention_of_cpus_counts():
    heads, tokens, width, meter = 2, 16, 8, Meter()
    query = torch.ones(3, heads, tokens, width)
    with meter.batch(3), torch.no_grad():
        torch.nn.functional.scaled_dot_product_attention(query, query, query)
    assert meter.flops == 3 * heads * 2 * 2 * tokens**2 * width


def test_what_a_selector_trains_is_charged_to_its_stage_also_when_it_is_found(tmp_path):
    def product() -> torch.Tensor:
        return torch.ones(4, 8) @ torch.ones(8, 5)

    ledger, one = Ledger(), 2 * 4 * 8 * 5
    with ledger.stage("select"), metered(tmp_path) as meter:
        with meter.batch(4):
            product()
        time.sleep(0.02)
    with ledger.stage("select"):
        charge_found(tmp_path)
        with metered(tmp_path) as meter, meter.batch(4):  # and another one, into the same folder
            product()
    with ledger.stage("select"):
        charge_found(tmp_path)
        charge_found(tmp_path)  # a step of intersect is run again: what it took is counted once
        charge_found(tmp_path / "nobody wrote it down")
    made, more, found = ledger.stages
    assert (made.flops, made.found_flops, made.made_flops) == (one, 0, one)
    assert (more.flops, more.found_flops, more.made_flops) == (one, one, 2 * one)
    assert (found.flops, found.found_flops, found.made_flops) == (0, 2 * one, 2 * one)
    assert found.found_seconds >= 0.02
    with metered() as meter, meter.batch(4):  # outside of a stage nobody is charged
        product()
    assert meter.flops == one


def test_a_gradient_inside_a_backward_pass_is_counted():
    """As dataset distillation takes it, where it computes a step again instead of remembering it."""
    inner, meter = torch.nn.Linear(8, 8, bias=False), Meter()

    class Again(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            with torch.no_grad():
                return inner(x).sum()

        @staticmethod
        def backward(ctx, *slopes):
            (x,) = (each.detach().requires_grad_() for each in ctx.saved_tensors)
            with torch.enable_grad():
                return slopes[0] * torch.autograd.grad(inner(x).sum(), x)[0]

    x = torch.ones(4, 8, requires_grad=True)
    with meter.batch(4):
        Again.apply(x).backward()
    assert meter.flops == 3 * (2 * 4 * 8 * 8)  # forward, again, and the gradient of x
