"""Weights, gradients and optimiser divided among processes, a layer at a time: PyTorch's FSDP2 (Zhao et al. 2023, arXiv
2304.11277) by Lightning.

Each transformer layer is gathered when it runs, and the parameters outside of layers for the whole step.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from tldr.nn.text import Layer

LAYERS = (Block, Layer)


class FullyShardedStrategy(ModelParallelStrategy):
    """Data parallel over all processes, and one checkpoint file, as on one device; ``options`` are Lightning's."""

    def __init__(self, **options: Any) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, **options)

    def setup_environment(self) -> None:
        """Set the data parallel size: the number of processes is known by now."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


def whole(parameter: Tensor) -> Tensor:
    """All values of a parameter that may be sharded; every process must call this."""
    found = parameter.detach()
    return found.full_tensor() if isinstance(found, DTensor) else found


def shard(module: nn.Module, mesh: DeviceMesh) -> None:
    """Divide ``module``, whose ``training_step`` is the forward pass, among the processes of ``mesh``."""
    for part in list(module.modules()):
        if isinstance(part, LAYERS):
            fully_shard(part, mesh=mesh)
    fully_shard(module, mesh=mesh)
    register_fsdp_forward_method(module, "training_step")
