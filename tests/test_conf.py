"""Every file of `conf/` is tested the day it is added: it composes, its targets exist and take what it gives them.

`conf/` mirrors `tldr/`: a YAML of a group names something of that group; a method without a YAML is there for nobody.
"""

import inspect
import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError
from torch import nn

from tldr.data.tokenizer import Tokenizer
from tldr.hub.checkpoint import check_export
from tldr.model.vilt import Vilt
from tldr.nn.optimizer import adamw
from tldr.nn.text import TextTransformer
from tldr.nn.vision import ImageEncoder
from tldr.tasks.steps import refuse_missing, selection_folder
from tldr.tasks.train import folders

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
SPECIAL = {"_target_", "_partial_", "_recursive_", "_convert_", "_args_"}

TOPS = sorted(path.stem for path in CONF.glob("*.yaml"))
OPTIONS = sorted(path.relative_to(CONF).with_suffix("").as_posix() for path in CONF.glob("*/**/*.yaml"))
MIRRORED = [
    option for option in OPTIONS if option.startswith(("data/", "model/", "selector/", "refiner/", "evaluator/"))
]
WHOLE = [option for option in MIRRORED if option.count("/") == 1]  # the others are parts, as model/size/base
MODELS = [option.split("/")[1] for option in WHOLE if option.startswith("model/")]
SIZES = [option.split("/")[2] for option in OPTIONS if option.startswith("model/size/")]
UNSIZED = ["classifier", "nlvr2", "vqa"]  # small networks of its own; heads, which have their backbone's
METHODS = sorted(
    f"{group}/{path.stem}"
    for group in ("selector", "refiner", "evaluator")
    for path in (ROOT / "tldr" / group).glob("*.py")
    if path.stem not in ("__init__", "base")
)


@pytest.fixture(scope="module", autouse=True)
def hydra():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def alone(option: str) -> DictConfig:
    """The option by itself, with what its own defaults bring; an experiment in the first script that takes it."""
    group, name = option.rsplit("/", 1)
    if group != "experiment":
        return compose(overrides=[f"+{group}={name}"])
    errors = []
    for top in TOPS:
        try:
            return compose(top, overrides=[f"{group}={name}"])
        except HydraException as error:
            errors.append(f"{top}.yaml: {error}")
    raise AssertionError("\n".join(errors))


def targets(node: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every ``_target_`` in a plain config, outermost first, with its arguments."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield node["_target_"], {key: value for key, value in node.items() if key not in SPECIAL}
        for value in node.values():
            yield from targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from targets(value)


def plain(cfg: DictConfig) -> Any:
    return OmegaConf.to_container(cfg, resolve=False)


def choices(top: str) -> dict[str, str | None]:
    """The groups that a script's config takes, with the option each has by default (of a list, nothing)."""
    lists = [key for entry in OmegaConf.load(CONF / f"{top}.yaml").defaults for key, value in _items(entry) if value]
    return dict.fromkeys(lists) | dict(compose(top, return_hydra_config=True).hydra.runtime.choices)


def _items(entry: Any) -> list[tuple[str, bool]]:
    """A line of the defaults: its group, and whether it takes several options."""
    several = isinstance(entry, DictConfig) and [(str(key), isinstance(entry[key], ListConfig)) for key in entry]
    return several or []


def broken_references(node: DictConfig | ListConfig) -> list[str]:
    """The interpolations that lead nowhere; what the user has to give (``???``) may be missing."""
    found = []
    key: Any
    for key in node if isinstance(node, DictConfig) else range(len(node)):
        try:
            child = None if OmegaConf.is_missing(node, key) else node[key]
        except InterpolationToMissingValueError:
            continue
        except Exception as error:
            found.append(str(error))
            continue
        if isinstance(child, DictConfig | ListConfig) and not OmegaConf.is_interpolation(node, key):
            found += broken_references(child)
    return found


def documented_overrides() -> list[str]:
    """Those of the table in docs/models.md, a value given to those that have none."""
    table = (ROOT / "docs" / "models.md").read_text(encoding="utf-8").partition("| override |")[2].partition("\n\n")[0]
    found = []
    for span in re.findall(r"`([^`]*=[^`]*)`", table.replace("\\|", "|")):
        beginning, _, values = span.rpartition("=")
        found += [f"{beginning}={value or 1}" for value in values.split("|")]
    return found


def official_sets() -> list[str]:
    """The overrides that docs/models.md tells for them."""
    table = (
        (ROOT / "docs" / "models.md").read_text(encoding="utf-8").partition("| set | files |")[2].partition("\n\n")[0]
    )
    return [line.rsplit("`", 2)[1] for line in table.splitlines()[2:]]


def exportable() -> list[str]:
    """The overrides of the models that docs/models.md says can be exported."""
    told = (ROOT / "docs" / "models.md").read_text(encoding="utf-8").partition("These have one")[2].split("\n\n")[1]
    return [" ".join(line.split()) for line in re.sub(r"\\\n", "", told).splitlines()]


def recipe_commands() -> list[tuple[str, list[str]]]:
    """(script, overrides) of every command that the recipes tell."""
    lines = [line for file in (CONF / "experiment").glob("*.yaml") for line in file.read_text("utf-8").splitlines()]
    told = [re.fullmatch(r"#\s+python (\w+)\.py (.*)", line) for line in lines]
    return [(found[1], shlex.split(found[2])) for found in told if found]


def hydra_of(script: str, overrides: list[str]) -> Any:
    """Hydra's own configuration, which from now on is the one that references are resolved by."""
    cfg = compose(script, overrides=overrides, return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    return cfg.hydra


# ---------------------------------------------------------------- the scripts' configs


def test_every_script_has_its_config():
    assert sorted(path.stem for path in ROOT.glob("*.py")) == TOPS


@pytest.mark.parametrize("top", TOPS)
def test_every_option_composes(top):
    """With everything that the script takes at its default, each option of each of its groups in turn."""
    groups = choices(top)
    for option in OPTIONS:
        group, name = option.rsplit("/", 1)
        if group in groups and group not in ("experiment", "scorer"):  # that of one script; all of them already
            cfg = compose(top, overrides=[f"{group}={name}"], return_hydra_config=True)
            HydraConfig.instance().set_config(cfg)
            assert broken_references(OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])) == [], (
                option
            )


@pytest.mark.parametrize("group", sorted({option.split("/")[0] for option in OPTIONS}))
def test_every_group_is_taken_by_a_script(group):
    assert any(group in choices(top) for top in TOPS)


@pytest.mark.parametrize("option", [option for option in OPTIONS if option.startswith("experiment/")])
def test_an_experiment_invents_no_key(option):
    """On the command line Hydra refuses a mistyped key; from a file it takes it."""
    known = set().union(*(compose(top) for top in TOPS))
    assert set(alone(option)) <= known


@pytest.mark.parametrize("option", [option for option in OPTIONS if option.startswith("experiment/")])
def test_an_experiments_rate_rises_first_and_has_no_cliff(option):
    cfg = compose("train", overrides=[f"experiment={option.split('/')[1]}"])
    given: Any = cfg.model.optimizer
    made = adamw(nn.Linear(2, 2), total_steps=cfg.max_steps, **{**given, "head_lr_scale": 1})
    factor = made["lr_scheduler"]["scheduler"].lr_lambdas[0]
    rates = [factor(step) for step in range(cfg.max_steps)]
    top = rates.index(max(rates))
    assert top < 0.11 * cfg.max_steps
    assert all(after > 0.8 * before for before, after in pairwise(rates[top:-100]))


@pytest.mark.parametrize("option", [option for option in OPTIONS if option.startswith("experiment/")])
def test_an_experiment_leaves_the_trainer_to_the_user(option):
    name = option.split("/")[1]
    whole = compose("train", overrides=[f"experiment={name}", "trainer=fsdp"])
    assert whole.trainer.strategy == {"_target_": "tldr.nn.shard.FullyShardedStrategy"}


@pytest.mark.parametrize(
    "option", [option for option in OPTIONS if option.startswith(("experiment/blip_", "experiment/vilt_"))]
)
def test_a_recipe_of_a_published_code_has_its_optimiser(option):
    """AdamW's own betas in BLIP's, 0.98 in ViLT's; neither clips gradients."""
    name = option.split("/")[1]
    cfg = compose("train", overrides=[f"experiment={name}"])
    assert cfg.model.optimizer.betas == [0.9, 0.999 if name.startswith("blip_") else 0.98]
    assert cfg.trainer.gradient_clip_val is None


def test_a_recipes_retrieval_may_match_as_many_pairs_as_it_has():
    """ViLT reads each of COCO's 5,000 test pictures with each of 25,010 captions; of Flickr30k's, 1,000 with 5,000."""
    lines = (CONF / "experiment" / "vilt_retrieval_coco.yaml").read_text("utf-8").splitlines()
    told = [shlex.split(line)[3:] for line in lines if "python evaluate.py" in line]
    allowed = {
        cfg.data.name: cfg.evaluator.retrieval.max_matches for cfg in (compose("evaluate", words) for words in told)
    }
    assert allowed["coco"] >= 5_000 * 25_010
    assert allowed["flickr30k"] >= 1_000 * 5_000


def test_every_recipe_begins_from_what_another_leaves():
    """The folders that the recipes' commands read, a subset or a checkpoint, are those that others of them write."""
    read, written = {}, set()
    for script, overrides in recipe_commands():
        cfg = compose(script, overrides=overrides, return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        line = f"{script}.py {' '.join(overrides)}"
        read |= dict.fromkeys(re.findall(r"=(outputs/\S+)", line), line)
        if script == "select":
            written.add(selection_folder(cfg, cfg.hydra))
        elif script == "train":
            written.add(str(folders(cfg.names, pairs=cfg.pairs, out=cfg.out, seed=cfg.seed)[1]))
    assert {folder: line for folder, line in read.items() if folder not in written} == {}


def test_a_recipe_that_begins_from_something_does_not_begin_from_nothing():
    """What a recipe's command names as its beginning has to be named: OmegaConf would merge ??? into a null as null."""
    begins = [(script, words) for script, words in recipe_commands() if any(w.startswith("init_from=") for w in words)]
    assert len({word for _, words in begins for word in words if word.startswith("experiment=")}) >= 5
    for script, words in begins:
        whole, less = words, [word for word in words if not word.startswith("init_from=")]
        refuse_missing(OmegaConf.missing_keys(compose(script, overrides=whole)), hydra_of(script, whole))
        with pytest.raises(ValueError, match=r"^init_from is missing, .* conf/experiment/\w+\.yaml say more"):
            refuse_missing(OmegaConf.missing_keys(compose(script, overrides=less)), hydra_of(script, less))


def test_the_readmes_scorer_for_photographs_trains_past_its_codebooks_beginning():
    told = re.findall(r"`(model=vqvlm_base [^`]*)`", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert told
    for words in told:
        cfg = compose("select", overrides=words.split())
        assert cfg.training.max_steps > cfg.model.quantizer.after


def test_every_recipe_tells_its_command():
    told = [override for script, overrides in recipe_commands() if script == "train" for override in overrides]
    recipes = {option for option in OPTIONS if option.startswith("experiment/")}
    assert {option.replace("/", "=") for option in recipes} <= set(told)


@pytest.mark.parametrize("words", documented_overrides())
def test_what_the_documents_override_is_there(words):
    compose("train", overrides=["model=blip", *words.split()])


@pytest.mark.parametrize("words", official_sets())
def test_the_official_sets_are_read_by_what_the_documents_say(words):
    overrides = ["checkpoint=x", *words.split()]
    refuse_missing(OmegaConf.missing_keys(compose("evaluate", overrides=overrides)), hydra_of("evaluate", overrides))


@pytest.mark.parametrize("name", [option.split("/")[1] for option in OPTIONS if option.startswith("scorer/")])
def test_a_scorer_is_the_model_of_its_name(name):
    """What its YAML says again or leaves to the class must not drift away from ``conf/model/``."""
    scorer, model = plain(alone(f"scorer/{name}").scorers[name].model), plain(alone(f"model/{name}").model)
    parameters = inspect.signature(get_object(model["_target_"])).parameters
    defaults = OmegaConf.create(
        {key: value.default for key, value in parameters.items() if key in model.keys() - scorer}
    )
    assert plain(defaults) | scorer == model


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", [name for name in MODELS if name not in UNSIZED])
def test_a_model_can_be_built_in_every_size(name, size):
    """Its parts fit each other and are those of the size; on the meta device, where weights have no memory."""
    cfg = compose("train", overrides=[f"model={name}", f"model/size={size}"]).model
    given: Any = plain(cfg)
    given["image"]["pretrained"] = False
    wanted: Any = plain(alone(f"model/size/{size}").model)
    with torch.device("meta"):
        made = instantiate(given, _convert_="all")(tokenizer=Tokenizer.learn(["a b"]).json)
        width = ImageEncoder(**{**wanted["image"], "pretrained": False}).width
    assert {part.width for part in made.modules() if isinstance(part, ImageEncoder)} == {width}
    texts = {part.width for part in made.modules() if isinstance(part, TextTransformer)}
    assert texts == {width if isinstance(made, Vilt) else wanted["text"]["width"]}


@pytest.mark.parametrize("words", exportable())
def test_what_the_documents_export_can_be(words):
    given: Any = plain(compose("train", overrides=words.split()).model)
    given["image"]["pretrained"] = False
    check_export(instantiate(given, _convert_="all")(tokenizer=Tokenizer.learn(["a b"]).json))


@pytest.mark.parametrize("name", UNSIZED)
def test_a_model_without_a_size_refuses_one(name):
    with pytest.raises(HydraException, match="model/size"):
        compose("train", overrides=[f"model={name}", "model/size=small"])


# ---------------------------------------------------------------- each option


@pytest.mark.parametrize("option", OPTIONS)
def test_targets_take_what_they_are_given(option):
    for target, given in targets(plain(alone(option))):
        found = get_object(target)
        parameters = inspect.signature(found).parameters
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            assert set(given) <= set(parameters), f"{target} takes {', '.join(parameters)}"


@pytest.mark.parametrize("option", WHOLE)
def test_option_names_something_of_its_group(option):
    found = list(targets(plain(alone(option))))
    assert found, "no _target_"
    assert found[0][0].startswith(f"tldr.{option.split('/')[0]}.")


@pytest.mark.parametrize("option", MIRRORED)
def test_option_opens_with_what_it_is(option):
    lines = (CONF / f"{option}.yaml").read_text(encoding="utf-8").splitlines()
    if lines[0].startswith("# @package"):  # Hydra reads it in the first line only
        lines = lines[1:]
    assert lines[0].startswith("# "), "open with a comment: what this is, with which numbers"


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_an_option(method):
    group, name = method.split("/")
    options = [option for option in WHOLE if option.startswith(f"{group}/")]
    modules = {target.rpartition(".")[0] for option in options for target, _ in targets(plain(alone(option)))}
    assert f"tldr.{group}.{name}" in modules, f"add conf/{group}/{name}.yaml"
