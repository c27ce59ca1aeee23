from typing import Any

import lightning as L
import pyarrow as pa
import pytest
import torch

from tests.model.conftest import IMAGE, TEXT, backbone, save, train
from tldr.data.tokenizer import Tokenizer
from tldr.metric.answer import accuracy
from tldr.model.base import describe, load_model
from tldr.model.blip import Blip
from tldr.model.clip import Clip
from tldr.model.vqa import Vqa
from tldr.nn.answers import answer_nll

COLOURS = {"red": (220, 30, 30), "blue": (30, 60, 230), "white": (250, 250, 250)}
QUESTIONS = ("what colour is it", "is it red", "is it coloured at all, or not")
TOKENIZER = Tokenizer.learn([*QUESTIONS, *COLOURS, "yes", "no"]).json
OPTIMIZER = {"lr": 5e-3, "schedule": "constant"}
WAYS = [("vilt", "classify"), ("captioner", "classify"), ("blip", "classify"), ("blip", "rank")]


def build(kind: str = "blip", *, seed: int = 0, **options) -> Vqa:
    description = describe(backbone(kind, TOKENIZER))
    torch.manual_seed(seed)
    return Vqa(**({"backbone": description, "optimizer": OPTIMIZER} | options))


def make_batch(seed: int = 0) -> Any:
    """Every question about every colour; most people agree."""
    generator = torch.Generator().manual_seed(seed)
    images, questions, answers = [], [], []
    for name, colour in COLOURS.items():
        right = (name, "yes" if name == "red" else "no", "no" if name == "white" else "yes")
        for question, answer in zip(QUESTIONS, right, strict=True):
            flat = torch.tensor(colour, dtype=torch.uint8)[:, None, None].expand(-1, 32, 32)
            images.append(flat + torch.randint(0, 5, flat.shape, generator=generator, dtype=torch.uint8))
            questions.append(question)
            answers.append([answer] * 8 + ["a house", "Red "])
    return {"images": torch.stack(images), "captions": questions, "columns": {"answers": answers}}


def fit(model: Vqa, steps: int, **options) -> L.Trainer:
    model.prepare_table(pa.table(make_batch()["columns"]))
    return train(model.train(), steps, make_batch, gradient_clip_val=1.0, **options)


@torch.no_grad()
def loss(model: Vqa) -> float:
    return float(model.eval().losses(make_batch(99))["vqa"])


@pytest.mark.parametrize("objectives", [["itc", "itm"], ["lm"]])
def test_all_of_a_backbone_trains_whatever_it_was_trained_for(tmp_path, objectives):
    """What its own objectives do not reach it has frozen; a head's loss may reach it."""
    whole = build(mode="rank", shared_decoder=True)
    own = save(backbone("blip", TOKENIZER, objectives=objectives), tmp_path / "own")
    tuned = build(backbone=own, mode="rank", shared_decoder=True)
    trains = [{name for name, p in model.named_parameters() if p.requires_grad} for model in (whole, tuned)]
    assert trains[0] == trains[1]
    assert any("decoder" in name for name in trains[0])


@pytest.mark.parametrize(("kind", "mode"), WAYS)
def test_it_learns_what_can_be_told(kind, mode):
    """Who sees nothing but the question can get five of nine right."""
    model, batch = build(kind, mode=mode), make_batch(99)
    model.prepare_table(pa.table(batch["columns"]))
    before = loss(model)
    fit(model, 20)
    assert loss(model) < before - 0.1
    fit(model, 160)
    said = model.eval().answer(batch)
    right = [accuracy(answer, people) for answer, people in zip(said, batch["columns"]["answers"], strict=True)]
    assert sum(right) >= 8


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("kind", "mode"), WAYS)
def test_all_that_learns_gets_a_gradient(kind, mode, shared):
    """Else distributed training would need find_unused_parameters."""
    model = build(kind, mode=mode, shared_decoder=shared, answers=["yes", "no"])
    assert model.training
    model.losses(make_batch())["vqa"].backward()
    learns = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learns == {name for name, p in model.named_parameters() if p.grad is not None}
    assert any(name.startswith("backbone.") and "words" in name for name in learns)
    assert (model.decoder is not None) == (mode == "rank" and not shared)


@pytest.mark.parametrize(("kind", "mode"), WAYS)
@torch.no_grad()
def test_its_checkpoint_loads_by_itself_with_its_answers(kind, mode, tmp_path):
    before = save(backbone(kind, TOKENIZER), tmp_path)
    model = build(kind, backbone=before, mode=mode, num_answers=3)
    model.prepare_table(pa.table(make_batch()["columns"]))
    again = load_model(save(model.eval(), tmp_path))
    assert isinstance(again, Vqa)
    assert again.answers == model.answers == ["no", "yes", "red"]
    batch = make_batch()
    assert again.answer(batch) == model.answer(batch)
    torch.testing.assert_close(again.losses(batch), model.losses(batch), rtol=0, atol=0)
    again.prepare_table(pa.table({"answers": [["other"]]}))
    assert again.answers == ["no", "yes", "red"]  # a model that has learned to say them goes on with them


def test_the_vocabulary_is_what_people_said_most():
    given = [["Yes", "yes ", "no"], ["2", "two", "2"], ["no", "a b", "c"]]
    for count, expected in ((2, ["2", "no"]), (3, ["2", "no", "yes"]), (99, ["2", "no", "yes", "a b", "c", "two"])):
        model = build(num_answers=count)
        model.prepare_table(pa.table({"answers": given}))
        assert model.answers == expected
        assert model.hparams["answers"] == expected


def test_soft_targets_are_the_official_score():
    model = build(answers=["yes", "no", "2", "elephant", "two"])
    people = [["yes"] * 3 + ["no"] * 7, ["two"] * 9 + ["2"], ["2"] * 9 + ["3"], ["two"] * 10, ["cat"] * 10, ["Yes"]]
    found = model._targets(people)
    expected = [[accuracy(answer, given) for answer in model.answers] for given in people]
    torch.testing.assert_close(found, torch.tensor(expected))
    assert found[0, :2].tolist() == pytest.approx([0.9, 1.0])
    assert found[3].tolist() == [0, 0, 0, 0, 1]  # of ten who all say the same, that alone
    assert found[4].sum() == 0


@pytest.mark.parametrize("count", [1, 3, 10])
def test_capitals_are_no_answers_of_their_own(count):
    """The vocabulary is in lower case, and so is what is learned of people who write "Yes"."""
    given = {"answers": [["Yes"] * count, ["No"] * count]}
    model = build()
    model.prepare_table(pa.table(given))
    assert model.answers == ["no", "yes"]
    assert model._targets(given["answers"]).tolist() == [[0, 1], [1, 0]]


@torch.no_grad()
def test_the_classifiers_loss_is_summed_over_the_answers():
    model, batch = build(answers=["yes", "no", "red"]).eval(), make_batch()
    scores, targets = model._scores(batch), model._targets(batch["columns"]["answers"])
    p = scores.sigmoid()
    by_hand = -(targets * p.log() + (1 - targets) * (1 - p).log()).sum(1).mean()
    assert float(model.losses(batch)["vqa"]) == pytest.approx(float(by_hand), rel=1e-5)


@torch.no_grad()
def test_the_decoder_learns_each_answer_by_its_share():
    """Written out question by question: BLIP's weights are the shares of the people who gave the answer."""
    model = build(mode="rank", answers=["yes"]).eval()
    batch = make_batch()
    blip, decoder = model.backbone, model.decoder
    assert isinstance(blip, Blip)
    assert decoder is not None
    total = 0.0
    for i, given in enumerate(batch["columns"]["answers"]):
        states, mask = blip.question(batch["images"][i : i + 1], batch["captions"][i : i + 1])
        for answer in given:
            tokens = blip._tokenize([answer.strip()], blip.tokenizer.dec)
            total += float(answer_nll(decoder, tokens, states, mask, label_smoothing=0.1)) / len(given)
    assert float(model.losses(batch)["vqa"]) == pytest.approx(total / 9, rel=1e-4)


@torch.no_grad()
def test_blip_ranks_by_likelihood():
    torch.manual_seed(0)
    model, batch = backbone("blip", TOKENIZER).eval(), make_batch()
    assert isinstance(model, Blip)
    for parameter in model.encoders.text.parameters():
        parameter.add_(0.5 * torch.randn(parameter.shape))
    answers = ["yes", "no", "red", "not coloured", "white or blue", "is it"]
    states, mask = model.question(batch["images"], batch["captions"])
    nll = {
        answer: answer_nll(model.answer_decoder, model._tokenize([answer] * 9, model.tokenizer.dec), states, mask)
        for answer in answers
    }
    while answers:  # the best, then the best of the others, ...
        found = model.rank_answers(batch["images"], batch["captions"], answers)
        assert found == [min(answers, key=lambda answer: float(nll[answer][i])) for i in range(9)]
        one = model.rank_answers(batch["images"][4:5], batch["captions"][4:5], answers)
        assert one == found[4:5]  # in any company
        answers.remove(found[0])


def test_errors_name_the_key(monkeypatch):
    monkeypatch.delattr(Clip, "joint")
    clip = describe(Clip(tokenizer=TOKENIZER, image=IMAGE, text=TEXT, optimizer={"lr": 1e-3}))
    wide = describe(backbone("blip", TOKENIZER, text={**TEXT, "width": 8}))
    cases: list[tuple[dict[str, Any], str]] = [
        ({"mode": "guess"}, "mode='guess'; choose from classify, rank"),
        ({"kind": "vilt", "mode": "rank"}, "mode=rank: Vilt writes no answers; take a blip, or mode=classify"),
        ({"backbone": clip}, "backbone: Clip has no joint feature"),
        ({"backbone": wide, "mode": "rank", "answers": ["a"]}, r"text\.width=8 must be the width .* 16"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            build(**options)
    for mode in ("classify", "rank"):
        model = build(mode=mode)
        for ask in (model.answer, model.losses):
            with pytest.raises(ValueError, match=r"no answers to choose from: give answers=\.\.\."):
                ask(make_batch())
        with pytest.raises(ValueError, match="the training pairs have no answers"):
            model.prepare_table(pa.table({"answers": [[], []]}))


def test_ranking_cannot_have_its_weights_divided():
    """Its decoder runs once for each length of a process's questions: the others would wait for ever."""
    model = build("blip", mode="rank")
    model._device_mesh = object()  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValueError, match=r"model\.mode=rank cannot have its weights divided \(trainer=fsdp\)"):
        model.configure_model()


def test_a_backbone_without_pictures_of_its_own_cannot_be_changed():
    head = describe(build("blip", answers=["a", "b"]))
    with pytest.raises(ValueError, match="a Vqa has no image encoder of its own to change"):
        build("blip", backbone=head, image={"image_size": 64})
