from collections.abc import Sequence
from functools import partial
from typing import Any

import lightning as L
import pytest
import torch

from tests.model.conftest import backbone, save, train
from tldr.data.tokenizer import Tokenizer
from tldr.model.base import describe, load_model
from tldr.model.blip import Blip
from tldr.model.captioner import Captioner
from tldr.model.clip import Clip
from tldr.model.nlvr2 import Nlvr2
from tldr.model.vilt import Vilt
from tldr.model.vqa import Vqa

SENTENCES = ("all is red", "something is red")
COLOURS = torch.tensor([[30, 60, 230], [220, 30, 30]], dtype=torch.uint8)  # blue, red
TOKENIZER = Tokenizer.learn([*SENTENCES, "a red box"]).json
OPTIMIZER = {"lr": 5e-3, "schedule": "constant"}


def build(kind: str = "blip", *, seed: int = 0, **options) -> Nlvr2:
    description = describe(backbone(kind, TOKENIZER))
    torch.manual_seed(seed)
    return Nlvr2(**({"backbone": description, "optimizer": OPTIMIZER} | options))


def make_batch(*, pictures: int = 2, seed: int = 0) -> Any:
    """All combinations of sentence and colours, twice."""
    places = [(s, a, b) for s in range(2) for a in range(2) for b in range(2) if pictures == 2 or a == b] * 2
    labels = [bool(a or b) if s else bool(a and b) for s, a, b in places]
    generator = torch.Generator().manual_seed(seed)

    def paint(colours: Sequence[int]) -> torch.Tensor:
        flat = COLOURS[list(colours)][:, :, None, None].expand(-1, -1, 32, 32)
        return flat + torch.randint(0, 9, flat.shape, generator=generator, dtype=torch.uint8)

    batch = {
        "images": paint([a for _, a, _ in places]), "captions": [SENTENCES[s] for s, _, _ in places],
        "columns": {"label": labels},
    }  # fmt: skip
    return batch | {"images_2": paint([b for _, _, b in places])} if pictures == 2 else batch


def fit(model: Nlvr2, steps: int, **options) -> L.Trainer:
    batches = partial(make_batch, pictures=model.pictures)
    return train(model.train(), steps, lambda i: batches(seed=i), **options)


def test_labels_in_words_are_understood_and_missing_ones_refused():
    model, batch = build().eval(), make_batch(pictures=2)
    expected = model.losses(batch)["nlvr2"]
    batch["columns"]["label"] = [str(bool(label)) for label in batch["columns"]["label"]]
    torch.testing.assert_close(model.losses(batch)["nlvr2"], expected)
    batch["columns"]["label"] = [None, *batch["columns"]["label"][1:]]
    with pytest.raises(ValueError, match="the column label must say true or false"):
        model.losses(batch)


@torch.no_grad()
def loss(model: Nlvr2) -> float:
    return float(model.eval().losses(make_batch(pictures=model.pictures, seed=99))["nlvr2"])


@torch.no_grad()
def accuracy(model: Nlvr2) -> float:
    batch = make_batch(pictures=model.pictures, seed=99)
    labels = torch.tensor(batch["columns"]["label"])
    return float(((model.eval().judge(batch) > 0) == labels).float().mean())


WAYS = [("vilt", "pair", 2), ("blip", "pair", 2), ("blip", "twin", 2), ("captioner", "pair", 2), ("blip", "twin", 1)]


@pytest.mark.parametrize(("kind", "fusion", "pictures"), WAYS)
def test_it_learns_what_can_be_told(kind, fusion, pictures):
    """Half of the sentences are true; who sees nothing but the sentence can get three quarters right."""
    model = build(kind, fusion=fusion, pictures=pictures)
    before = loss(model)
    fit(model, 20)
    assert loss(model) < before
    fit(model, 80, gradient_clip_val=1.0)
    assert accuracy(model) > 0.9


@pytest.mark.parametrize(("kind", "fusion", "pictures"), WAYS)
def test_all_that_learns_gets_a_gradient(kind, fusion, pictures):
    """Else distributed training would need find_unused_parameters."""
    model = build(kind, fusion=fusion, pictures=pictures)
    assert model.training
    model.losses(make_batch(pictures=pictures))["nlvr2"].backward()
    learns = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learns == {name for name, p in model.named_parameters() if p.grad is not None}
    assert {name for name, _ in model.head.named_parameters(prefix="head")} <= learns
    assert any(name.startswith("backbone.") for name in learns)
    assert not any("teacher" in name or "queue" in name for name in model.state_dict())


@pytest.mark.parametrize(("kind", "fusion", "pictures"), WAYS)
@torch.no_grad()
def test_its_checkpoint_loads_by_itself(kind, fusion, pictures, tmp_path):
    """Without the backbone's, from which it began."""
    first = tmp_path / "backbone"
    first.mkdir()
    before = backbone(kind, TOKENIZER)
    with torch.no_grad():
        for parameter in before.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape))
    model = build(kind, backbone=str(save(before, first)), fusion=fusion, pictures=pictures).eval()
    (first / "model.ckpt").unlink()
    again = load_model(save(model, tmp_path))
    assert isinstance(again, Nlvr2)
    assert not again.training
    batch = make_batch(pictures=pictures)
    torch.testing.assert_close(again.judge(batch), model.judge(batch), rtol=0, atol=0)
    assert again.columns == (("label", "image_2") if pictures == 2 else ("label",))


@torch.no_grad()
def test_the_backbones_weights_are_the_heads_beginning(tmp_path):
    before = backbone("blip", TOKENIZER).eval()
    assert isinstance(before, Blip)
    batch = make_batch()
    expected = before.joint(batch["images"], batch["captions"])
    twin = build(backbone=save(before, tmp_path), fusion="twin").eval().backbone
    assert isinstance(twin, Blip)
    torch.testing.assert_close(twin.joint_two(batch["images"], batch["images"], batch["captions"]), expected)
    changed = twin.joint_two(batch["images"], batch["images_2"], batch["captions"])
    assert not torch.allclose(changed, expected)


@torch.no_grad()
def test_the_backbone_can_be_given_larger_pictures(tmp_path):
    before = save(backbone("vilt", TOKENIZER), tmp_path)
    model = build(backbone=before, image={"image_size": 64, "drop_path": 0.1, "resize_mode": "shortest"}).eval()
    assert (model.image_size, model.resize_mode) == (64, "shortest")
    state = load_model(before).state_dict()
    same = [name for name, value in state.items() if torch.equal(model.backbone.state_dict()[name], value)]
    assert set(state) - set(same) <= {"network.image.vit.pos_embed"}
    again = load_model(save(model, tmp_path))
    assert isinstance(again, Nlvr2)
    batch = make_batch()
    large = batch | {key: batch[key].repeat(1, 1, 2, 2) for key in ("images", "images_2")}
    torch.testing.assert_close(again.judge(large), model.judge(large), rtol=0, atol=0)


@torch.no_grad()
def test_of_another_head_it_takes_what_that_has_tuned(tmp_path):
    """And of it whatever a head of its own would move learns again."""
    description = describe(backbone("blip", TOKENIZER))
    tuned = Vqa(backbone=description, optimizer=OPTIMIZER, mode="rank", answers=["yes", "no"]).eval()
    model = build(backbone=save(tuned, tmp_path))
    for name, value in tuned.backbone.state_dict().items():
        torch.testing.assert_close(model.backbone.state_dict()[name], value, rtol=0, atol=0)
    moving, expected = ({n for n, p in each.named_parameters() if p.requires_grad} for each in (model, build()))
    assert moving == expected
    twin = build(fusion="twin")
    with pytest.raises(ValueError, match=r"Nlvr2 of .* has changed its backbone \(fusion=twin\)"):
        build(backbone=save(twin, tmp_path))


@torch.no_grad()
def test_a_sentence_is_judged_alike_in_any_company():
    model, batch = build("vilt").eval(), make_batch()
    rows = [5, 0, 7]
    some = {key: value[rows] if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
    some["captions"] = [batch["captions"][row] for row in rows]
    torch.testing.assert_close(model.judge(some), model.judge(batch)[rows])  # type: ignore[arg-type]


def test_the_second_picture_is_known_as_such():
    """ViLT's pictures carry their place: two in the other order are not the same."""
    model, batch = build("vilt").eval(), make_batch()
    assert isinstance(model.backbone, Vilt)
    with torch.no_grad():
        model.backbone.network.types.normal_()
        same = model.backbone.joint(batch["images"], batch["captions"])
        assert not torch.allclose(model.backbone.joint(batch["images"], batch["captions"], place=1), same)


def test_errors_name_the_key(tmp_path, monkeypatch):
    monkeypatch.delattr(Clip, "joint")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"fusion": "sum"}, "fusion='sum'; choose from pair, twin"),
        ({"pictures": 3}, "pictures=3"),
        ({"kind": "vilt", "fusion": "twin"}, "fusion=twin doubles cross-attentions, and Vilt has none; choose pair"),
        ({"kind": "clip"}, "backbone: Clip has no joint feature"),
        ({"backbone": tmp_path}, "no checkpoint at"),
        ({"backbone": {"class": "os.path"}}, "is no class of tldr.model"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            build(**options)
    with pytest.raises(ValueError, match=r"no second picture .* model\.pictures=1"):
        build().losses(make_batch(pictures=1))


def test_a_codebook_in_the_backbone_is_that_of_all_processes(tmp_path):
    model = build(backbone=describe(backbone("captioner", TOKENIZER, quantizer={"codebook_size": 8, "after": 99})))
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model.configure_model()
        assert isinstance(model.backbone, Captioner)
        assert model.backbone.quantizer is not None
        book = model.backbone.quantizer.vq._codebook
        assert book.use_ddp
        assert book.all_reduce_fn is torch.distributed.all_reduce
    finally:
        torch.distributed.destroy_process_group()
