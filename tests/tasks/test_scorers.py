"""Selections that ask several models, choose for a target set, or make pairs: through the commands that people type."""

import json
from functools import partial

import lightning as L
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tldr.data.shapes import Shapes
from tldr.engine import Local
from tldr.model.base import load_model
from tldr.model.clip import Clip
from tldr.pairs import Pairs
from tldr.refiner.none import Keep
from tldr.report.tracking import no_logger
from tldr.selector.random import Random
from tldr.tasks.scorer import pick_device
from tldr.tasks.select import run

QUICK = "scorers.clip.training.max_steps=4 logger=none report=false"


def stages(folder):
    return [stage["name"] for stage in json.loads((folder / "ledger.json").read_text())]


def test_the_clip_score_trains_a_clip_and_nothing_else(command, project):
    said = command(f"python select.py selector=clip_score out=kept {QUICK}")
    assert "no scorers.clip.checkpoint given: training Clip" in said
    assert [name for name in stages(project / "kept") if name.startswith(("scorer", "signals"))] == [
        "scorer clip",
        "signals clip",
    ]
    assert "scorer clip" in json.loads((project / "kept" / "provenance.json").read_text())
    table = pq.read_table(project / "kept" / "decisions.parquet")
    kept = table["kept"].to_numpy()
    (score,) = [name for name in table.column_names if name not in ("uid", "kept", "reason", "cluster")]
    assert table[score].to_numpy()[kept].min() >= table[score].to_numpy()[~kept].max()


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(device):
    with pytest.raises(ValueError, match=f"device='?{device}"):
        pick_device(device)


def test_selectors_compute_on_the_device_of_the_task(tmp_path):
    seen = []

    class Where(Random):
        def choose(self, pool, signals, *, keep, seed):
            seen.append(self.device)
            return super().choose(pool, signals, keep=keep, seed=seed)

    run(
        data=Shapes(tmp_path / "data", size=40), selector=Where(), refiner=Keep(), model=partial(Clip),
        trainer=L.Trainer, engine=Local(), logger=no_logger, training={}, generation={}, compression=0.5, seed=0,
        names={"data": "shapes", "selector": "where"}, out=tmp_path / "out", cache=tmp_path / "cache", report=False,
        device="meta",
    )  # fmt: skip
    assert seen == ["meta"]


def test_what_the_target_shows_is_chosen(command, project):
    """The target's pictures go through the same scorer as the pool's; what they were is told."""
    said = command(f"python select.py selector=norm_sim +data@selector.target=shapes_eval out=kept {QUICK}")
    assert said.count("pairs read") == 2
    aim = json.loads((project / "kept" / "provenance.json").read_text())["target"]
    assert Pairs.open(project / "outputs" / "cache" / "pools" / aim).hash == aim
    assert (project / "kept" / "target" / "quarantine.parquet").is_file()
    said = command(f"python select.py selector=norm_sim out=other {QUICK}", fails=True)
    assert "+data@selector.target=" in said
    assert "training Clip" not in said  # it was refused before that


def test_a_checkpoint_of_the_ecosystem_scores(command, project):
    """What a user has: a published CLIP, here one that transformers wrote."""
    picture = "model.image.backbone=vit +model.image.pre_norm=true +model.image.norm_eps=1e-5"
    text = "model.text_pooling=end model.causal=true +model.text.pre_norm=true +model.text.embed_norm=false"
    text += " +model.text.norm_eps=1e-5"
    command(f"python train.py model=clip out=clip export=true logger=none {picture} {text}")
    folder = next((project / "clip").rglob("config.json")).parent
    said = command(f"python select.py selector=clip_score scorers.clip.checkpoint={folder} out=kept {QUICK}")
    assert "training Clip" not in said
    assert len(Pairs.open(project / "kept")) == 80
    said = command(f"python select.py selector=clip_score checkpoint={folder} out=other {QUICK}")
    told = (
        "it is the captioner's, which selector=clip_score does not need; its scorer is set by scorers.clip.checkpoint="
    )
    assert told in said.partition("training Clip")[0]


def test_steps_share_what_their_scorers_say(command, project):
    steps = "selector=chain selector.steps=[semdedup,{clip_score:{}}]"
    command(f"python select.py {steps} out=kept {QUICK}")
    assert stages(project / "kept").count("signals clip") == 1
    reasons = pq.read_table(project / "kept" / "decisions.parquet")["reason"].to_pylist()
    assert {reason.partition(":")[0] for reason in reasons} == {"semdedup", "clip_score"}


@pytest.fixture
def labelled(project) -> str:
    """The override that reads 40 pictures, half of them red and half blue, and of either first or second half."""
    names, rng = ["red", "blue"], np.random.default_rng(0)
    records = []
    for i in range(40):
        pixels = rng.integers(0, 60, (8, 8, 3), np.uint8)
        pixels[..., 2 * (i % 2)] = 250
        Image.fromarray(pixels).save(project / f"{i}.png")
        records.append({"image": f"{i}.png", "caption": f"picture {i}", "colour": names[i % 2], "half": str(i // 20)})
    (project / "a.json").write_text(json.dumps(records))
    return "data=json data.annotations=a.json"


def test_the_classifier_learns_the_labels_that_the_selector_names(command, project, labelled):
    line = f"python select.py {labelled} selector=data_pruning selector.score=el2n {QUICK}"
    line += " scorers.classifier.training.max_steps=30 training.batch_size=16"
    command(f"{line} selector.labels=colour out=kept")
    reasons = pq.read_table(project / "kept" / "decisions.parquet")["reason"].to_pylist()
    assert all(reason.startswith("EL2N") for reason in reasons)
    checkpoint = json.loads((project / "kept" / "provenance.json").read_text())["scorer classifier"]
    assert load_model(project / checkpoint).classes == ["blue", "red"]
    other = f"{line} selector.labels=half scorers.classifier.checkpoint={checkpoint} out=other"
    assert "has column=colour, but the selector needs half" in command(other, fails=True)


def test_what_no_step_asks_of_the_target_is_not_computed(command, project):
    """A captioner's alignment of the pool, a CLIP's embedding of both."""
    steps = "selector=chain selector.steps=[{tldr:{novelty:0}},norm_sim] +data@selector.target=shapes_eval"
    command(f"python select.py {steps} out=kept {QUICK}")
    assert stages(project / "kept").count("signals") == 1
    assert stages(project / "kept").count("signals clip") == 2


def test_made_pairs_are_pairs(command, project):
    """Distillation comes by the same door, and training takes what it makes."""
    quick = QUICK.replace("logger=none report=false", "report=true")
    small = "compression=0.975 selector.iterations=2 selector.experts=2 selector.mini_batch=4 selector.steps=2"
    said = command(f"python select.py selector=trajectory_matching out=made {small} {quick}")
    assert "8 pairs made from 320" in (project / "made" / "report.html").read_text()
    assert "made 8 of 320 pairs" in said
    made, table = Pairs.open(project / "made"), pq.read_table(project / "made" / "decisions.parquet")
    assert len(made) == 8
    assert not np.any(table["kept"].to_numpy())
    assert all(table["reason"].to_pylist())
    assert "trained Clip" in command("python train.py model=clip pairs=made batch_size=4 out=trained logger=none")


def test_a_filter_of_captions_is_another_scorer(command, project):
    """CapFilt: the main scorer writes, a BLIP judges."""
    quick = "scorers.blip.training.max_steps=4 logger=none report=false"
    command(f"python select.py selector=random refiner=capfilt compression=0.9 out=kept {quick}")
    assert {"scorer", "scorer blip"} <= set(stages(project / "kept"))
    assert {"capfilt", "match_original", "match_generated"} <= set(Pairs.open(project / "kept").table.column_names)


def captions(folder):
    return Pairs.open(folder).captions.to_pylist()


def test_another_captioner_writes_for_the_refiner(command, project):
    """The paper's step 4: one trained on the pool scores, one fine-tuned on clean captions writes."""
    quiet = "compression=0.9 logger=none report=false generation.strategy=greedy generation.max_length=8"
    command("python train.py model=vqvlm model.quantizer.after=2 out=scorer logger=none")
    command("python train.py model=captioner init_from=scorer max_steps=8 seed=5 out=writer logger=none")
    for name, who in (("own", ""), ("other", "writer=writer")):
        command(f"python select.py checkpoint=scorer {who} refiner=replace out={name} {quiet}")
    own, other = (Pairs.open(project / name) for name in ("own", "other"))
    assert own.uids == other.uids
    assert captions(project / "own") != captions(project / "other")
    # What it writes is what it writes as the only one.
    command(f"python select.py selector=random checkpoint=writer refiner=replace out=alone {quiet}")
    command(f"python select.py selector=random writer=writer refiner=replace out=random {quiet}")
    assert captions(project / "alone") == captions(project / "random")
    told = json.loads((project / "random" / "provenance.json").read_text())
    assert told["scorer writer"] == "writer"
    assert "scorer" not in told  # nobody else was asked
    assert {"writer": "writer", "checkpoint": None}.items() <= told["config"].items()
    said = command(f"python select.py selector=random writer=writer out=x {quiet}", fails=True)
    assert "writer=writer writes captions for a refiner: add refiner=append" in said
    assert "reading shapes" not in said


def test_labelled_pictures_are_distilled(command, project, labelled):
    small = "selector.labels=colour selector.steps=2 selector.iterations=2 selector.networks=1 selector.image_size=16"
    said = command(
        f"python select.py {labelled} selector=dataset_distillation compression=0.9 {small} out=made logger=none"
    )
    assert "made 4 of 40 pairs" in said
    assert sorted(Pairs.open(project / "made").column("colour")) == ["blue", "blue", "red", "red"]
    (select,) = (s for s in json.loads((project / "made" / "ledger.json").read_text()) if s["name"] == "select")
    assert select["flops"] > 0


def test_several_processes_are_refused_before_they_wait_for_each_other(command, project):
    said = command(
        f"python select.py trainer=ddp trainer.accelerator=cpu trainer.devices=2 out=kept {QUICK}", fails=True
    )
    assert "but this trainer has 2: use trainer=default" in said
    assert "reading shapes" not in said


def test_a_scorer_of_another_trainer_is_another_scorer(command, project):
    """But not one that was loaded by other workers."""
    line = f"python select.py selector=clip_score {QUICK}"
    assert "training Clip" in command(f"{line} out=one")
    assert "training Clip" not in command(f"{line} out=two training.num_workers=1")
    assert "training Clip" in command(f"{line} out=three trainer.gradient_clip_val=0.01")
    assert "training Clip" in command(f"{line} out=four training.balance=0")
    said = command(f"{line} out=one trainer.gradient_clip_val=0.01", fails=True)
    assert "holds another selection (trainer.gradient_clip_val=1.0)" in said
    same = "+trainer.strategy=auto +trainer.log_every_n_steps=5 +scorers.clip.training.num_workers=1"
    assert "kept" in command(f"{line} out=one {same}")
    said = command(f"{line} out=one generation.strategy=beam", fails=True)  # which writes other captions
    assert "holds another selection (generation.strategy=nucleus)" in said


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ("exports=uid", "exports=uid; it is a list of annotations, uids, webdataset"),
        ("seed=-1", "seed=-1 must be a whole number from 0"),
        ("refiner=append writer=nowhere.ckpt", "nowhere.ckpt"),
        ("selector=chain selector.steps=[tldr,clip_score] scorers.clip.checkpoint=nowhere.ckpt", "nowhere.ckpt"),
        ("model=captioner", "needs codes, which a Captioner does not give (it gives embedding, alignment, tokens)"),
        ("selector=norm_sim selector.target=shapes_eval", "selector.target=shapes_eval is only a name"),
    ],
)
def test_what_is_wrong_is_known_before_a_scorer_is_trained(command, asked, answer):
    said = command(f"python select.py {asked} out=kept {QUICK}", fails=True)
    assert answer in said
    assert "no checkpoint given: training" not in said


def test_a_scorer_of_another_kind_names_its_own_override(command, project):
    command("python train.py model=captioner out=captioner logger=none")
    given = "scorers.clip.checkpoint=captioner"
    said = command(f"python select.py selector=clip_loss {given} out=kept {QUICK}", fails=True)
    assert "give another scorers.clip.checkpoint=..." in said


def test_a_head_asks_for_its_backbone_before_it_reads(command):
    said = command("python train.py model=vqa data=shapes data.split=vqa_train out=vqa logger=none", fails=True)
    assert "give model.backbone=... (conf/model/vqa.yaml says more)" in said
    assert "reading shapes" not in said
