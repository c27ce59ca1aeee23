import torch
from torch import nn

from tldr.nn.freeze import freeze_unreached
from tldr.nn.processes import connected, gather


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused, self.frozen = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False)
        self.norm, self.drop = nn.BatchNorm1d(2), nn.Dropout(0.5)
        self.scale = nn.Parameter(torch.zeros(()))  # its gradient is 0, and reaches it


def loss(net: Net) -> torch.Tensor:
    assert net.training
    return (net.drop(net.norm(net.used(torch.ones(3, 2)))) * net.scale).sum() * 0


def test_only_what_is_not_reached_is_frozen():
    net = Net()
    assert freeze_unreached(net, loss) == ["unused.weight", "unused.bias"]
    learns = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert learns == {"used.weight", "used.bias", "norm.weight", "norm.bias", "scale"}
    assert freeze_unreached(net, loss) == []


def test_a_trial_asks_no_other_process(monkeypatch):
    """They would wait for each other, and NCCL would not even take a CPU's tensors."""
    monkeypatch.setattr("tldr.nn.processes.dist.is_initialized", lambda: True)
    assert connected()
    assert freeze_unreached(Net(), lambda net: loss(net) + gather(net.used.weight).sum())
    assert connected()


def test_the_trial_leaves_no_trace():
    net = Net().eval()
    before, random = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    with torch.no_grad():  # as where models are loaded
        freeze_unreached(net, loss)
    torch.testing.assert_close(dict(net.state_dict()), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random)
    assert not net.training
    assert all(parameter.grad is None for parameter in net.parameters())
