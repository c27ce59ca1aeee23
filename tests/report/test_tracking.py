"""W&B for real, offline: no account, no network."""

import importlib
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import wandb
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger
from torch import nn

from tldr.data.loading import PairsData
from tldr.ledger import Ledger, Stage
from tldr.report.captions import CaptionTable
from tldr.report.tracking import (
    _plain,
    artifact_name,
    begin,
    csv_logger,
    ends_its_run,
    finish,
    log_file_artifact,
    log_pairs_artifact,
    log_selection,
    no_logger,
    part_of,
    use_pairs_artifact,
)
from tldr.selector.base import Selection

FACTS = {"compression": 0.75, "seconds": 1.5, "method": "tldr"}


@pytest.fixture
def logger(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")  # which Lightning overwrites
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("DATA", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name))
    settings = wandb.Settings(console="off", x_disable_stats=True, x_disable_meta=True)
    logger = WandbLogger(save_dir=tmp_path, project="test", offline=True, settings=settings)
    yield logger
    wandb.finish()


def tables(run) -> list[dict]:
    """What the tables of the run hold, in the order in which they were logged."""
    files = Path(run.dir, "media", "table").glob("*.table.json")
    return [json.loads(file.read_text()) for file in sorted(files, key=lambda file: int(file.name.split("_")[1]))]


def writes(run, *words: str) -> bool:
    """Whether the run has written these words for `wandb sync`. Its service may still be writing after `finish`."""
    wandb.finish()
    [file] = Path(run.dir).parent.glob("run-*.wandb")
    end = time.monotonic() + 30
    while not (found := all(word.encode() in file.read_bytes() for word in words)) and time.monotonic() < end:
        time.sleep(0.05)
    return found


# ---------------------------------------------------------------- a selection


def test_selection(logger, pool, decisions, tmp_path):
    run = logger.experiment
    log_selection(run, pool, decisions, facts=FACTS, examples=16)
    before, after = run.summary["pool/alignment"], run.summary["kept/alignment"]
    assert (sum(before["values"]), sum(after["values"])) == (40, 10)
    assert before["bins"] == after["bins"]
    assert (run.summary["pool/alignment_mean"], run.summary["kept/alignment_mean"]) == (19.5, 34.5)
    assert sum(run.summary["kept/words"]["values"]) == 10
    assert run.summary["pool/mismatched"] == 0.25
    assert {name: run.summary[f"selection/{name}"] for name in FACTS} == FACTS
    [table] = tables(run)
    assert table["columns"] == ["picture", "caption", "example of", "kept", "reason", "alignment", "uid"]
    assert table["data"][0] == ["Image", "picture 39", "Best kept", True, "alignment 39", 39.0, "pair-0039"]
    staged = (tmp_path / "DATA" / "artifacts" / "staging").iterdir()  # from where `wandb sync` uploads
    assert sum(file.read_bytes().startswith(b"\xff\xd8\xff") for file in staged) == 16  # JPEGs
    assert sorted(row[3] for row in table["data"]) == [False] * 8 + [True] * 8


def test_who_makes_pairs_keeps_none(logger, pool, tmp_path):
    made = Selection(np.empty(0, np.int64), ["learned from"] * 40)
    log_selection(logger.experiment, pool, made.decisions(pool), facts=FACTS)
    summary = logger.experiment.summary
    assert sum(summary["pool/words"]["values"]) == 40
    assert "kept/words_mean" not in summary.keys()  # noqa: SIM118  (it is no mapping)
    assert summary["selection/compression"] == FACTS["compression"]


def test_equal_scores_of_32_bits(logger, pool, decisions):
    """Numpy cuts what is all but equal into more bins than 32 bits can tell apart."""
    score = np.full(40, 1e4, np.float32)
    score[0] = np.nextafter(score[0], np.float32(np.inf))
    table = Selection(np.arange(30, 40), ["kept"] * 40, {"alignment": score}).decisions(pool)
    log_selection(logger.experiment, pool, table, facts=FACTS)
    assert sum(logger.experiment.summary["pool/alignment"]["values"]) == 40


def test_selection_lists_a_pair_whose_picture_is_gone(logger, pool, decisions, tmp_path):
    (tmp_path / "pictures" / "39.png").unlink()
    log_selection(logger.experiment, pool, decisions, facts={}, examples=16)
    [table] = tables(logger.experiment)
    assert table["data"][0][0] is None
    assert table["data"][1][0] is not None


# ---------------------------------------------------------------- lineage


def test_lineage_is_recorded_offline_without_reading_the_files(logger, pool, tmp_path):
    run = logger.experiment
    subset = pool.take(np.arange(5), provenance={"names": {"data": "noise", "selector": "tldr"}})
    file = tmp_path / "pairs.arrow"
    with file.open("wb") as sparse:
        sparse.truncate(1 << 40)  # a terabyte, of which nothing is on the disk
    use_pairs_artifact(run, pool, file, name=artifact_name(pool), type="pool")
    log_pairs_artifact(run, subset, file, name=artifact_name(subset), type="subset", parent=pool.hash)
    assert run.config["lineage/pool/hash"] == run.config["lineage/subset/parent"] == pool.hash
    assert run.config["lineage/subset/name"] == f"noise-tldr-{subset.hash}"
    assert run.config["lineage/subset/rows"] == 5
    assert writes(run, f"noise-tldr-{subset.hash}", file.as_uri())
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path != file and path.is_file()) < 10_000_000


def test_checkpoint(logger, tmp_path):
    (tmp_path / "model.ckpt").write_bytes(b"weights")
    log_file_artifact(logger.experiment, tmp_path / "model.ckpt", name="model-a", type="model", parent="5eed")
    assert logger.experiment.config["lineage/model/parent"] == "5eed"
    assert writes(logger.experiment, "model-a")


class Online:
    """A run that is online, and a server that knows the artifacts ``known``."""

    __module__ = "wandb.sdk.wandb_run"
    disabled = offline = False

    def __init__(self, *known):
        self.known, self.used, self.config = known, [], self
        self.update = lambda *_, **__: None

    def use_artifact(self, artifact):
        if isinstance(artifact, str) and artifact not in self.known:
            raise ValueError(f"artifact {artifact} not found")
        self.used.append(artifact)


def test_online_the_run_uses_the_artifact_that_is_there(pool, tmp_path):
    pool.write(tmp_path)
    online = Online("noise:latest")
    use_pairs_artifact(online, pool, tmp_path, name="noise", type="pool")
    assert online.used == ["noise:latest"]


def test_online_an_unknown_pool_becomes_an_artifact(pool, tmp_path):
    pool.write(tmp_path)
    online = Online()
    use_pairs_artifact(online, pool, tmp_path, name="noise", type="pool")
    [artifact] = online.used
    assert (artifact.type, artifact.metadata["hash"]) == ("pool", pool.hash)
    assert set(artifact.manifest.entries) == {"pairs.arrow", "content.json"}
    other = pool.with_column("caption", ["another"] * 40)
    other.write(tmp_path)
    use_pairs_artifact(online, other, tmp_path, name="noise", type="pool")
    assert online.used[1].digest != artifact.digest  # the same path, but not the same content


def test_the_next_job_of_a_sweep_gets_a_run_of_its_own(logger, tmp_path):
    run = logger.experiment
    finish(logger, Ledger([Stage("signals clip", seconds=2.5, flops=3e9)]))
    assert writes(run, "ledger/signals clip/seconds", "ledger/signals clip/flops")
    second = WandbLogger(save_dir=tmp_path, project="test", offline=True)
    assert second.experiment.id != run.id


def test_nor_that_of_one_that_failed(logger, tmp_path):
    """Its run ends with it; one that was there before does not."""

    @ends_its_run
    def task(begins: bool) -> None:
        if begins:
            assert WandbLogger(save_dir=tmp_path, project="test", offline=True).experiment is wandb.run
        raise ValueError("failed")

    with pytest.raises(ValueError, match="failed"):
        task(True)
    assert wandb.run is None
    mine = logger.experiment
    with pytest.raises(ValueError, match="failed"):
        task(False)
    assert wandb.run is mine


def test_the_group_is_the_users_or_that_of_the_data():
    made: list[dict] = []

    def logger(**told: Any) -> Logger:
        made.append(told)
        return no_logger()

    for group in (None, "mine"):
        begin(partial(logger, group=group), name="short", group="cc3m", save_dir="out")
    assert made == [{"name": "short", "group": group, "save_dir": "out"} for group in ("cc3m", "mine")]
    for end in "ab":  # as those of a sweep, which differ at the end
        begin(logger, name=200 * "n" + end, group="cc3m", save_dir="out")
    assert len({told["name"] for told in made[2:]}) == 2
    assert max(len(told["name"]) for told in made) == 120


@pytest.mark.parametrize(
    ("resume", "before", "now", "goes_on"),
    [(True, False, False, True), (False, False, False, False), (True, True, False, False), (True, False, True, False)],
)
def test_a_run_that_is_resumed_goes_on_where_it_is_online(tmp_path, resume, before, now, goes_on):
    """``before`` and ``now``: is it offline?"""
    made: list[dict] = []

    class Live:
        __module__ = "wandb.sdk"
        disabled, id, url = False, "1x2y3z", "https://here"

        def __init__(self, offline: bool) -> None:
            self.offline = offline

    class Online(DummyLogger):
        def __init__(self, offline: bool, **told: Any) -> None:
            super().__init__()
            made.append(told)
            self.live = Live(offline)

        @property
        def experiment(self) -> Any:
            return self.live

    begin(partial(Online, offline=before), name="blip", group="cc3m", save_dir=tmp_path)
    begin(partial(Online, offline=now), name="blip", group="cc3m", save_dir=tmp_path, resume=resume)
    assert [told.get("id") for told in made] == [None, "1x2y3z" if goes_on else None]


def test_scorers_do_not_write_over_each_other(logger):
    part_of(logger, "clip").log_metrics({"loss": 1.0}, step=3)
    part_of(logger, "").log_metrics({"loss": 2.0}, step=4)
    assert {"clip-loss": 1.0, "loss": 2.0}.items() <= dict(logger.experiment.summary).items()
    quiet = no_logger()
    assert part_of(quiet, "clip") is quiet


def test_nor_as_csv(tmp_path):
    logger = begin(csv_logger, name="a", group="b", save_dir=tmp_path)
    for name, loss in (("clip", 1.0), ("", 2.0), ("blip", 3.0)):
        part = part_of(logger, name)
        part.log_metrics({"loss": loss}, step=3)
        finish(part)
    finish(logger)
    files = {file.parent.name: file.read_text().split()[1] for file in tmp_path.glob("csv/version_0/*/metrics.csv")}
    assert files == {"clip": "1.0,3", "main": "2.0,3", "blip": "3.0,3"}


@pytest.mark.parametrize("name", ["a" * 200, "full-data.size-600__+model.dim-3", "my pics/x", "mödel"])
def test_any_name_makes_an_artifact(logger, tmp_path, name):
    file = tmp_path / "model.ckpt"
    file.write_bytes(b"weights")
    log_file_artifact(logger.experiment, file, name=f"model-{name}", type="model")
    assert logger.experiment.config["lineage/model/name"] == f"model-{name}"
    other = name[:-1] + "b"
    assert _plain(name) != _plain(other)
    assert len(_plain(name)) <= 128


# ---------------------------------------------------------------- nothing to log to


def test_without_wandb_nothing_happens(pool, decisions, tmp_path):
    nothing: Any = no_logger(name="a", save_dir=tmp_path)
    finish(nothing)
    for experiment in (nothing.experiment, None, wandb.init(mode="disabled")):
        log_selection(experiment, pool, decisions, facts=FACTS)
        log_pairs_artifact(experiment, pool, tmp_path / "none", name="a", type="pool")
        use_pairs_artifact(experiment, pool, tmp_path / "none", name="a", type="pool")
        log_file_artifact(experiment, tmp_path / "none", name="a", type="model")
    wandb.finish()


def test_csv_keeps_the_numbers_of_every_run(pool, decisions, tmp_path):
    for loss in (2.0, 1.0):
        logger: Any = csv_logger(name="a", job_type="train", save_dir=tmp_path)
        logger.log_hyperparams({"seed": 0})
        log_selection(logger.experiment, pool, decisions, facts=FACTS)
        logger.log_metrics({"train/lm": loss}, step=3)
        finish(logger)
    files = sorted(tmp_path.glob("csv/version_*/metrics.csv"))
    assert [file.read_text().split() for file in files] == [["step,train/lm", f"3,{loss}"] for loss in (2.0, 1.0)]


def test_wandb_is_not_imported_before_there_is_a_run(pool, decisions, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it now raises ImportError
    monkeypatch.delitem(sys.modules, "tldr.report.tracking")
    fresh = importlib.import_module("tldr.report.tracking")
    fresh.log_selection(fresh.no_logger().experiment, pool, decisions, facts=FACTS)
    with pytest.raises(ImportError):
        fresh.log_selection(Online(), pool, decisions, facts=FACTS)


# ---------------------------------------------------------------- captions while training


class Silent(L.LightningModule):
    """Has a part in training and a frozen part."""

    def __init__(self):
        super().__init__()
        self.live = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 1), nn.Dropout(0.5))
        self.frozen = nn.Linear(1, 1)
        self.said = []

    def on_train_start(self):
        self.frozen.eval()

    def training_step(self, batch, _):
        assert self.live.training
        assert not self.frozen.training
        return self.live(batch["images"].float() / 255).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.live.parameters(), 0.001)


class Talker(Silent):
    """Has a voice, too, that depends on chance."""

    @torch.inference_mode()
    def generate(self, images, *, strategy):
        assert not self.live.training
        self.said.append((self.global_step, strategy, images.float().mean().item()))
        return [f"{strategy} {torch.rand(()).item():.3f}" for _ in images]


def train(pool, logger, *callbacks, steps=5, augment="crop", accumulate=1, kind: Any = Talker):
    L.seed_everything(0, verbose=False)
    module = kind()
    trainer = L.Trainer(
        max_steps=steps, accelerator="cpu", logger=logger, callbacks=list(callbacks), enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1, accumulate_grad_batches=accumulate,
    )  # fmt: skip
    trainer.fit(module, PairsData(pool, image_size=8, batch_size=4, augment=augment))
    return module


def test_captions_every_few_steps_and_at_the_end(logger, pool):
    module = train(pool, logger, CaptionTable(every_n_steps=2, count=4), accumulate=2)
    assert [step for step, _, _ in module.said] == [2, 4, 5]
    assert len({mean for _, _, mean in module.said}) == 1  # the same pictures, without augmentation
    found = tables(logger.experiment)
    assert len(found) == 3
    assert found[0]["columns"] == ["picture", "original", "generated", "uid"]
    assert [row[3] for row in found[0]["data"]] == ["pair-0000", "pair-0013", "pair-0026", "pair-0039"]
    assert found[0]["data"][0][1] == "picture 0"
    assert all(row[2].startswith("greedy") for row in found[0]["data"])
    assert logger.experiment.summary["trainer/global_step"] == 5


def test_training_is_the_same_with_and_without_tables(logger, pool):
    with_tables = train(pool, logger, CaptionTable(every_n_steps=1, strategy="nucleus"))
    without = train(pool, False)
    assert len(with_tables.said) == 5
    for one, other in zip(with_tables.parameters(), without.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_model_without_words_has_no_table(logger, pool):
    train(pool, logger, CaptionTable(every_n_steps=1), steps=2, kind=Silent)
    assert tables(logger.experiment) == []


@pytest.mark.parametrize("quiet", [False, "dummy"])
def test_captions_are_not_written_for_nobody(pool, quiet):
    module = train(pool, no_logger() if quiet else False, CaptionTable(every_n_steps=1), steps=2)
    assert module.said == []


@pytest.mark.parametrize("every", [-1, 2.5, None])
def test_impossible_intervals(every):
    told = f"caption_table_every={every} must be a whole number of steps between tables of captions"
    with pytest.raises(ValueError, match=told):
        CaptionTable(every_n_steps=every)


def test_none_are_asked_for(logger, pool):
    assert train(pool, logger, CaptionTable(every_n_steps=0), steps=2).said == []
