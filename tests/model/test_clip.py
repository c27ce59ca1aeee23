import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F

from tests.model.conftest import train
from tldr.data.loading import Batch
from tldr.data.tokenizer import Tokenizer
from tldr.model.base import load_model
from tldr.model.clip import Clip

CAPTIONS = [f"a {colour} {shape}" for colour in ("red", "green", "blue") for shape in ("disc", "star on the left")]
TOKENIZER = Tokenizer.learn(CAPTIONS).json
B, E = 6, 8


def build(*, seed: int = 0, **options) -> Clip:
    torch.manual_seed(seed)
    arguments: dict[str, Any] = {
        "tokenizer": TOKENIZER,
        "image": {"backbone": "conv_stem", "image_size": 32, "width": 16, "depth": 1, "heads": 2},
        "text": {"width": 12, "depth": 1, "heads": 2, "max_length": 14, "pre_norm": True},
        "optimizer": {"lr": 3e-3},
        "embed_dim": E,
    }
    return Clip(**(arguments | options))


def make_batch(captions=CAPTIONS) -> Batch:
    count = len(captions)
    return Batch(
        images=torch.randint(0, 256, (count, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8),
        captions=list(captions),
        rows=torch.arange(count),
        image_ids=torch.arange(count),
        errors=[""] * count,
        columns={},
    )


def fit(model: Clip, steps: int) -> L.Trainer:
    return train(model, steps, lambda _: make_batch(), epoch=60)


@pytest.fixture
def batch():
    return make_batch()


@pytest.fixture(scope="module")
def trained() -> Clip:
    model = build()
    fit(model, 60)
    return model.eval()


@torch.no_grad()
def test_the_loss_is_the_papers_formula(trained, batch):
    """Figure 3 of the paper, written out pair by pair."""
    image, text = trained.embed_images(batch["images"]), trained.embed_texts(batch["captions"])
    scale, total = trained.log_scale.exp(), 0.0
    for i in range(B):
        by_image = torch.stack([scale * image[i] @ text[j] for j in range(B)]).log_softmax(0)
        by_text = torch.stack([scale * text[i] @ image[j] for j in range(B)]).log_softmax(0)
        total -= float(by_image[i] + by_text[i]) / (2 * B)
    assert float(trained.losses(batch)["itc"]) == pytest.approx(total, rel=1e-4)


@torch.no_grad()
def test_siglips_loss_is_the_papers_formula(batch):
    """Algorithm 1 of the paper, written out pair by pair."""
    model = build(loss="siglip", temperature=0.1).eval()
    image, text = model.embed_images(batch["images"]), model.embed_texts(batch["captions"])
    assert model.bias is not None
    assert (float(model.log_scale.exp()), float(model.bias)) == (pytest.approx(10), -10)
    total = 0.0
    for i in range(B):
        for j in range(B):
            logit = 10 * image[i] @ text[j] - 10
            total -= float(F.logsigmoid(logit if i == j else -logit)) / B
    assert float(model.losses(batch)["itc"]) == pytest.approx(total, rel=1e-4)


def test_siglip_learns_the_pairs_too(batch):
    model = build(loss="siglip", temperature=0.1)
    fit(model, 100)
    assert model.bias is not None
    assert float(model.bias.detach()) != -10
    with torch.no_grad():
        similarity = model.eval().embed_images(batch["images"]) @ model.embed_texts(batch["captions"]).T
    assert similarity.argmax(1).tolist() == list(range(B))


@torch.no_grad()
def test_the_end_token_sees_all_of_a_causal_text(batch):
    """And is the same for a caption among longer ones."""
    text = {"width": 12, "depth": 2, "heads": 2, "max_length": 14, "pre_norm": True}
    model = build(text_pooling="end", causal=True, text=text).eval()
    blind = build(text_pooling="end", text=text).eval()  # to the order
    for parameter in model.text_encoder.parameters():  # at BERT's start words hardly differ
        torch.nn.init.normal_(parameter, std=0.3)
    blind.load_state_dict(model.state_dict())
    texts = ["a red star on the left", "a red disc"]
    embeddings = model.embed_texts(texts)
    torch.testing.assert_close(embeddings[1:], model.embed_texts(texts[1:]))
    tokens, mask = model.tokenizer(texts[:1], max_length=14)
    hidden = model.text_encoder(tokens, mask, causal=True)[:, -1]
    torch.testing.assert_close(embeddings[:1], F.normalize(model.text_projection(hidden), dim=-1))
    for other in ("a red star on the disc", "blue red star on the left"):  # its last word, its first
        assert not torch.allclose(model.embed_texts([other]), embeddings[:1], atol=1e-3)
    assert not torch.allclose(blind.embed_texts(texts), embeddings, atol=1e-3)


def test_the_joint_feature_is_both_and_their_product(batch):
    model = build().eval()
    joint = model.joint(batch["images"], batch["captions"])
    assert joint.shape == (B, model.joint_width)
    image, text, product = joint.chunk(3, 1)
    unit = image.shape[1] ** 0.5  # a unit vector's entries are about 1 / sqrt(E)
    torch.testing.assert_close(image, unit * model.embed_images(batch["images"]))
    torch.testing.assert_close(text, unit * model.embed_texts(batch["captions"]))
    torch.testing.assert_close(product, image * text)
    joint.sum().backward()
    assert model.image_projection.weight.grad is not None


def test_errors_name_the_choices():
    with pytest.raises(ValueError, match="loss='triplet'; choose from infonce, siglip"):
        build(loss="triplet")
    with pytest.raises(ValueError, match="text_pooling='cls'; choose from mean, end"):
        build(text_pooling="cls")


@torch.no_grad()
def test_training_lowers_the_loss_and_finds_the_pairs(trained, batch):
    fresh = build().eval()
    fresh.trainer = trained.trainer
    assert trained.losses(batch)["itc"] < fresh.losses(batch)["itc"] - 0.5
    similarity = trained.embed_images(batch["images"]) @ trained.embed_texts(batch["captions"]).T
    assert similarity.argmax(1).tolist() == list(range(B))
    assert set(trained.trainer.callback_metrics) >= {"loss", "train/itc"}


@torch.no_grad()
def test_embeddings_are_unit_vectors(trained, batch):
    for embedding in (trained.embed_images(batch["images"]), trained.embed_texts(batch["captions"])):
        assert embedding.shape == (B, E)
        torch.testing.assert_close(embedding.norm(dim=1), torch.ones(B))


@torch.no_grad()
def test_a_pair_is_judged_alike_in_any_company(trained, batch):
    """A batch's longest caption makes the others' pads, and pictures pass BatchNorm."""
    whole = trained.signals(batch)
    for i in (1, 4):
        one: Batch = {
            "images": batch["images"][i : i + 1], "captions": [batch["captions"][i]], "rows": batch["rows"][i : i + 1],
            "image_ids": batch["image_ids"][i : i + 1], "errors": [""], "columns": {},
        }  # fmt: skip
        alone = trained.signals(one)
        torch.testing.assert_close(alone["embedding"], whole["embedding"][i : i + 1])
        torch.testing.assert_close(alone["alignment"], whole["alignment"][i : i + 1])


@torch.no_grad()
def test_signals_are_the_picture_and_its_cosine_with_the_caption(trained, batch):
    signals = trained.signals(batch)
    image, text = trained.embed_images(batch["images"]), trained.embed_texts(batch["captions"])
    torch.testing.assert_close(signals["embedding"], image)
    torch.testing.assert_close(signals["alignment"], F.cosine_similarity(image, text))
    assert trained.constants() == {}


def test_all_that_learns_gets_a_gradient(batch):
    """Else distributed training would need find_unused_parameters."""
    model = build().train()
    fit(model, 1)
    model.zero_grad()
    model.losses(batch)["itc"].backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_the_scale_begins_at_the_temperature_and_is_clipped_at_100(batch):
    assert float(build(temperature=0.05).log_scale.detach().exp()) == pytest.approx(20)
    model = build(temperature=1e-6).train()
    model.on_train_batch_start(batch, 0)
    assert float(model.log_scale.detach().exp()) == pytest.approx(100)
    model.losses(batch)["itc"].backward()
    assert model.log_scale.grad is not None
    assert float(model.log_scale.grad.abs()) > 0  # it can come back
    model.log_scale.data.fill_(9.0)  # by the last step
    model.on_train_end()
    assert float(model.log_scale.detach().exp()) == pytest.approx(100)


@torch.no_grad()
def test_embeddings_are_unit_vectors_in_bfloat16(batch):
    model = build().eval()
    with torch.autocast("cpu", torch.bfloat16):
        for found in (model.embed_images(batch["images"]), model.embed_texts(batch["captions"])):
            assert found.dtype == torch.float32
            torch.testing.assert_close(found.norm(dim=1), torch.ones(B))


@torch.no_grad()
def test_a_checkpoint_gives_the_same_model(trained, batch, tmp_path):
    trained.trainer.save_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    again = load_model(tmp_path)
    assert isinstance(again, Clip)
    assert torch.equal(again.signals(batch)["alignment"], trained.signals(batch)["alignment"])


SCRIPT = """
import json, sys
import torch, torch.distributed as dist, torch.multiprocessing as mp
from test_clip import build, make_batch

def work(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    half, found = slice(3 * rank, 3 * rank + 3), {}
    for loss in ("infonce", "siglip"):
        model, whole = build(loss=loss).eval(), make_batch()
        part = {**whole, "images": whole["images"][half], "captions": whole["captions"][half]}
        model.losses(part)["itc"].backward()
        for parameter in model.parameters():  # as DDP does
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
        trained = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found[loss] = {name: (gradient / 2).norm().item() for name, gradient in trained.items()}
    if rank == 0:
        print(json.dumps(found))
    dist.destroy_process_group()

if __name__ == "__main__":
    mp.spawn(work, (sys.argv[1],), nprocs=2)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="gloo over a file")
def test_two_processes_have_the_gradients_of_the_whole_batch(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(SCRIPT)
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{here.parents[1]}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error::FutureWarning:tldr", script, tmp_path],
        capture_output=True, text=True, timeout=120, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for loss in ("infonce", "siglip"):
        model = build(loss=loss).eval()
        model.losses(make_batch())["itc"].backward()
        trained = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert "log_scale" in found[loss]
        assert found[loss].keys() == trained.keys()
        for name, gradient in trained.items():
            norm = float(torch.linalg.vector_norm(gradient))
            assert found[loss][name] == pytest.approx(norm, rel=1e-3, abs=1e-6), name
