import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from tldr.pairs import Pairs
from tldr.selector.chain import Chain
from tldr.selector.tldr import TLDR
from tldr.tasks.steps import LONGEST, named_steps, plain_name, selection_folder
from tldr.tasks.train import folders

CONF = Path(__file__).parents[2] / "conf" / "selector"


def load(file: Path) -> Any:
    return OmegaConf.to_container(OmegaConf.load(file))


def composed(script: str, *overrides: str) -> DictConfig:
    """The script's configuration, its references to Hydra's resolvable."""
    with initialize_config_dir(str(CONF.parent), version_base="1.3"):
        cfg = compose(script, overrides=list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    return cfg


def selected(*overrides: str) -> str:
    """The folder of ``select.py``."""
    cfg = composed("select", *overrides)
    return selection_folder(cfg, cfg.hydra)


def chain(*steps, **options) -> dict:
    return named_steps({**load(CONF / "chain.yaml"), "steps": list(steps), **options}, CONF, load)


# ------------------------------------------------------------------------------------------------ names


def test_names_become_configurations():
    config = chain("tldr", "random")
    assert config["steps"] == [load(CONF / "tldr.yaml"), load(CONF / "random.yaml")]
    assert config["names"] == ["tldr", "random"]
    made = instantiate(config, _convert_="all")
    assert isinstance(made, Chain)
    assert list(made.steps) == ["tldr", "random"]


def test_options_go_to_the_step():
    config = chain({"tldr": {"clusters": 7, "dim": 8}}, "tldr", {"random": None})
    assert [step.get("clusters") for step in config["steps"]] == [7, 50_000, None]
    first = instantiate(config, _convert_="all").steps["tldr"]
    assert isinstance(first, TLDR)
    assert (first.clusters, first.dim, first.feature) == (7, 8, "tokens")


def test_a_step_is_called_as_its_file_not_its_class():
    made = instantiate(chain("tldr_paper", "random"), _convert_="all")
    assert list(made.steps) == ["tldr_paper", "random"]
    mine = instantiate(chain("tldr_paper", "random", names=["a", "b"]), _convert_="all")
    assert list(mine.steps) == ["a", "b"]


def test_combinations_nest():
    config = chain({"union": {"steps": ["random", {"tldr": {"clusters": 3}}]}}, "random")
    inner = config["steps"][0]
    assert inner["names"] == ["random", "tldr"]
    assert inner["steps"][1]["clusters"] == 3
    assert config["names"] == ["union", "random"]
    made = instantiate(config, _convert_="all")
    assert made.needs == ("codes", "alignment")


def test_what_has_no_named_steps_stays_as_it_is():
    for config in ({"_target_": "a.B"}, {"_target_": "a.B", "steps": 10}, {"_target_": "a.B", "steps": [1, 2]}):
        assert named_steps(config, CONF, load) == config
    whole = load(CONF / "random.yaml")
    assert chain(whole)["steps"] == [whole]
    assert chain(whole)["names"] == ["random"]


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (["rnadom"], r"selector\.steps has 'rnadom'; choose from .*random, .*tldr"),
        ([{"tldr": {"cluster": 3}}], r"tldr has no option 'cluster'; it has novelty, reach, feature, dim"),
        ([{"random": {"clusters": 3}}], r"random has no option 'clusters'; it has none"),
        ([{"tldr": {}, "random": {}}], r"a step is a name or \{name: \{option: value\}\}"),
        (["tldr", 3], r"selector\.steps has 3; a step is a name"),
    ],
)
def test_errors_name_the_choices(steps, message):
    with pytest.raises(ValueError, match=message):
        chain(*steps)


def test_a_single_name_is_no_list():
    with pytest.raises(ValueError, match=r"it is a list, selector\.steps=\[tldr\]"):
        named_steps({"steps": "tldr"}, CONF, load)


# ------------------------------------------------------------------------------------------------ the folder's name


@pytest.mark.parametrize(
    ("derived", "plain"),
    [
        ("selector.steps-[semdedup,clip_score]", "selector.steps-semdedup-clip_score"),
        ("a-[{b: {c: 0.1}},d]__seed-1", "a-b-c-0.1-d__seed-1"),
        ("data.split-a__selector.target.root-/data/x", "data.split-a__selector.target.root-data-x"),
        ("selector.steps-[a/b,c/d]__x-'1 2'", "selector.steps-a-b-c-d__x-1-2"),
        ("", ""),
    ],
)
def test_the_folder_has_no_sign_that_hydra_reads(derived, plain):
    assert plain_name(derived) == plain


def test_selections_for_several_targets_have_a_folder_each():
    """Hydra takes +data@selector.target=... for one of data=..., by which the folder is named already."""
    line = ["selector=norm_sim", "compression=0.75", "seed=0", "selector.target.root=x"]
    one, other = (selected(*line, f"+data@selector.target={name}") for name in ("flickr8k", "folder"))
    assert one == "outputs/shapes/norm_sim-c0.75-s0/target-flickr8k__selector.target.root-x"
    assert other == "outputs/shapes/norm_sim-c0.75-s0/target-folder__selector.target.root-x"


@pytest.mark.parametrize("out", ["my data: [old]/[kept]", "kept", "s3-mount//team/kept"])
def test_a_folder_that_was_given_stays_as_it_is(out):
    assert selected("selector=random", "seed=1", f"out='{out}'") == out


def test_a_long_name_is_cut_and_still_tells_runs_apart(tmp_path):
    one, other = (plain_name("__".join(f"training.option_{i}-{i}" for i in range(n))) for n in (99, 100))
    assert one != other
    assert one[:140] == other[:140]
    assert len(one) == len(other) == LONGEST
    (tmp_path / one / other).mkdir(parents=True)
    assert plain_name("x-" + "y" * (LONGEST - 2)) == "x-" + "y" * (LONGEST - 2)
    assert plain_name("prompt-红") != plain_name("prompt-蓝")
    assert plain_name("prompt-红").isascii()


@pytest.mark.parametrize(
    "overrides",
    [
        ["selector=intersect", "selector.steps=[clip_loss,norm_sim]"],
        ["selector=norm_sim", "+data@selector.target=folder", "selector.target.root='/data/[x]'"],
        ["training.tokenizer=google-bert/bert-base-uncased", "+training.note='a, b: (c) = 蓝'"],
        [f"+training.option_{i}={i}" for i in range(20)],
    ],
)
def test_the_next_command_reads_the_folder_of_the_last(overrides):
    out = selected(*overrides)
    assert out.count("/") == 3
    train = composed("train", f"pairs={out}", "init_from=[a/b,c]", "max_steps=3")
    assert train.pairs == out
    home, folder = folders(train.names, pairs=out, out=None, seed=0)
    assert home == Path(out)
    assert folder == home / "blip-s0" / "init_from-a-b-c__max_steps-3"
    assert composed("evaluate", f"checkpoint={folder}").checkpoint == str(folder)


def test_folders_are_named_by_data_selector_recipe_and_seed():
    assert selected() == "outputs/shapes/tldr-c0.75-s0"
    assert selected("data=csv", "data.annotations=a.tsv", "data.name=cc3m", "seed=1") == "outputs/cc3m/tldr-c0.75-s1"
    for overrides, folder in {
        (): "outputs/shapes/full/blip-s0",
        ("pairs=outputs/x/pairs.arrow", "model=clip"): "outputs/x/clip-s0",
        ("experiment=blip_cc3m", "pairs=x", "max_steps=9"): "x/blip_cc3m-s0/max_steps-9",
        ("experiment=blip_vqa", "model.backbone=a/b", "data.questions=[q,r]", "data.name=v"):
            "outputs/v/full/blip_vqa-s0/model.backbone-a-b",
    }.items():  # fmt: skip
        cfg = composed("train", *overrides)
        assert str(folders(cfg.names, pairs=cfg.pairs, out=None, seed=cfg.seed)[1]) == folder


# ------------------------------------------------------------------------------------------------ the commands


def test_from_the_command_line_to_an_explanation(command, project):
    def select(overrides: str, **options: Any) -> str:
        return command(f"python select.py selector=chain {overrides} logger=none", **options)

    steps = "selector.steps=[random,{random:{}}]"
    said = select(steps)
    folder = project / "outputs" / "shapes" / "chain-c0.75-s0" / "selector.steps-random-random"
    assert f"next: python train.py model=blip pairs={folder.relative_to(project)}" in said
    assert len(Pairs.open(folder)) == 80
    decisions = pq.read_table(folder / "decisions.parquet")
    prefixes = [reason.split(": ")[0] for reason in decisions["reason"].to_pylist()]
    assert (prefixes.count("random"), prefixes.count("random_2")) == (160, 160)
    config = json.loads((folder / "provenance.json").read_text())["config"]["selector"]
    assert config["steps"] == [load(CONF / "random.yaml")] * 2  # what the names meant then

    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    shutil.rmtree(project / "data" / "shapes")  # no picture is looked at
    one, other = decisions["uid"].to_pylist()[:2]
    said = select(f"{steps} explain=[{one},{other}]")
    for row, uid in enumerate((one, other)):
        kept = "kept" if decisions["kept"][row].as_py() else "dropped"
        assert f"{uid} was {kept}" in said
        assert decisions["reason"][row].as_py() in said
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before
    assert "Of the selection that is in" not in said
    said = command(f"python select.py explain={one} out={folder}")
    assert f"{one} was" in said
    assert f"Of the selection that is in {folder}: names.selector=chain" in said
    assert "near it are" in command(f"python select.py explain={one}x out={folder}", fails=True)
    assert "no finished selection in" in command(f"python select.py explain={one}", fails=True)
    assert "choose from" in select("selector.steps=[rnadom]", fails=True)
