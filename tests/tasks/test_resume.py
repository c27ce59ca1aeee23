"""A killed run goes on, and ends with the bits of one that nobody disturbed. The kill is real: this file is also the
script of a process that ends itself by SIGKILL."""

import json
import os
import random
import re
import signal
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch

from tests.forked import run_forked
from tldr.data.loading import PairsDataset, ordered_loader
from tldr.data.shapes import Shapes
from tldr.engine import Local
from tldr.ledger import Ledger
from tldr.model.base import Model, load_model
from tldr.model.blip import Blip
from tldr.model.captioner import Captioner
from tldr.model.classifier import Classifier
from tldr.pairs import Pairs
from tldr.report.tracking import no_logger
from tldr.tasks import resume
from tldr.tasks.fit import fit
from tldr.tasks.resume import RollingCheckpoint, check_identity, find_last, identity_of, random_state, set_random_state
from tldr.tasks.scorer import find_scorer, find_sure_scorer
from tldr.tasks.train import run as train_task

IMAGE = {"backbone": "conv_stem", "image_size": 32, "width": 16, "depth": 1, "heads": 2}
TEXT = {"width": 16, "depth": 1, "heads": 2, "max_length": 48, "dropout": 0.1}  # dropout: torch's generator matters
OPTIMIZER = {"lr": 3e-3, "warmup_steps": 3, "schedule": "cosine"}
TOWERS = {"image": IMAGE, "text": TEXT, "optimizer": OPTIMIZER}
CASES = {  # 400 pairs in batches of 32: an epoch has 12; name: (model, options of fit, of the Trainer)
    # 30 steps are two epochs and a half; the teacher, the queue and averaged weights go on, and so do augmentations.
    "blip": (
        partial(Blip, **TOWERS, embed_dim=16, queue_size=64, momentum=0.9),
        {"max_steps": 30, "augment": "randaugment", "ema": 0.9, "checkpoint_every": 4},
        {},
    ),
    # The codebook begins after step 20, from what it has seen since step 13: the kill comes between.
    "vqvlm": (
        partial(Captioner, **TOWERS, quantizer={"codebook_size": 16, "after": 20, "init": "random"}),
        {"max_steps": 30, "augment": "crop", "num_workers": 2, "checkpoint_every": 17},
        {},
    ),
    # Two batches a step: 12 steps are two epochs.
    "accumulated": (
        partial(Captioner, **TOWERS),
        {"max_steps": 15, "checkpoint_every": 6},
        {"accumulate_grad_batches": 2},
    ),
}


class Kill(L.Callback):
    """After some steps, end the process as `kill -9` does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def train(name: str, pairs: Pairs, folder: Path, **more) -> dict[str, torch.Tensor]:
    model, options, training = CASES[name]
    trainer = partial(L.Trainer, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, **training)
    fit(
        pairs, model=model, trainer=trainer, folder=folder, batch_size=32, seed=3, vocab_size=200,
        **{"identity": {"case": name}, **options, **more},
    )  # fmt: skip
    return torch.load(folder / "model.ckpt", weights_only=True)["state_dict"]


def killed(name: str, pairs: Pairs, folder: Path, step: int) -> None:
    """Run the case in another process, which dies at ``step``."""
    folder.mkdir()
    words = [name, pairs.write(folder / "pairs.arrow"), folder, step, torch.get_num_threads()]
    done = run_forked([__file__, *words], cwd=folder, env=os.environ)
    assert done.returncode == -signal.SIGKILL, done.stdout[-4000:]
    assert (folder / "last.ckpt").is_file()
    assert not (folder / "model.ckpt").exists()


@pytest.mark.parametrize(("name", "step"), [("blip", 22), ("vqvlm", 19), ("accumulated", 14)])
def test_a_killed_run_ends_with_the_same_bits(name, step, tiny_pool, tmp_path, capsys):
    expected = train(name, tiny_pool, tmp_path)
    killed(name, tiny_pool, tmp_path / "killed", step)
    found = train(name, tiny_pool, tmp_path / "killed", resume=True)
    assert f"after step {CASES[name][1]['checkpoint_every'] * (step // CASES[name][1]['checkpoint_every'])}" in (
        capsys.readouterr().out
    )
    assert list(found) == list(expected)
    assert [key for key in found if not torch.equal(found[key], expected[key])] == []
    assert not (tmp_path / "killed" / "last.ckpt").exists()
    assert load_model(tmp_path / "killed").hparams == load_model(tmp_path).hparams


def test_the_data_order_matters_to_the_bits(tiny_pool, tmp_path):
    """Or the test above would prove little."""
    one = train("accumulated", tiny_pool, tmp_path, max_steps=3)
    other = train("accumulated", tiny_pool.take(np.arange(1, 400)), tmp_path, max_steps=3)
    assert not all(torch.equal(one[key], other[key]) for key in one if one[key].shape == other[key].shape)


def test_a_checkpoint_of_another_run_is_refused(tiny_pool, tmp_path, capsys):
    killed("accumulated", tiny_pool, tmp_path / "killed", 8)
    with pytest.raises(ValueError, match=r"last\.ckpt is of another run: case was 'accumulated' and is now 'x'; lr "):
        train("accumulated", tiny_pool, tmp_path / "killed", resume=True, identity={"case": "x", "lr": 1})
    assert (tmp_path / "killed" / "last.ckpt").is_file()
    capsys.readouterr()
    train("accumulated", tiny_pool, tmp_path / "killed", max_steps=2)  # without resume it begins anew
    assert "last.ckpt is from an unfinished run, which resume=true would continue" in capsys.readouterr().out
    assert not (tmp_path / "killed" / "last.ckpt").exists()


def test_nothing_to_resume_is_said(tmp_path, capsys):
    assert find_last(tmp_path, {}) is None
    assert "there is no" in capsys.readouterr().out
    torch.save({"state_dict": {}}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=r"last\.ckpt is not a checkpoint to go on from"):
        find_last(tmp_path, {})


def test_all_generators_are_restored():
    before = random_state()
    drawn = random.random(), np.random.rand(), torch.rand(1)
    set_random_state(json.loads(json.dumps(before, default=torch.Tensor.tolist), object_hook=tensors))
    assert (random.random(), np.random.rand(), torch.rand(1)) == drawn


def tensors(state):
    state["numpy"][1], state["torch"] = torch.tensor(state["numpy"][1]), torch.tensor(state["torch"], dtype=torch.uint8)
    return state


def test_processes_that_read_other_pairs_are_told(tmp_path, monkeypatch):
    def told(answers: list, mine: str) -> None:
        answers[:] = [mine, json.dumps({"pairs": "cd", "seed": 0})]

    mine = RollingCheckpoint(tmp_path, every=0, identity={"pairs": "ab", "seed": 0})
    mine.setup(None, None, "fit")  # pyright: ignore[reportArgumentType]  (alone there is nobody to ask)
    monkeypatch.setattr(resume, "connected", lambda: True)
    monkeypatch.setattr(resume.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(resume.dist, "all_gather_object", told)
    with pytest.raises(ValueError, match=r"process 1 and process 0 differ in pairs: .*pairs="):
        mine.setup(None, None, "fit")  # pyright: ignore[reportArgumentType]


def test_processes_draw_numbers_of_their_own(tmp_path):
    drawn = []
    for rank in (0, 1, 2, 0):
        torch.manual_seed(3)
        trainer: Any = SimpleNamespace(global_step=0, global_rank=rank)
        RollingCheckpoint(tmp_path, every=0, identity={}).on_train_start(trainer, None)  # pyright: ignore
        drawn.append(float(torch.rand(())))
    assert len(set(drawn)) == 3


def test_identity_is_what_decides_the_weights():
    config = {"model": {"image": {"width": 3}, "optimizer": {}}, "data": {"size": 4}, "out": "x", "seed": 0}
    config["trainer"] = {"precision": "bf16-mixed", "enable_progress_bar": True}
    assert identity_of(config, "ab") == {
        "model.image.width": 3, "model.optimizer": {}, "seed": 0, "trainer.precision": "bf16-mixed", "pairs": "ab",
    }  # fmt: skip


def test_a_path_stands_for_what_is_written_there(tmp_path):
    def asked(**config):
        return identity_of(config, "ab")

    file = tmp_path / "blip" / "model.ckpt"
    file.parent.mkdir()
    file.write_bytes(b"one")
    first = asked(init_from=str(file.parent), model={"backbone": str(file)}, tokenizer="bert-base-uncased")
    assert {key for key in first if key.startswith("contents of")} == {
        "contents of init_from", "contents of model.backbone",
    }  # fmt: skip
    (file.parent / "ledger.json").write_text("[]")  # nothing that is begun from
    assert asked(init_from=str(file.parent), model={"backbone": str(file)}, tokenizer="bert-base-uncased") == first
    file.write_bytes(b"two")
    with pytest.raises(ValueError, match=r"contents of init_from was '\w+' and is now '\w+'"):
        check_identity(first, asked(**{**first, "init_from": str(file.parent)}), file)
    # A folder of folders, as Hugging Face's several towers.
    (tmp_path / "hub" / "text").mkdir(parents=True)
    (tmp_path / "hub" / "text" / "config.json").write_text("{}")
    several = asked(init_from=["timm/vit", str(tmp_path / "hub")])
    (tmp_path / "hub" / "text" / "config.json").write_text('{"a": 1}')
    assert asked(init_from=["timm/vit", str(tmp_path / "hub")]) != several


def test_a_run_that_has_ended_is_left_alone(tiny_pool, tmp_path, capsys, monkeypatch):
    """By the task of `train.py`: it begins where there is nothing, and knows a result of its own from another's."""
    pool, folder = tiny_pool.write(tmp_path / "pool"), tmp_path / "out"
    options = {"max_steps": 2, "batch_size": 32, "seed": 0, "vocab_size": 200, "image_size": 64}
    ask = partial(
        train_task,
        data=Shapes(tmp_path),
        model=partial(Blip, **{**TOWERS, "image": {**IMAGE, "backbone": "vit"}}, queue_size=0),
        trainer=partial(L.Trainer, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False),
        logger=no_logger,
        names={"data": "shapes", "model": "blip"},
        cache=tmp_path / "cache",
        pairs=pool.parent,
        out=folder,
        resume=True,
        **options,
    )
    file = ask(config={**options, "out": "here"})
    said = capsys.readouterr().out
    assert f"there is no {folder / 'last.ckpt'} to resume from: starting from scratch" in said
    assert "trained Blip" in said
    before = file.stat().st_mtime_ns
    assert ask(config={**options, "out": "there"}) == file
    assert "is already finished; there is nothing to resume" in capsys.readouterr().out
    assert file.stat().st_mtime_ns == before
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")  # who requeues a job does not ask
    assert ask(config=options, resume=False) == file
    assert "is already finished; there is nothing to resume" in capsys.readouterr().out
    ask(config=options, export=True)  # of what is there already
    assert list((folder / "huggingface").glob("**/config.json"))
    with pytest.raises(ValueError, match=r"model\.ckpt is of another run: max_steps was 2 and is now 3"):
        ask(config={**options, "max_steps": 3})
    assert load_model(folder).image_size == 64


def test_other_labels_are_another_run(tiny_pool, tmp_path):
    def ask(*labels: str) -> Path:
        pool = tiny_pool.with_column("label", [labels[row % 2] for row in range(len(tiny_pool))])
        return train_task(
            data=Shapes(tmp_path), model=partial(Classifier, image={**IMAGE, "backbone": "vit"}, optimizer=OPTIMIZER),
            trainer=partial(L.Trainer, accelerator="cpu", enable_progress_bar=False), logger=no_logger,
            names={"data": "shapes", "model": "classifier"}, cache=tmp_path / "cache", out=tmp_path / "out",
            pairs=pool.write(tmp_path / "pool").parent, resume=True, max_steps=4, batch_size=32, seed=0,
        )  # fmt: skip

    assert ask("a", "b") == ask("a", "b")
    with pytest.raises(ValueError, match=r"model\.ckpt is of another run: pairs was '\w+-\w+' and is now"):
        ask("b", "a")


class Fail(L.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 8:
            raise OSError("the disk is full")


def test_a_scorer_goes_on_by_itself(tiny_pool, tmp_path, capsys):
    training = {"max_steps": 10, "batch_size": 32, "vocab_size": 200, "checkpoint_every": 3}
    ledger = Ledger()
    find = partial(
        find_scorer, tiny_pool, checkpoint=None, model=partial(Captioner, **TOWERS), seed=0, ledger=ledger,
        trainer=partial(L.Trainer, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False),
        logger=None,
    )  # fmt: skip
    expected, _ = find(training=training, cache=tmp_path / "one")
    with pytest.raises(OSError, match="full"):
        find(training=training, cache=tmp_path / "two", callbacks=[Fail()])
    found, file = find(training={**training, "checkpoint_every": 4}, cache=tmp_path / "two")
    assert "last.ckpt, after step 6" in capsys.readouterr().out
    torch.testing.assert_close(found.state_dict(), expected.state_dict(), rtol=0, atol=0)
    whole, _, rest = ledger.stages  # six of ten steps were there: what they took is told, too
    assert whole.found_flops == whole.found_seconds == 0
    assert rest.found_flops == pytest.approx(0.6 * (rest.flops + rest.found_flops))
    assert rest.made_seconds == pytest.approx(rest.seconds + rest.found_seconds)
    assert rest.found_seconds > 0
    assert not (file.parent / "last.ckpt").exists()


def test_a_scorer_that_finds_many_captions_wrong_learns_again_from_those_it_believes(tiny_pool, tmp_path, capsys):
    ledger = Ledger()
    recipe: dict[str, Any] = {
        "checkpoint": None, "seed": 0, "ledger": ledger, "logger": None, "cache": tmp_path, "name": "",
        "trainer": partial(L.Trainer, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False),
        "training": {"max_steps": 4, "batch_size": 32, "vocab_size": 200},
    }  # fmt: skip
    extraction = {"engine": Local(), "device": torch.device("cpu"), "batch_size": 64, "num_workers": 0}
    find = partial(find_sure_scorer, tiny_pool, extraction=extraction, **recipe)
    doubting = partial(Captioner, **TOWERS, noise_rate=0.5)
    once, _ = find(model=doubting, again_above=0.9)
    assert once.wrong_share == pytest.approx(0.5, abs=0.1)
    assert "another learns" not in capsys.readouterr().out

    # The second finds half of the rest wrong, too. The third is the last.
    _, file = find(model=doubting, again_above=0.3)
    told = re.findall(r"found (\d+)% .* another learns from the (\d+) pairs", capsys.readouterr().out)
    shares, keep = [int(share) / 100 for share, _ in told], [int(count) for _, count in told]
    assert keep == pytest.approx(400 * np.cumprod(1 - np.array(shares)), abs=4)
    assert [(stage.name, stage.cached) for stage in ledger.stages] == [
        ("scorer", False), ("scorer", True), ("signals round-1", False), ("scorer round-2", False),
        ("signals round-2", False), ("scorer round-3", False),
    ]  # fmt: skip
    again = partial(find_scorer, model=doubting, **recipe)
    second, _ = again(tiny_pool.take(best(tiny_pool, once, keep[0])))
    assert again(tiny_pool.take(best(tiny_pool, second, keep[1])))[1] == file
    assert ledger.stages[-1].cached

    capsys.readouterr()
    few = partial(Captioner, **TOWERS, noise_rate=0.95)
    assert find(model=few, again_above=0.3)[0].wrong_share == pytest.approx(0.95, abs=0.03)  # no batch would be full
    assert find(model=partial(Captioner, **TOWERS), again_above=0.0)[0].wrong_share is None
    assert "another learns" not in capsys.readouterr().out


def best(pool: Pairs, model: Model, keep: int) -> np.ndarray:
    """The rows of the pairs with the highest alignment."""
    assert isinstance(model, Captioner)
    loader = ordered_loader(PairsDataset.seen_by(model, pool), batch_size=64)
    fit = torch.cat([model.signals(batch)["alignment"] for batch in loader])
    return np.sort(torch.topk(fit, keep).indices.numpy())


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[5]))
    train(sys.argv[1], Pairs.open(sys.argv[2]), Path(sys.argv[3]), callbacks=[Kill(int(sys.argv[4]))])
