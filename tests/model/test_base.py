import json
import pickle
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import timm
import torch

from tests.model.conftest import backbone
from tldr.data.tokenizer import Tokenizer
from tldr.model.base import Model, build, describe, load_model
from tldr.model.captioner import Captioner
from tldr.model.clip import Clip
from tldr.model.nlvr2 import Nlvr2
from tldr.model.vqa import Vqa
from tldr.nn.joint import JointTransformer
from tldr.nn.text import TextTransformer


def test_a_checkpoint_needs_nothing_else(tiny_checkpoint):
    for path in (tiny_checkpoint, tiny_checkpoint / "model.ckpt", str(tiny_checkpoint)):
        model = load_model(path)
        assert isinstance(model, Captioner)
        assert not any(module.training for module in model.modules())
        assert model.device.type == "cpu"
    stored = torch.load(tiny_checkpoint / "model.ckpt", weights_only=True)
    assert not any("optimizer" in key for key in stored if key != "hyper_parameters")  # two thirds of the bytes


def test_a_missing_one_says_what_writes_it(tmp_path):
    for path in (tmp_path, tmp_path / "model.ckpt"):
        with pytest.raises(ValueError, match=r"no checkpoint at .*model\.ckpt; `python train\.py .* writes one"):
            load_model(path)


class Sly:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("sly"),)


def test_a_checkpoint_cannot_run_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"tldr_class": "tldr.model.clip.Clip", "hyper_parameters": Sly()}, "torch.ckpt")
    Path("plain.ckpt").write_bytes(pickle.dumps(Sly(), protocol=2))
    for name in ("torch.ckpt", "plain.ckpt"):
        with pytest.raises(ValueError, match=rf"{name} is not a checkpoint of tldr's"):
            load_model(name)
    assert not Path("sly").exists()


def test_what_is_no_checkpoint_of_ours_is_refused(tmp_path):
    file = tmp_path / "model.ckpt"
    for name in (None, "torch.nn.Linear", "os.system", "tldr.tasks.fit.fit", 3):
        torch.save({"tldr_class": name, "hyper_parameters": {}, "state_dict": {}}, file)
        with pytest.raises(ValueError, match=r"model\.ckpt is not a checkpoint of tldr's"):
            load_model(file)
    for content in (torch.ones(3), [1, 2]):
        torch.save(content, file)
        with pytest.raises(ValueError, match="is not a checkpoint of tldr's"):
            load_model(file)
    for text in (b"", b"hello", b"{}\n", b"PK\x03\x04 and no zip"):
        file.write_bytes(text)
        with pytest.raises(ValueError, match="is not a checkpoint of tldr's"):
            load_model(file)


def test_loading_asks_nobody_for_pretrained_weights(tmp_path, monkeypatch):
    """They are in the checkpoint; who loads it may have no network."""
    asked, create = [], timm.create_model

    def pretend(name, *, pretrained, **options):
        asked.append(pretrained)
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", pretend)
    model = Clip(
        tokenizer=Tokenizer.learn(["a", "b"]).json,
        image={"backbone": "test_vit", "image_size": 32, "pretrained": True},
        text={"width": 8, "depth": 1, "heads": 2, "max_length": 8},
        optimizer={"lr": 1e-3},
    )
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    again = load_model(tmp_path)
    assert asked == [True, False]
    torch.testing.assert_close(dict(again.state_dict()), dict(model.state_dict()))


def small(kind: Any = Clip, **more) -> Model:
    return kind(
        tokenizer=Tokenizer.learn(["a cat", "a dog"]).json,
        image={"backbone": "conv_stem", "image_size": 32, "width": 8, "depth": 1, "heads": 2},
        text={"width": 8, "depth": 1, "heads": 2, "max_length": 8},
        optimizer={"lr": 1e-3},
        **more,
    )


def test_a_description_builds_the_same_model_without_its_weights():
    model = small(Captioner, quantizer={"codebook_size": 4})
    told = describe(model)
    assert told["class"] == "tldr.model.captioner.Captioner"
    again = build(json.loads(json.dumps(told)))  # plain values: it can travel in a checkpoint
    assert isinstance(again, Captioner)
    assert describe(again)["arguments"]["quantizer"] == {"codebook_size": 4}
    assert {name: value.shape for name, value in again.state_dict().items()} == {
        name: value.shape for name, value in model.state_dict().items()
    }
    for name in ("torch.nn.Linear", "tldr.model.clip.nothing", "tldr.model.base.load_model", None):
        with pytest.raises(ValueError, match=r"is no class of tldr\.model"):
            build({"class": name, "arguments": {}})


def test_what_a_run_needs_to_go_on_travels(tmp_path):
    """A codebook that has not begun: what it has seen is no weight, but decides what it begins as."""
    model, other, checkpoint = small(Captioner), small(Captioner), {}
    vars(model.get_submodule("decoder"))["transient"] = [torch.ones(2), torch.zeros(1)]
    model.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "x")
    other.on_load_checkpoint(torch.load(tmp_path / "x", weights_only=True))
    assert [tensor.tolist() for tensor in vars(other.decoder)["transient"]] == [[1, 1], [0]]


@pytest.mark.parametrize(("kind", "network"), [("vilt", JointTransformer), ("blip", TextTransformer)])
def test_a_head_compiles_what_its_backbone_computes_in(kind, network):
    description, optimizer = describe(backbone(kind, Tokenizer.learn(["a cat"]).json)), {"lr": 1e-3}
    for model in (Nlvr2(backbone=description, optimizer=optimizer), Vqa(backbone=description, optimizer=optimizer)):
        model.compile_networks(backend="eager")
        compiled = [part for part in model.modules() if part._compiled_call_impl is not None]
        assert any(isinstance(part, network) for part in compiled)
        assert all(isinstance(part, model.backbone.compiled) for part in compiled)


def test_compiling_changes_neither_names_nor_numbers():
    torch.manual_seed(0)
    model = small().eval()
    batch: Any = {"images": torch.randint(0, 255, (2, 3, 32, 32), dtype=torch.uint8), "captions": ["a cat", "a dog"]}
    expected, names = model.losses(batch)["itc"], list(model.state_dict())
    assert model.compile_networks(backend="eager") == 2
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model.losses(batch)["itc"], expected)
