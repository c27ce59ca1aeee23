"""Reduce a pool of image-text pairs: ``python select.py data=flickr8k data.root=... selector=tldr compression=0.75``.

The folder of a script is the first on Python's path, so this file also answers when the standard library says
``import select``. Under that name it steps aside for the real one. (Where `select` is built into Python, as on Debian,
nobody asks; where it is a shared library, `subprocess` and `asyncio` would break without this.)
"""

if __name__ == "select":
    import os
    import sys
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec

    # The real one is compiled; whatever else is called select.py is a file like this, perhaps of another copy.
    elsewhere = [entry for entry in sys.path if not os.path.isfile(os.path.join(entry, "select.py"))]
    spec = PathFinder.find_spec("select", elsewhere)
    assert spec is not None
    assert spec.loader is not None
    sys.modules["select"] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules["select"])
else:
    from pathlib import Path
    from typing import Any

    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from hydra.utils import instantiate
    from omegaconf import DictConfig, OmegaConf

    @hydra.main(version_base="1.3", config_path="conf", config_name="select")
    def main(cfg: DictConfig) -> None:
        """Run the task with what Hydra composed."""
        from tldr.tasks.select import run  # here, so that --help and --cfg need no torch
        from tldr.tasks.steps import named_steps, refuse_missing, selection_folder

        def load(file: Path) -> Any:
            return OmegaConf.to_container(OmegaConf.load(file), resolve=True)

        refuse_missing(OmegaConf.missing_keys(cfg), HydraConfig.get())
        config: Any = OmegaConf.to_container(cfg, resolve=True)
        config["selector"] = named_steps(config["selector"], Path(__file__).parent / "conf" / "selector", load)
        config["out"] = selection_folder(config, HydraConfig.get())
        sweep = HydraConfig.get().mode is RunMode.MULTIRUN
        run(**instantiate(config, _convert_="all"), config=config, sweep=sweep)

    if __name__ == "__main__":
        main()
