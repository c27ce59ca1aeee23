"""Train a model on a pool or on what `select.py` kept of it: ``python train.py model=blip pairs=outputs/shapes/tldr-c0.75-s0``."""

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> None:
    """Run the task with what Hydra composed."""
    from tldr.tasks.train import run  # here, so that --help and --cfg need no torch

    run(**instantiate(cfg, _convert_="all"), config=OmegaConf.to_container(cfg, resolve=True))


if __name__ == "__main__":
    main()
