"""What `train.py` says and refuses, by the function behind it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.utilities import rank_zero_only

from tests.model.conftest import backbone, save
from tldr.data.shapes import Shapes
from tldr.data.tokenizer import Tokenizer
from tldr.evaluator.base import Evaluator
from tldr.model.base import Model, describe, load_model
from tldr.model.captioner import Captioner
from tldr.model.classifier import Classifier
from tldr.model.clip import Clip
from tldr.model.nlvr2 import Nlvr2
from tldr.model.vqa import Vqa
from tldr.pairs import Pairs
from tldr.report.tracking import no_logger
from tldr.tasks.evaluate import choose, trained_on
from tldr.tasks.train import TASKS, know_the_first, next_command, refuse_processes, run

ROOT = Path(__file__).parents[2]
IMAGE = {"backbone": "conv_stem", "image_size": 32, "width": 16, "depth": 1, "heads": 2}
CONVNET = {"backbone": "convnet", "image_size": 32, "channels": 4, "patch_size": 2}
VIT = {**IMAGE, "backbone": "vit"}
TOWERS: dict[str, Any] = {
    "image": IMAGE, "text": {"width": 16, "depth": 1, "heads": 2, "max_length": 48}, "optimizer": {"lr": 1e-3},
}  # fmt: skip
TOKENIZER = Tokenizer.learn(["a red circle", "a blue square"] * 4, vocab_size=60).json


def train(pairs: Pairs, folder: Path, model: Any, **more: Any) -> Path:
    return run(
        data=Shapes(folder),
        model=model,
        trainer=partial(L.Trainer, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False),
        names={"data": "csv", "model": "some"},  # what `data` says, where the pairs are of other data
        cache=folder / "cache",
        pairs=pairs.write(folder / "pairs"),
        out=folder / "out",
        **{"logger": no_logger, "max_steps": 1, "batch_size": 32, "seed": 0, "vocab_size": 200, **more},
    )


@pytest.mark.parametrize(("machines", "machine", "rank"), [(2, "1", 1), (2, "0", 0), (1, "1", 0)])
def test_one_machine_of_several_begins_the_loggers_run(machines, machine, rank, monkeypatch):
    monkeypatch.setenv("NODE_RANK", machine)
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    know_the_first(partial(L.Trainer, num_nodes=machines))
    assert rank_zero_only.rank == rank  # pyright: ignore[reportFunctionMemberAccess]


# ---------------------------------------------------------------- the next command


def made(kind: str) -> Model:
    on = describe(backbone("blip", TOKENIZER))
    if kind == "classifier":
        return Classifier(image=CONVNET, optimizer={}, classes=[0, 1])
    if kind == "nlvr2":
        return Nlvr2(backbone=on, optimizer={}, pictures=1)
    if kind == "vqa":
        return Vqa(backbone=on, optimizer={}, answers=["yes", "no"])
    return backbone(kind, TOKENIZER)


KINDS = {
    "blip": "retrieval", "vilt": "retrieval", "clip": "retrieval", "captioner": "captioning", "nlvr2": "nlvr2",
    "vqa": "vqa", "classifier": "classification",
}  # fmt: skip


def test_a_sweep_does_not_start_processes_of_its_own(monkeypatch):
    """Lightning starts them with the command line, the -m in it: each would begin the sweep again."""
    several = partial(L.Trainer, accelerator="cpu", devices=2, strategy="ddp", enable_progress_bar=False)
    with pytest.raises(ValueError, match=r"-m and 2 processes on one machine: .*submitit_slurm"):
        refuse_processes(several)
    refuse_processes(partial(several, devices=1))
    monkeypatch.setenv("LOCAL_RANK", "0")  # torchrun's, or a cluster's, has started them
    refuse_processes(several)


def test_these_are_all_models():
    assert KINDS.keys() == {path.stem for path in (ROOT / "tldr" / "model").glob("*.py")} - {"__init__", "base"}


@pytest.mark.parametrize(("kind", "task"), KINDS.items())
def test_the_next_command_measures_what_the_model_can_do(tiny_pool, tmp_path, kind, task):
    module = made(kind)
    told = next_command(module, tmp_path, tiny_pool)
    assert told == f"python evaluate.py checkpoint={tmp_path} evaluator={task} data=shapes_eval"
    evaluator: Evaluator = TASKS[task]()
    assert choose(task, evaluator, {tmp_path: module}) == tmp_path


@pytest.mark.parametrize(
    ("objectives", "task", "other"), [(["lm"], "captioning", "retrieval"), (["itc", "itm"], "retrieval", "captioning")]
)
def test_what_a_blip_has_not_learned_is_not_measured(tiny_pool, tmp_path, objectives, task, other):
    """Its heads are there, as they began."""
    whole = backbone("blip", TOKENIZER)
    module = type(whole)(**{**whole.hparams, "objectives": objectives})
    assert f" evaluator={task} " in next_command(module, tmp_path, tiny_pool)
    assert f"its objectives being {', '.join(objectives)}" in TASKS[other]().lacks(module)


@pytest.mark.parametrize(
    ("data", "told"), [("cifar_scenes", "cifar_scenes_eval"), ("cifar10", "cifar10"), ("x", "...")]
)
def test_the_data_are_those_that_belong_to_the_pairs(tiny_pool, tmp_path, data, told):
    """Of a selection, which names them, as of a pool."""
    rows = range(4)
    for provenance in ({"names": {"data": data, "selector": "tldr"}}, {"data": data}):
        pairs = tiny_pool.take(rows, provenance=provenance)
        assert next_command(made("clip"), tmp_path, pairs).endswith(f" evaluator=retrieval data={told}")
    assert next_command(made("clip"), tmp_path, tiny_pool.take(rows, provenance={})).endswith(" data=...")


def test_the_run_ends_with_it(tiny_pool, tmp_path, capsys):
    train(tiny_pool, tmp_path, partial(Captioner, **TOWERS))
    folder = tmp_path / "out"
    expected = f"next: python evaluate.py checkpoint={folder} evaluator=captioning data=shapes_eval"
    assert capsys.readouterr().out.splitlines()[-1] == expected


def test_a_model_knows_what_selection_it_has_learned_from(tiny_pool, tmp_path):
    """So that the dashboard can draw its scores against the compression; the configuration says data=csv."""
    told: list[dict[str, Any]] = []

    def logger(**options: Any) -> Any:
        told.append(options)
        return no_logger()

    asked = {"names": {"data": "cc3m", "selector": "tldr", "refiner": "none"}, "compression": 0.75, "seed": 3}
    checkpoint = train(tiny_pool.take(range(64), provenance=asked), tmp_path, partial(Clip, **TOWERS), logger=logger)
    of = {"data": "cc3m", "selector": "tldr", "refiner": "none", "compression": 0.75, "seed": 3}
    assert json.loads((tmp_path / "out" / "provenance.json").read_text())["subset"] == of
    assert trained_on(checkpoint.parent) == of
    assert told[0]["group"] == "cc3m"
    assert trained_on(tmp_path / "given") == {}


def test_a_finished_model_of_other_pairs_is_not_replaced(tiny_pool, tmp_path):
    checkpoint = train(tiny_pool, tmp_path, partial(Clip, **TOWERS))
    written = checkpoint.read_bytes()
    with pytest.raises(ValueError, match=r"model\.ckpt is of another run: pairs was .* another folder: out="):
        train(tiny_pool.take(range(64), provenance={}), tmp_path, partial(Clip, **TOWERS))
    assert checkpoint.read_bytes() == written
    train(tiny_pool, tmp_path, partial(Clip, **TOWERS))  # the same once more


# ---------------------------------------------------------------- exports that there cannot be


@pytest.fixture
def untrained(monkeypatch) -> None:
    monkeypatch.setattr(Model, "training_step", lambda *_: pytest.fail("trained"))


@pytest.mark.usefixtures("untrained")
def test_what_cannot_be_exported_is_not_trained(tiny_pool, tmp_path):
    with pytest.raises(ValueError, match="a CLIPModel has loss=infonce, text_pooling=end and causal=true"):
        train(tiny_pool, tmp_path, partial(Clip, **TOWERS), export=True)
    labelled = tiny_pool.with_column("label", [row % 2 for row in range(len(tiny_pool))])
    with pytest.raises(ValueError, match="a Classifier has no counterpart in transformers"):
        train(labelled, tmp_path, partial(Classifier, image=CONVNET, optimizer={}), export=tmp_path / "folder")
    assert not (tmp_path / "out" / "model.ckpt").exists()
    assert not (tmp_path / "folder").exists()


@pytest.mark.usefixtures("untrained")
def test_nor_what_cannot_be_for_what_it_begins_from(tiny_pool, tiny_checkpoint, tmp_path):
    """Configured, the image encoder is a plain one; the checkpoint's is not."""
    with pytest.raises(ValueError, match="this image encoder is not the plain one"):
        train(
            tiny_pool, tmp_path, partial(Captioner, **{**TOWERS, "image": VIT}), init_from=tiny_checkpoint, export=True
        )


def test_and_the_other_way_round(tiny_pool, tmp_path):
    plain = save(Captioner(tokenizer=TOKENIZER, **{**TOWERS, "image": VIT}), tmp_path / "plain")
    file = train(tiny_pool, tmp_path, partial(Captioner, **TOWERS), init_from=plain, export=True)
    assert load_model(file).hparams["image"]["backbone"] == "vit"
    assert (file.parent / "huggingface" / "model.safetensors").is_file()


def test_a_heads_answers_are_known_by_then(tiny_pool, tmp_path):
    """They are learned from the pairs, after the head was built."""
    on = describe(backbone("vilt", TOKENIZER, image={**VIT, "norm_eps": 1e-12}))  # as of its words
    asked = tiny_pool.with_column("answers", [["yes", "no"][row % 2 :] for row in range(len(tiny_pool))])
    file = train(asked, tmp_path, partial(Vqa, backbone=on, optimizer=TOWERS["optimizer"]), export=True)
    config = json.loads((file.parent / "huggingface" / "config.json").read_text())
    assert config["architectures"] == ["ViltForQuestionAnswering"]
    assert config["id2label"] == {"0": "no", "1": "yes"}
