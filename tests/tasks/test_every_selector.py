"""Every method of conf/selector, from its YAML, through the command that a user types: on rendered scenes, on scenes of
CIFAR-10's pictures and on photographs. Scorers are trained for a few steps and know nothing; it is about running."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tldr.pairs import Pairs

CONF = Path(__file__).parents[2] / "conf" / "selector"
FOR_A_TARGET = {"image_filter", "neural_data_server", "norm_sim"}
MAKERS = {"dataset_distillation", "trajectory_matching"}  # one needs labels, the other is in test_scorers.py
PLAIN = sorted({path.stem for path in CONF.glob("*.yaml")} - FOR_A_TARGET - MAKERS)
QUICK = "scorers.clip.training.max_steps=4 scorers.blip.training.max_steps=4 generation.max_length=6"
QUIET = "logger=none report=false exports=[]"
DATA = ("shapes", "cifar_scenes", "flickr8k")


@pytest.fixture(params=DATA)
def data(request, test_data, tmp_path) -> tuple[str, str]:
    """The overrides that name the data, and those that name them as a target."""
    if request.param == "shapes":
        return "data=shapes", "+data@selector.target=shapes_eval"
    if request.param == "cifar_scenes":
        size = "data.size=320 data.eval_images=20"
        target = "+data@selector.target=cifar_scenes_eval selector.target.eval_images=20"
        return f"data=cifar_scenes {size}", target
    lines = (test_data / "flickr8k" / "captions.txt").read_text(encoding="utf-8").splitlines()
    root = tmp_path / "flickr8k"
    root.mkdir()
    (root / "captions.txt").write_text("\n".join(lines[:321]) + "\n", encoding="utf-8")  # the first is the header
    (root / "images").symlink_to(next(path for path in (test_data / "flickr8k").iterdir() if path.is_dir()))
    return f"data=flickr8k data.root={root}", f"+data@selector.target=flickr8k selector.target.root={root}"


def test_all_run_from_their_yaml(command, project, data):
    pool, target = data
    command(f"python select.py -m {pool} selector={','.join(PLAIN)} {QUICK} {QUIET}")
    command(f"python select.py -m {pool} selector={','.join(sorted(FOR_A_TARGET))} {target} {QUICK} {QUIET}")
    home = project / "outputs" / pool.split()[0].partition("=")[2]
    found = [file.parent for file in home.rglob("provenance.json")]
    left = {json.loads((folder / "provenance.json").read_text())["names"]["selector"]: folder for folder in found}
    assert set(left) == {*PLAIN, *FOR_A_TARGET}
    for name, folder in left.items():
        table = pq.read_table(folder / "decisions.parquet")
        kept = Pairs.open(folder)
        assert len(kept) == round(0.25 * table.num_rows), name
        assert kept.uids.to_pylist() == table.filter(table["kept"])["uid"].to_pylist(), name
        assert all(reason.strip() for reason in table["reason"].to_pylist()), name


@pytest.mark.parametrize("selector", ["dataset_distillation", "data_pruning selector.score=el2n"])
def test_labels_that_are_not_there_are_refused(command, selector):
    said = command(f"python select.py selector={selector} logger=none", fails=True)
    assert "selector.labels=" in said
    assert "training" not in said.replace(".training", "")
