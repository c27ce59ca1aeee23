"""Train a model on a pool, or on what `select.py` kept of it:
``python train.py model=blip pairs=outputs/flickr8k/tldr-c0.75-s0``.
"""

from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> None:
    """Run the task with what Hydra composed."""
    from tldr.tasks.steps import refuse_missing, refuse_unread  # here, so that --help and --cfg need no torch
    from tldr.tasks.train import refuse_processes, run

    if cfg.pairs is not None:
        refuse_unread("data", HydraConfig.get().overrides.task, instead=f"pairs={cfg.pairs}")
        cfg.data = None
    refuse_missing(OmegaConf.missing_keys(cfg), HydraConfig.get())
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    given = instantiate(cfg, _convert_="all")
    if HydraConfig.get().mode is RunMode.MULTIRUN:
        refuse_processes(given["trainer"])
    run(**given, config=config)


if __name__ == "__main__":
    main()
