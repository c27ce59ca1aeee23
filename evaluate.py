"""Measure checkpoints on a data set: ``python evaluate.py checkpoint=... evaluator=retrieval,captioning data=...``."""

import re
import sys
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
def main(cfg: DictConfig) -> None:
    """Run the task with what Hydra composed."""
    from tldr.tasks.evaluate import run  # here, so that --help and --cfg need no torch
    from tldr.tasks.steps import refuse_missing

    refuse_missing(OmegaConf.missing_keys(cfg), HydraConfig.get())
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    run(**instantiate(cfg, _convert_="all"), config=config)


def listed(arguments: list[str]) -> list[str]:
    """``evaluator=a,b`` as Hydra writes a list, ``evaluator=[a,b]``. It takes the former for a sweep, which it is where
    ``-m`` asks for one."""
    if {"-m", "--multirun"} & set(arguments):
        return arguments
    return [
        re.sub(r"^(evaluator|checkpoint)=([^\[\]{}()'\",]+(?:,[^\[\]{}()'\",]+)+)$", r"\1=[\2]", a) for a in arguments
    ]


if __name__ == "__main__":
    sys.argv[1:] = listed(sys.argv[1:])
    main()
