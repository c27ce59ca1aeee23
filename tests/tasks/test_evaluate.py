"""One table of several evaluators and checkpoints, by function and by command."""

from __future__ import annotations

import importlib.util
import json
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch

from tldr.data.loading import PairsDataset, ordered_loader
from tldr.data.pool import read_pool
from tldr.data.shapes import Shapes
from tldr.data.tokenizer import Tokenizer
from tldr.evaluator.base import Evaluator
from tldr.evaluator.captioning import Captioning
from tldr.evaluator.nlvr2 import Nlvr2 as Nlvr2Evaluator
from tldr.evaluator.retrieval import Retrieval
from tldr.evaluator.vqa import Vqa as VqaEvaluator
from tldr.model.base import Model, describe, load_model
from tldr.model.blip import Blip
from tldr.model.nlvr2 import Nlvr2
from tldr.model.vqa import Vqa
from tldr.report.tracking import no_logger
from tldr.tasks.evaluate import run

ROOT = Path(__file__).parents[2]
OPTIMIZER = {"lr": 1e-3}
SIMPLE = "evaluator.captioning.tokenizer=simple evaluator.captioning.metrics=[bleu,rouge_l,cider]"

metrics = pytest.mark.skipif(importlib.util.find_spec("pycocoevalcap") is None, reason="the extra `metrics` is missing")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Shapes:
    return Shapes(tmp_path_factory.mktemp("shapes"), split="eval", size=64, eval_images=8, image_size=32)


@pytest.fixture(scope="module")
def checkpoints(shapes: Shapes, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A BLIP that knows nothing, and two heads on it."""
    torch.manual_seed(0)
    blip = Blip(
        tokenizer=Tokenizer.learn(read_pool(shapes, progress=False).pairs.captions.to_pylist()).json,
        image={"backbone": "vit", "image_size": 32, "width": 16, "depth": 1, "heads": 2},
        text={"width": 16, "depth": 1, "heads": 2, "max_length": 48},
        optimizer=OPTIMIZER,
        embed_dim=8,
        queue_size=0,
    )
    models: dict[str, Model] = {
        "blip": blip,
        "nlvr2": Nlvr2(backbone=describe(blip), optimizer=OPTIMIZER),
        "vqa": Vqa(backbone=describe(blip), optimizer=OPTIMIZER, answers=["yes", "no", "2"]),
    }
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, model in models.items():
        trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
        trainer.strategy.connect(model)
        trainer.save_checkpoint(folder / name / "model.ckpt", weights_only=True)
    return {name: folder / name for name in models}


@pytest.fixture
def evaluators() -> dict[str, Evaluator]:
    options: dict[str, Any] = {"progress": False}
    captioning = Captioning(tokenizer="simple", metrics=["bleu", "rouge_l", "cider"], **options)
    return {
        "retrieval": Retrieval(**options),
        "captioning": captioning,
        "nlvr2": Nlvr2Evaluator(**options),
        "vqa": VqaEvaluator(**options),
    }


def evaluate(shapes: Shapes, tmp_path: Path, **given: Any) -> dict[str, float]:
    fixed: dict[str, Any] = {"data": shapes, "names": {"data": "shapes_eval"}, "logger": no_logger, "device": "cpu"}
    return run(**{**fixed, "cache": tmp_path / "cache", "out": tmp_path / "out", **given})


@metrics
def test_each_evaluator_takes_its_split_and_the_first_checkpoint_that_can(
    shapes, checkpoints, evaluators, tmp_path, capsys
):
    numbers = evaluate(shapes, tmp_path, evaluator=evaluators, checkpoint=list(checkpoints.values()))
    assert numbers["retrieval/images"] == numbers["captioning/images"] == 8
    assert {"retrieval/tr@1", "captioning/cider", "nlvr2/accuracy", "nlvr2/consistency", "vqa/accuracy"} <= set(numbers)
    said = capsys.readouterr().out
    lines = {line.split()[0]: line for line in said.splitlines() if "/" in line.split()[0]}
    assert set(numbers) <= set(lines)
    assert lines["nlvr2/accuracy"].endswith(str(checkpoints["nlvr2"]))
    assert lines["retrieval/tr@1"].endswith(str(checkpoints["blip"]))
    assert said.count("pairs read") == 3  # retrieval and captioning share one

    file = tmp_path / "out" / "evaluation-retrieval-captioning-nlvr2-vqa-shapes_eval.json"
    written = json.loads(file.read_text())
    assert written["metrics"] == pytest.approx(numbers)
    assert written["evaluators"]["vqa"]["checkpoint"] == str(checkpoints["vqa"] / "model.ckpt")
    assert len({each["pairs"] for each in written["evaluators"].values()}) == 3
    details = {
        name: json.loads((tmp_path / "out" / f"{file.stem}-{name}-details.json").read_text())
        for name in ("captioning", "nlvr2", "vqa")
    }
    assert len(details["captioning"]) == 8
    assert list(details["captioning"][0])[:2] == ["image_id", "caption"]
    assert list(details["vqa"][0])[:2] == ["question_id", "answer"]
    assert len(details["nlvr2"]) == numbers["nlvr2/sentences"]


def test_one_evaluator_writes_as_before(shapes, checkpoints, evaluators, tmp_path, capsys):
    one = {"retrieval": evaluators["retrieval"]}
    numbers = evaluate(shapes, tmp_path, evaluator=one, checkpoint=checkpoints["blip"], out=None)
    file = checkpoints["blip"] / "evaluation-retrieval-shapes_eval.json"
    written = json.loads(file.read_text())
    assert written["metrics"] == pytest.approx(numbers)
    assert written["checkpoint"] == str(checkpoints["blip"] / "model.ckpt")
    assert isinstance(written["pairs"], str)
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == f"wrote {file}"
    assert "\n\n" not in said


def test_nor_those_of_other_options(shapes, checkpoints, evaluators, tmp_path):
    """The file tells them, and the command with others writes another."""
    given = {"evaluator": {"retrieval": evaluators["retrieval"]}, "checkpoint": checkpoints["blip"]}
    options = [{"retrieval": {"rerank_k": k}} for k in (0, 16)]
    for asked in (*options, options[1]):
        evaluate(shapes, tmp_path, **given, config={"evaluator": asked})
    files = [file for file in (tmp_path / "out").glob("evaluation-*.json") if "details" not in file.name]
    told = [json.loads(file.read_text())["options"] for file in files]
    assert sorted(told, key=str) == sorted(options, key=str)


def test_nor_what_was_said_in_another_company(shapes, checkpoints, evaluators, tmp_path):
    given: dict[str, Any] = {"checkpoint": checkpoints["blip"]}
    for names, beams in ((["captioning"], 3), (["retrieval", "captioning"], 1)):
        asked = {name: evaluators[name] for name in names}
        evaluate(shapes, tmp_path, evaluator=asked, **given, config={"evaluator": {"captioning": {"num_beams": beams}}})
    reports = sorted(file for file in (tmp_path / "out").glob("evaluation-*.json") if "details" not in file.name)
    said = [json.loads(file.read_text())["evaluators"]["captioning"]["details"] for file in reports]
    assert len(set(said)) == len(said) == 2
    assert all(Path(file).is_file() for file in said)


def test_numbers_of_other_pairs_are_not_written_over(shapes, checkpoints, evaluators, tmp_path):
    """Subsets are called by their folders, whole; and of two with one name, the second is told apart."""
    pool = read_pool(shapes, progress=False).pairs
    given = {"evaluator": {"retrieval": evaluators["retrieval"]}, "checkpoint": checkpoints["blip"]}
    for folder, rows in (("a/tldr-c0.75-s0", 20), ("a/tldr-c0.75-s1", 25), ("b/tldr-c0.75-s0", 30)):
        (tmp_path / folder).mkdir(parents=True)
        pool.take(np.arange(rows)).write(tmp_path / folder)
        evaluate(shapes, tmp_path, **given, pairs=tmp_path / folder)
    evaluate(shapes, tmp_path, **given, pairs=tmp_path / folder)  # once more: into the same file
    files = [file for file in (tmp_path / "out").glob("evaluation-*.json") if "details" not in file.name]
    assert {"evaluation-retrieval-tldr-c0.75-s0.json", "evaluation-retrieval-tldr-c0.75-s1.json"} < {
        file.name for file in files
    }
    assert len({json.loads(file.read_text())["pairs"] for file in files}) == len(files) == 3


def test_a_checkpoint_that_nobody_takes_is_told(shapes, checkpoints, evaluators, tmp_path, capsys):
    given = {"evaluator": {"retrieval": evaluators["retrieval"]}}
    evaluate(shapes, tmp_path, **given, checkpoint=[checkpoints["blip"], checkpoints["vqa"]])
    said = capsys.readouterr().out
    assert f"(retrieval: {checkpoints['blip']}); not measured: {checkpoints['vqa']}. Each by itself: python" in said


def test_where_no_checkpoint_can_each_says_what_it_lacks(shapes, checkpoints, evaluators, tmp_path):
    with pytest.raises(ValueError, match=r"evaluator=nlvr2 .* Blip in .* lacks judge .*; Vqa in .* lacks judge"):
        evaluate(shapes, tmp_path, evaluator=evaluators, checkpoint=[checkpoints["blip"], checkpoints["vqa"]])
    assert not (tmp_path / "out").exists()


def test_pairs_without_the_columns_stop_the_run_before_it_measures(
    shapes, checkpoints, evaluators, tmp_path, monkeypatch
):
    pairs = read_pool(shapes, progress=False).pairs.write(tmp_path / "plain")
    monkeypatch.setattr(Retrieval, "__call__", lambda *_: pytest.fail("measured"))
    chosen = {name: evaluators[name] for name in ("retrieval", "vqa")}
    given = {"evaluator": chosen, "checkpoint": list(checkpoints.values()), "pairs": pairs}
    with pytest.raises(ValueError, match=r"vqa reads the column answers.*data=vqa"):
        evaluate(shapes, tmp_path, **given)


def test_a_checkpoint_is_exported_without_being_measured(shapes, checkpoints, tmp_path, monkeypatch, capsys):
    from tldr.hub import checkpoint as hub

    asked: list[Any] = []
    monkeypatch.setattr(hub, "export", lambda module, folder: asked.append(type(module)) or folder)
    folder = tmp_path / "folder"
    assert evaluate(shapes, tmp_path, evaluator={}, checkpoint=checkpoints["blip"], export=folder) == {}
    assert asked == [Blip]
    assert capsys.readouterr().out == f"wrote {folder}\n"
    with pytest.raises(ValueError, match="give the one to export"):
        evaluate(shapes, tmp_path, evaluator={}, checkpoint=list(checkpoints.values()), export=folder)
    with pytest.raises(ValueError, match="nothing to measure"):
        evaluate(shapes, tmp_path, evaluator={}, checkpoint=checkpoints["blip"])
    with pytest.raises(ValueError, match="give at least one"):
        evaluate(shapes, tmp_path, evaluator={}, checkpoint=[])


@metrics
def test_published_checkpoints_are_measured_without_being_trained(shapes, checkpoints, evaluators, tmp_path):
    """BLIP is published as one class that retrieves and one that writes: each evaluator takes the one that can."""
    both = {name: evaluators[name] for name in ("retrieval", "captioning")}
    evaluate(shapes, tmp_path, evaluator={}, checkpoint=checkpoints["blip"], export=tmp_path / "hub")
    retriever, writer = tmp_path / "hub" / "retrieval", tmp_path / "hub" / "captioning"
    opens = partial(Blip, image={}, text={}, optimizer=OPTIMIZER, queue_size=0)
    ours = evaluate(shapes, tmp_path, evaluator=both, checkpoint=checkpoints["blip"])
    theirs = evaluate(shapes, tmp_path, evaluator=both, checkpoint=[writer, retriever], model=opens, out=None)
    assert theirs == pytest.approx(ours)
    written = json.loads((writer / "evaluation-retrieval-captioning-shapes_eval.json").read_text())
    assert {name: each["checkpoint"] for name, each in written["evaluators"].items()} == {
        "retrieval": str(retriever), "captioning": str(writer),
    }  # fmt: skip

    for name, lacking in (("captioning", retriever), ("retrieval", writer)):
        with pytest.raises(ValueError, match=rf"{name} can measure none .* which the checkpoint that it began from"):
            evaluate(shapes, tmp_path, evaluator={name: both[name]}, checkpoint=lacking, model=opens)
    with pytest.raises(ValueError, match=r"no checkpoint of ours at .*writer: .* model=clip, blip"):
        evaluate(shapes, tmp_path, evaluator=both, checkpoint=tmp_path / "writer")


def test_what_is_behind_an_objective_is_all_that_it_moves(checkpoints, shapes):
    """The weights that a loss reaches are those without which what evaluators ask for it is chance."""
    blip = load_model(checkpoints["blip"]).train()
    names = [name for name, _ in blip.named_parameters()]
    pairs = read_pool(shapes, progress=False).pairs
    batch = next(iter(ordered_loader(PairsDataset.seen_by(blip, pairs), batch_size=8)))
    blip.left_to_chance = tuple(names)
    for objective in ("itc", "itm", "lm"):
        blip.zero_grad(set_to_none=True)
        blip.losses(batch)[objective].backward()
        reached = {name for name, weight in blip.named_parameters() if weight.grad is not None}
        assert reached - {"temperature"} <= set(blip.unlearned([objective])), objective


# ---------------------------------------------------------------- the command


def listed(*arguments: str) -> list[str]:
    spec = importlib.util.spec_from_file_location("evaluate_script", ROOT / "evaluate.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script.listed(list(arguments))


def test_a_list_of_evaluators_is_no_sweep_unless_asked_for():
    assert listed("evaluator=a,b", "checkpoint=x/y.ckpt,z", "data=a,b") == [
        "evaluator=[a,b]", "checkpoint=[x/y.ckpt,z]", "data=a,b",
    ]  # fmt: skip
    assert listed("evaluator=a", "evaluator=[a,b]", "checkpoint='a,b'") == [
        "evaluator=a", "evaluator=[a,b]", "checkpoint='a,b'",
    ]  # fmt: skip
    assert listed("-m", "evaluator=a,b") == ["-m", "evaluator=a,b"]
    assert listed("evaluator=a,b", "--multirun") == ["evaluator=a,b", "--multirun"]


@metrics
def test_the_command_makes_one_table_one_file_and_one_run(command, checkpoints, tmp_path):
    given = ",".join(map(str, checkpoints.values()))
    said = command(
        f"python evaluate.py checkpoint={given} evaluator=retrieval,captioning,nlvr2,vqa data=shapes_eval "
        f"data.image_size=32 evaluator.retrieval.rerank_k=4 {SIMPLE} out={tmp_path}/out"
    )
    for name in ("retrieval/tr@1", "captioning/cider", "nlvr2/consistency", "vqa/accuracy"):
        assert name in said
    file = tmp_path / "out" / "evaluation-retrieval-captioning-nlvr2-vqa-shapes_eval.json"
    assert f"wrote {file}\n" in said
    runs = list((tmp_path / "out").rglob("run-*.wandb"))
    assert len(runs) == 1
    recorded = runs[0].read_bytes()
    for name in (b"details/captioning", b"details/nlvr2", b"details/vqa", b"nlvr2/consistency"):
        assert name in recorded


def test_the_command_exports(command, checkpoints, tmp_path):
    said = command(f"python evaluate.py checkpoint={checkpoints['blip']} evaluator=[] export={tmp_path}/folder")
    assert f"wrote {tmp_path}/folder" in said
    found = sorted(path.parent.name for path in (tmp_path / "folder").rglob("*.safetensors"))
    assert found == ["captioning", "retrieval"]  # as transformers has them
    said = command(
        f"python evaluate.py model=blip checkpoint={tmp_path}/folder/retrieval evaluator=zeroshot data=shapes_eval "
        f"data.image_size=32 logger=none out={tmp_path}/zeroshot"
    )
    assert "zeroshot/top1" in said
