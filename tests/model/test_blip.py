import json
import math
import os
import subprocess
import sys
from copy import deepcopy
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import LambdaCallback

from tests.model.conftest import train
from tldr.data.loading import Batch
from tldr.data.tokenizer import Tokenizer
from tldr.model.base import load_model
from tldr.model.blip import OBJECTIVES, Blip
from tldr.nn import negatives

CAPTIONS = [f"a {colour} {shape}" for colour in ("red", "green", "blue") for shape in ("disc", "star on the left")]
TOKENIZER = Tokenizer.learn(CAPTIONS).json
B = 6


def build(*, seed: int = 0, **options) -> Blip:
    torch.manual_seed(seed)
    arguments = {
        "tokenizer": TOKENIZER,
        "image": {"backbone": "conv_stem", "image_size": 32, "width": 16, "depth": 1, "heads": 2},
        "text": {"width": 16, "depth": 1, "heads": 2, "max_length": 14},
        "optimizer": {"lr": 3e-3},
        "embed_dim": 8,
        "queue_size": 4 * B,
    }
    return Blip(**(arguments | options))


def make_batch(captions=CAPTIONS, ids=None, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    n = len(captions)
    return Batch(
        images=torch.randint(0, 256, (n, 3, 32, 32), generator=generator, dtype=torch.uint8),
        captions=list(captions),
        rows=torch.arange(n),
        image_ids=torch.arange(n) if ids is None else torch.tensor(ids),
        errors=[""] * n,
        columns={},
    )


def fit(model: Blip, *, steps: int, resume: Path | None = None, **options) -> L.Trainer:
    """Train on the same batch again and again."""
    return train(model, steps, lambda _: make_batch(), epoch=2, resume=resume, **options)


@pytest.fixture
def batch():
    return make_batch()


def fill_queue(model: Blip, ids: list[int]) -> None:
    image, text = F.normalize(torch.randn(2, len(ids), 8, generator=torch.Generator().manual_seed(7)), dim=2)
    model.queue.add(image, text, torch.tensor(ids))


# ------------------------------------------------------------------------------------------------ the losses


@pytest.mark.parametrize("ids", [[0, 1, 2], [5, 8, 0]])
@torch.no_grad()
def test_losses_are_the_papers_formulas(monkeypatch, ids):
    """Written out pair by pair, from section 3.2 of BLIP and 3.2-3.3 of ALBEF. Ids 5 and 8 are in the queue, as other
    captions of these pictures: then the targets are those of ALBEF's fine-tuning for retrieval."""
    proposals: list[torch.Tensor] = []
    picks = iter([[1, 2, 0], [1, 0, 0]])  # the wrong image of each text, the wrong text of each image

    def pick(logits, positive, **_):
        proposals.append(logits)
        return torch.tensor(next(picks))

    monkeypatch.setattr(negatives, "hard_negatives", pick)
    monkeypatch.setattr(Blip, "current_alpha", 0.4)
    model = build(momentum=0.9).train()
    for parameter in model.encoders.parameters():  # the teacher is no longer the student
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    fill_queue(model, [3, 5, 4, 8, 5])
    batch = make_batch(CAPTIONS[:3], ids)
    model.on_train_batch_start(batch, 0)
    losses = deepcopy(model).losses(batch)

    tokens, mask = model._tokenize(batch["captions"])
    image, w = model.encoders.encode_images(batch["images"])
    t = model.encoders.encode_texts(tokens, mask)
    w_m = model.teacher.encode_images(batch["images"])[1]
    t_m = model.teacher.encode_texts(tokens, mask)

    def itc(query, query_m, keys_m, queue):
        keys, key_ids = [*keys_m, *queue[:5]], [*ids, 3, 5, 4, 8, 5]
        total = 0.0
        for i in range(3):
            p = torch.stack([query[i] @ key / 0.07 for key in keys]).softmax(0)
            q = torch.stack([query_m[i] @ key / 0.07 for key in keys]).softmax(0)
            mine = [j for j, other in enumerate(key_ids) if other == ids[i]]
            for j in range(len(keys)):
                y = 0.4 * q[j] + 0.6 * (j in mine) / len(mine)
                total -= float(y * p[j].log()) / 3
        return total

    expected = (itc(w, w_m, t_m, model.queue.text) + itc(t, t_m, w_m, model.queue.image)) / 2
    assert float(losses["itc"]) == pytest.approx(expected, rel=1e-5)

    def log_p(i, j, label):
        """log p(label) of picture i and text j, 1 for a match."""
        text = tokens[j : j + 1].clone()
        text[0, 0] = model.tokenizer.enc
        hidden = model.encoders.text(text, mask[j : j + 1], image=image[i : i + 1])
        return model.matcher(hidden[0, 0]).log_softmax(0)[label].item()

    right = [log_p(i, i, 1) for i in range(3)]
    wrong = [log_p(i, j, 0) for i, j in [(1, 0), (2, 1), (0, 2), (0, 1), (1, 0), (2, 0)]]
    assert float(losses["itm"]) == pytest.approx(-(sum(right) + sum(wrong)) / 9, rel=1e-5)
    torch.testing.assert_close(proposals, [t @ w_m.T / 0.07, w @ t_m.T / 0.07])

    odds = torch.tensor([log_p(i, i, 1) - log_p(i, i, 0) for i in range(3)])
    torch.testing.assert_close(model.match(image, batch["captions"]), odds)

    nll = []
    for i in range(3):
        text = tokens[i][mask[i]].clone()  # alone, and without pads
        target, text[0] = text[1:].clone(), model.tokenizer.dec
        hidden = model.encoders.text(text[None, :-1], image=image[i : i + 1], causal=True)
        for row, word in zip(model.encoders.text.logits(hidden)[0].log_softmax(1), target, strict=True):
            nll.append(float(-0.9 * row[word] - 0.1 * row.mean()))
    assert float(losses["lm"]) == pytest.approx(sum(nll) / len(nll), rel=1e-5)


@torch.no_grad()
def test_a_random_start_costs_what_chance_does(batch):
    losses = build(embed_dim=256).train().losses(batch)
    assert float(losses["itc"]) == pytest.approx(math.log(B), abs=0.4)
    assert float(losses["lm"]) == pytest.approx(math.log(len(Tokenizer(TOKENIZER))), abs=0.4)


def test_twenty_steps_lower_every_loss(batch):
    def measure(model):
        model.eval().queue.clear()
        with torch.no_grad():
            torch.manual_seed(1)  # hard negatives are drawn
            return torch.stack([torch.stack(list(model.losses(batch).values())) for _ in range(20)]).mean(0)

    model = build()
    before = measure(model)
    fit(model.train(), steps=20)
    after = measure(model)
    assert (after < before - torch.tensor([0.1, 0.01, 0.5])).all(), (before, after)


def gradients(model: Blip, loss: torch.Tensor) -> set[str]:
    """Parameters that the loss reaches."""
    model.zero_grad()
    loss.backward(retain_graph=True)
    return {name for name, p in model.named_parameters() if p.grad is not None and p.grad.ne(0).any()}


def test_each_loss_reaches_its_part_of_the_model(batch):
    model = build(text={"width": 16, "depth": 2, "heads": 2, "max_length": 14}).train()
    losses = model.losses(batch)
    itc, itm, lm = (gradients(model, losses[name]) for name in ("itc", "itm", "lm"))
    assert "temperature" in itc
    assert "temperature" not in itm | lm
    parts = {"projection": itc, "matcher": itm, "head": lm, "cross_attention": itm | lm, "decoder_attention": lm}
    for part, losses_there in parts.items():
        for reached in (itc, itm, lm):
            assert any(part in name for name in reached) == (reached <= losses_there), part
    for reached in (itc, itm, lm):
        assert any(name.startswith("encoders.image.vit") for name in reached)
        assert not any(name.startswith("teacher") for name in reached)
    assert not any(".attention." in name and name.startswith("encoders.text") for name in lm)


def test_all_that_learns_gets_a_gradient(batch):
    """Else distributed training would need find_unused_parameters."""
    model = build().train()
    torch.stack(list(model.losses(batch).values())).sum().backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_pairs_that_belong_together_are_no_negatives(monkeypatch):
    seen = []
    monkeypatch.setattr(
        negatives, "hard_negatives", lambda logits, positive, **_: seen.append(positive) or positive.int().argmin(1)
    )
    captions = ["a red disc", "a red disc", "a blue star", "a green star"]  # 0 and 1 say the same
    build().train().losses(make_batch(captions, ids=[4, 5, 6, 6]))  # 2 and 3 show the same
    expected = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]).bool()
    assert len(seen) == 2
    assert all(torch.equal(positive, expected) for positive in seen)


@torch.no_grad()
def test_in_fine_tuning_for_retrieval_the_model_proposes_the_negatives_itself(monkeypatch, batch):
    """As BLIP's models/blip_retrieval.py: by its own embeddings, and with nothing added to their softmax."""
    models, proposals, floors = [build(), build(objectives=("itc", "itm"))], [], []

    def pick(logits, positive, floor, **_):
        proposals.append(logits)
        floors.append(floor)
        return positive.int().argmin(1)

    monkeypatch.setattr(negatives, "hard_negatives", pick)
    for model in models:
        for parameter in model.encoders.parameters():  # the teacher is no longer the student
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        model.eval().losses(batch)
    image, text = models[1].embed_images(batch["images"]), models[1].embed_texts(batch["captions"])
    torch.testing.assert_close(proposals[2:], [text @ image.T / 0.07, image @ text.T / 0.07])
    assert not torch.allclose(proposals[0], proposals[2])  # with LM, in pre-training, the teacher's keys
    assert floors == [1e-4, 1e-4, 0.0, 0.0]


def test_one_pair_is_no_batch():
    with pytest.raises(ValueError, match="batch_size must be at least 2"):
        build().losses(make_batch(CAPTIONS[:1]))


# ------------------------------------------------------------------------------------- the teacher and the queue


def test_training_moves_the_teacher_and_fills_the_queue(batch):
    model = build(momentum=0.9).train()
    with torch.no_grad():
        model.encoders.text_projection.bias.add_(1)
    before = model.teacher.text_projection.bias.clone()
    model.on_train_batch_start(batch, 0)
    model.losses(batch)
    torch.testing.assert_close(model.teacher.text_projection.bias, before + 0.1)
    assert model.queue.filled == B
    keys = model.teacher.encode_images(batch["images"])[1]
    torch.testing.assert_close(model.queue.image[:B], keys)


def test_evaluation_moves_nothing(batch):
    model = build().eval()
    before = deepcopy(model.state_dict())
    model.losses(batch)
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)


def test_the_queue_must_hold_a_batch(batch):
    with pytest.raises(ValueError, match=rf"queue_size=4 .* at least {B}"):
        fit(build(queue_size=4), steps=1)


def test_without_a_queue_the_keys_are_the_batch(batch):
    torch.manual_seed(0)
    without = build(queue_size=0).train()
    first = without.losses(batch)["itc"]
    assert without.queue.filled == 0
    torch.testing.assert_close(first, build().train().losses(batch)["itc"])  # empty, the queue does nothing either
    fit(without, steps=2)
    assert without.queue.filled == 0


def test_temperature_stays_in_its_bounds(batch):
    for start, bound in ((5.0, 0.5), (-1.0, 0.001)):
        model = build(temperature=start).train()
        model.on_train_batch_start(batch, 0)
        assert model.losses(batch)["itc"].isfinite()
        assert float(model.temperature.detach()) == pytest.approx(bound)


def test_alpha_ramps_up_over_its_share_of_the_run():
    model, seen = build(alpha_ramp=0.5), []
    watch = LambdaCallback(on_train_batch_start=lambda *_: seen.append(model.current_alpha))
    fit(model, steps=8, callbacks=[watch])
    assert seen == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.4, 0.4, 0.4])


def test_gradient_accumulation_counts_every_batch():
    model = build()
    trainer = fit(model, steps=3, accumulate_grad_batches=2)
    assert trainer.global_step == 3
    assert int(model.queue.added) == 6 * B


def test_the_teacher_moves_once_for_each_step_of_the_student(monkeypatch):
    moves = []
    monkeypatch.setattr("tldr.model.blip.follow", lambda *given: moves.append(given[2]))
    fit(build(momentum=0.9), steps=3, accumulate_grad_batches=2)
    assert moves == [0.9] * 3


def test_bfloat16_autocast_keeps_the_teacher_and_the_queue_in_float32():
    model = build()
    before = deepcopy(model.teacher.state_dict())
    fit(model, steps=2, precision="bf16-mixed")
    assert model.queue.image.dtype == torch.float32
    torch.testing.assert_close(model.queue.image[: 2 * B].norm(dim=1), torch.ones(2 * B))
    moved = [name for name, p in model.teacher.named_parameters() if not torch.equal(p, before[name])]
    assert "text_projection.weight" in moved
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in model.parameters())


def test_a_resumed_run_goes_on_where_it_stopped(tmp_path, monkeypatch):
    """Teacher, queue and the step of the ramp are in the checkpoint: it ends where an undisturbed run does."""
    monkeypatch.setattr(
        negatives, "hard_negatives", lambda logits, positive, **_: logits.masked_fill(positive, -99).argmax(1)
    )
    half_way = tmp_path / "half.ckpt"
    save = LambdaCallback(
        on_train_epoch_end=lambda trainer, _: trainer.current_epoch or trainer.save_checkpoint(half_way)
    )
    whole, resumed = build(momentum=0.9, alpha_ramp=1), build(momentum=0.9, alpha_ramp=1, seed=1)
    fit(whole, steps=4, callbacks=[save])
    fit(resumed, steps=4, resume=half_way)
    assert int(resumed.queue.added) == 4 * B
    torch.testing.assert_close(dict(resumed.state_dict()), dict(whole.state_dict()))


def test_a_new_run_forgets_the_queue_of_the_last(tmp_path):
    fit(build(), steps=3).save_checkpoint(tmp_path / "model.ckpt")
    model = load_model(tmp_path)
    assert isinstance(model, Blip)
    assert model.queue.filled == 3 * B
    fit(model.train(), steps=1)
    assert model.queue.filled == B


def test_the_optimiser_leaves_the_teacher_alone():
    model = build()
    trainer = fit(model, steps=1)
    held = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert held == {id(p) for name, p in model.named_parameters() if not name.startswith("teacher")}


def test_negatives_become_hard_over_their_share_of_the_run(monkeypatch):
    """Until then every pair that does not belong is as likely; the published ones are hard from the first step."""
    seen: list[float] = []
    draw = negatives.hard_negatives
    monkeypatch.setattr(
        negatives, "hard_negatives", lambda logits, *a, **k: seen.append(float(logits.std())) or draw(logits, *a, **k)
    )
    fit(build(negative_ramp=0.5, optimizer={"lr": 1e-9}), steps=8)
    of_texts = torch.tensor(seen[::2])
    torch.testing.assert_close(of_texts / of_texts[4], torch.tensor([0, 0.25, 0.5, 0.75, 1, 1, 1, 1]))
    seen.clear()
    fit(build(optimizer={"lr": 1e-9}), steps=1)
    assert seen[0] == pytest.approx(float(of_texts[4]))


def test_the_text_layers_begin_as_wide_as_asked():
    usual, model = build(), build(init_std=0.1)
    inner, words = "encoders.text.layers.0.inner.weight", "encoders.text.words.weight"
    torch.testing.assert_close(model.get_parameter(inner), 5 * usual.get_parameter(inner))
    assert torch.equal(model.get_parameter(words), usual.get_parameter(words))
    torch.testing.assert_close(dict(model.teacher.state_dict()), dict(model.encoders.state_dict()))


TWO_PROCESSES = """
import json, sys
import lightning as L, torch
from test_blip import B, build, make_batch

class Data(torch.utils.data.Dataset):  # a batch of its own for each process
    def __len__(self): return 4
    def __getitem__(self, i): return make_batch(ids=[10 * i + j for j in range(B)], seed=i)

class Check(L.Callback):
    def on_train_end(self, trainer, model):
        ids = model.queue.ids[: model.queue.filled].tolist()
        gathered = model.all_gather({"weight": model.matcher.weight, "queue": model.queue.image, "teacher":
                                     model.teacher.text_projection.weight})
        equal = [name for name, value in gathered.items() if torch.equal(value[0], value[1])]
        if trainer.is_global_zero:
            print(json.dumps(sorted(equal)), ids, sep="|")

if __name__ == "__main__":
    torch.set_num_threads(1)
    model = build(objectives=sys.argv[1].split("+"))
    loader = torch.utils.data.DataLoader(Data(), batch_size=None, shuffle=False)
    L.Trainer(accelerator="cpu", devices=2, strategy="ddp_fork", max_epochs=1, logger=False, enable_checkpointing=False,
              enable_progress_bar=False, enable_model_summary=False, callbacks=[Check()]).fit(model, loader)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="processes are forked")
@pytest.mark.parametrize("objectives", ["itc+itm+lm", "itc+itm"])
def test_two_processes_share_queue_weights_and_teacher(tmp_path, objectives):
    """Without find_unused_parameters, which the second step would ask for. Process r sees batches r and r + 2."""
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, script, objectives], capture_output=True, text=True, timeout=300, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{here.parents[1]}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    equal, ids = map(json.loads, done.stdout.splitlines()[-1].split("|"))
    assert equal == ["queue", "teacher", "weight"]
    batches = [ids[start : start + B] for start in range(0, len(ids), B)]
    assert sorted(batches) == [[10 * i + j for j in range(B)] for i in range(4)]  # from both, each in its place


# ------------------------------------------------------------------------------------------------ the trained model


@pytest.fixture(scope="module")
def trained():
    model = build()
    fit(model, steps=5)
    return model.eval()


@torch.no_grad()
def test_signals_are_what_matching_and_contrast_say(trained, batch):
    found = trained.signals(batch)
    images, captions = batch["images"], batch["captions"]
    matched = trained.match(trained.image_tokens(images), captions)
    torch.testing.assert_close(found["alignment"], matched)
    cosine = (trained.embed_images(images) * trained.embed_texts(captions)).sum(1)
    torch.testing.assert_close(found["itc"], cosine)
    torch.testing.assert_close(found["embedding"], trained.embed_images(images))


@torch.no_grad()
def test_a_pair_is_judged_alike_in_any_company(trained, batch):
    """A batch's longest caption makes the others' pads, and pictures pass BatchNorm."""
    images, captions = batch["images"], batch["captions"]
    tokens = trained.image_tokens(images)
    for one, many in (
        (lambda i: trained.embed_images(images[i : i + 1]), trained.embed_images(images)),
        (lambda i: trained.embed_texts(captions[i : i + 1]), trained.embed_texts(captions)),
        (lambda i: trained.match(tokens[i : i + 1], captions[i : i + 1]), trained.match(tokens, captions)),
    ):
        torch.testing.assert_close(torch.cat([one(i) for i in range(B)]), many)


@torch.no_grad()
def test_mean_pooling_leaves_pads_out(batch):
    model = build(text_pooling="mean").eval()
    captions, together = batch["captions"], model.embed_texts(batch["captions"])
    torch.testing.assert_close(torch.cat([model.embed_texts([caption]) for caption in captions]), together)
    assert not torch.allclose(together, build().eval().embed_texts(captions))
    with pytest.raises(ValueError, match="text_pooling='max'; choose from cls, mean"):
        build(text_pooling="max")


@torch.no_grad()
def test_embeddings_are_unit_vectors(trained, batch):
    for embedding in (trained.embed_images(batch["images"]), trained.embed_texts(batch["captions"])):
        assert embedding.shape == (B, 8)
        torch.testing.assert_close(embedding.norm(dim=1), torch.ones(B))


@torch.no_grad()
def test_a_checkpoint_gives_the_same_model(trained, batch, tmp_path):
    trained.trainer.save_checkpoint(tmp_path / "model.ckpt")
    again = load_model(tmp_path)
    assert isinstance(again, Blip)
    assert torch.equal(again.embed_images(batch["images"]), trained.embed_images(batch["images"]))
    assert torch.equal(again.embed_texts(batch["captions"]), trained.embed_texts(batch["captions"]))
    tokens = trained.image_tokens(batch["images"])
    assert torch.equal(again.match(tokens, batch["captions"]), trained.match(tokens, batch["captions"]))
    assert torch.equal(again.queue.image, trained.queue.image)


@torch.no_grad()
def test_it_learns_six_pairs_by_heart(batch):
    """Then it finds them and writes them. (Matching takes longer to learn.)"""
    model = build(
        optimizer={"lr": 5e-3, "warmup_steps": 10}, queue_size=0, text_pooling="mean", embed_dim=32,
        momentum=0.9, alpha=0.0, label_smoothing=0.0,
    )  # fmt: skip
    with torch.enable_grad():
        fit(model, steps=150)
    images, captions = batch["images"], batch["captions"]
    similarity = model.eval().embed_images(images) @ model.embed_texts(captions).T
    assert torch.equal(similarity.argmax(1), torch.arange(B))
    assert torch.equal(similarity.argmax(0), torch.arange(B))
    for strategy in ("greedy", "beam"):
        assert model.generate(images, strategy=strategy, min_length=1) == captions
    drawn = model.generate(images, generator=torch.Generator().manual_seed(0), max_length=6)
    assert len(drawn) == B
    assert not any("[" in caption for caption in drawn)  # no special token is in the text


# ------------------------------------------------------------------------------------------------ objectives


SOME = [list(some) for n in (1, 2) for some in combinations(OBJECTIVES, n)]


@pytest.mark.parametrize("objectives", SOME, ids="+".join)
def test_what_the_objectives_do_not_reach_does_not_learn(batch, objectives):
    """AdamW would decay it; and distributed training would need find_unused_parameters."""
    model = build(objectives=objectives).train()
    losses = model.losses(batch)
    assert list(losses) == objectives
    torch.stack(list(losses.values())).sum().backward()
    learns = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learns == {name for name, p in model.named_parameters() if p.grad is not None}
    for part, objective in (("matcher", "itm"), ("decoder_attention", "lm"), ("projection", "itc")):
        assert any(part in name for name in learns) == (objective in objectives)


@pytest.mark.parametrize("objectives", [["itc", "itm"], ["lm"]], ids="+".join)
def test_fine_tuning_begins_where_pre_training_ends(batch, objectives, tmp_path):
    """All of pre-training's arrays have their place, whatever the objectives; and forty steps lower each loss."""
    first = build(seed=3, init_std=0.25)  # with BERT's, so narrow a model's ITM would stay at its prior for long
    fit(first, steps=2).save_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    stored = torch.load(tmp_path / "model.ckpt", weights_only=True)["state_dict"]
    model = build(objectives=objectives, prompt="on the left" if objectives == ["lm"] else "")
    model.load_state_dict(stored)

    def measure() -> torch.Tensor:
        model.eval().queue.clear()
        with torch.no_grad():
            torch.manual_seed(1)
            return torch.stack([torch.stack(list(model.losses(batch).values())) for _ in range(20)]).mean(0)

    before = measure()
    fit(model.train(), steps=40)
    assert (measure() < before - 0.01).all()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad and not name.startswith("teacher")}
    assert frozen
    assert all(torch.equal(model.get_parameter(name), stored[name]) for name in frozen)
    fit(model.train(), steps=1).save_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    again = load_model(tmp_path)
    assert isinstance(again, Blip)
    assert again.objectives == tuple(objectives)


@pytest.mark.parametrize("objectives", [[], ["itc", "mlm"]])
def test_unknown_objectives_are_named(objectives):
    with pytest.raises(ValueError, match=r"objectives=\[.*choose some of itc, itm, lm"):
        build(objectives=objectives)


def test_writing_needs_no_company():
    assert build(objectives=["lm"]).train().losses(make_batch(["a red disc"]))["lm"].isfinite()


# ------------------------------------------------------------------------------------------------ the queue


def test_a_queue_too_short_is_refused_before_the_first_step(monkeypatch):
    started = []
    watch = LambdaCallback(on_train_batch_start=lambda *_: started.append(1))
    model = build(queue_size=4)
    run: Any = SimpleNamespace(
        train_dataloader=SimpleNamespace(batch_sampler=SimpleNamespace(batch_size=3)),
        world_size=2,
        estimated_stepping_batches=10,
        global_step=0,
    )
    monkeypatch.setattr(Blip, "trainer", run)
    with pytest.raises(ValueError, match=r"queue_size=4 .* at least 6 .* 120\), or 0 for no queue"):
        model.on_train_start()
    monkeypatch.undo()
    fit(build(queue_size=4, objectives=["lm"]), steps=1, callbacks=[watch])  # it needs none
    assert started == [1]


# ------------------------------------------------------------------------------------------------ prompts


@torch.no_grad()
def test_the_prompt_is_read_and_not_learned(batch):
    model = build(objectives=["lm"], prompt="on the left ").eval()
    image, total, words = model.image_tokens(batch["images"]), 0.0, 0
    prompt = model._tokenize(["on the left"])[0][0, 1:-1].tolist()
    for i, caption in enumerate(batch["captions"]):
        text = model._tokenize([caption])[0][0, 1:]
        tokens = torch.tensor([[model.tokenizer.dec, *prompt, *text.tolist()]])
        logits = model.encoders.text.logits(model.encoders.text(tokens[:, :-1], image=image[i : i + 1], causal=True))[0]
        total += float(F.cross_entropy(logits[len(prompt) :], text, label_smoothing=0.1, reduction="sum"))
        words += len(text)
    assert float(model.losses(batch)["lm"]) == pytest.approx(total / words, rel=1e-5)


def test_captions_follow_the_prompt_and_leave_it_out(batch):
    model = build(objectives=["lm"], prompt="on the left ", optimizer={"lr": 1e-2, "schedule": "constant"})
    fit(model, steps=150)
    options = {"strategy": "greedy", "min_length": 1}
    told = model.eval().generate(batch["images"], **options)
    assert sum(a == b for a, b in zip(told, batch["captions"], strict=True)) >= 4
    assert told == model.generate(batch["images"], prompt="on the left", **options)
    begun = model.generate(batch["images"], prompt="on the left a", **options)
    assert sum(f"a {a}" == b for a, b in zip(begun, batch["captions"], strict=True)) >= 4
    assert model.generate(batch["images"], prompt="", **options) != told
    beams = model.generate(batch["images"], strategy="beam", min_length=1)
    assert not any(text.startswith("on") for text in beams)


# ------------------------------------------------------------------------------------------------ joint features


@torch.no_grad()
def test_the_joint_feature_is_what_matching_judges(batch):
    model = build(image={"backbone": "conv_stem", "image_size": 32, "width": 24, "depth": 1, "heads": 2}).eval()
    joint = model.joint(batch["images"], batch["captions"])
    assert joint.shape == (B, model.joint_width) == (B, 16)
    scores = model.matcher(joint)
    matched = model.match(model.image_tokens(batch["images"]), batch["captions"])
    torch.testing.assert_close(scores[:, 1] - scores[:, 0], matched)
    assert torch.equal(model.joint(batch["images"], batch["captions"], place=1), joint)


# ------------------------------------------------------------------------------------------------ negatives of all

UNION = """
import os, sys
from datetime import timedelta
import torch, torch.distributed as dist
from test_blip import CAPTIONS, build, make_batch
from tldr.nn import negatives

negatives.hard_negatives = lambda logits, positive, **_: logits.masked_fill(positive, -99).argmax(1)
captions = [f"{text}{more}" for more in ("", " and a red disc") for text in CAPTIONS[:3]]
whole = make_batch(captions, ids=[0, 1, 2, 3, 4, 1])  # 1 and 5 show the same

def run(rank, gathered):
    model = build(queue_size=0, gather_negatives=gathered).eval()
    rows = slice(0, 6) if rank is None else slice(3 * rank, 3 * rank + 3)
    part = {key: value[rows] for key, value in whole.items() if key != "columns"}
    loss = model.losses(part)["itm"]
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

if __name__ == "__main__":
    torch.set_num_threads(1)
    rank = int(sys.argv[1])
    expected = run(None, False)
    store = dist.FileStore("store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=120))
    loss, gradients = run(rank, True)
    for found, wanted in [(loss, expected[0]), *((gradients[name], value) for name, value in expected[1].items())]:
        dist.all_reduce(found)
        torch.testing.assert_close(found / 2, wanted, rtol=1e-4, atol=1e-6)
    assert set(gradients) == set(expected[1])
    alone, _ = run(rank, False)  # its three pairs propose other negatives
    dist.all_reduce(alone)
    assert abs(float(alone / 2 - expected[0])) > 1e-6
    print("equal")
    dist.destroy_process_group()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="gloo over a file")
def test_two_processes_draw_negatives_from_their_union(tmp_path):
    """Loss and gradients are those of one process with both batches."""
    script = tmp_path / "two.py"
    script.write_text(UNION)
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{here.parents[1]}"}
    both = [
        subprocess.Popen([sys.executable, script, str(rank)], cwd=tmp_path, env=environment, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for rank in range(2)
    ]  # fmt: skip
    for process in both:
        out, err = process.communicate(timeout=240)
        assert out.strip().endswith("equal"), err[-3000:]


# ------------------------------------------------------------------------------------------------ for a head


def test_a_head_needs_no_teacher(batch):
    model = build().eval()
    before = deepcopy(model)
    model.keep_student()
    assert not any("teacher" in name or "queue" in name for name in model.state_dict())
    with torch.no_grad():
        joint = model.joint(batch["images"], batch["captions"])
        torch.testing.assert_close(joint, before.joint(batch["images"], batch["captions"]))
        assert set(model.losses(batch)) == {"lm"}
