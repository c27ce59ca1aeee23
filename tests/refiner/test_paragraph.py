"""A tiny random BLIP, as others save it, describes pictures: batched, once, and after a kill from where it was."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessor,
)
from transformers.utils import logging

from tldr.ledger import Ledger
from tldr.pairs import DIGEST, Pairs
from tldr.refiner.base import GENERATED, ORIGINAL
from tldr.refiner.paragraph import Paragraph

CONF = Path(__file__).parents[2] / "conf" / "refiner"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[DEC]", "<image>"]
WORDS = [*SPECIAL, *"a an the picture of red blue green box star disc on left right big describe it user".split()]
TEXT: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
VISION: dict[str, Any] = {**TEXT, "image_size": 16, "patch_size": 8}
SIZE = {"height": 16, "width": 16}
MARKS = {"bos_token_id": 4, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
TEMPLATE = (
    "{% for m in messages %}user {% for c in m['content'] %}{% if c['type'] == 'image' %}<image> "
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}"
)


@pytest.fixture(scope="module", autouse=True)
def _quiet():
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    yield
    logging.set_verbosity(level)


def tokenizer() -> PreTrainedTokenizerFast:
    hub = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    hub.normalizer = normalizers.BertNormalizer(lowercase=True)
    hub.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    hub.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    more: Any = ["[DEC]", "<image>"]
    return PreTrainedTokenizerFast(tokenizer_object=hub, **special, additional_special_tokens=more)


def spread(model: Any) -> Any:
    """Weights so large that pictures show in what is written."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:  # norms stay as they are
                parameter.copy_(0.6 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture(scope="module")
def blip(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("blip")
    text = {**TEXT, "vocab_size": len(WORDS), "max_position_embeddings": 64, "is_decoder": True, **MARKS}
    config = BlipConfig(text_config={**text, "encoder_hidden_size": 16}, vision_config=VISION)
    spread(BlipForConditionalGeneration(config)).save_pretrained(folder)
    BlipProcessor(BlipImageProcessor(size=SIZE), tokenizer()).save_pretrained(folder)
    return folder


@pytest.fixture
def subset(tmp_path) -> Pairs:
    """Ten pairs of nine pictures."""
    (tmp_path / "img").mkdir()
    colours = np.random.default_rng(0).integers(0, 256, (9, 3))
    for i, colour in enumerate(colours.tolist()):
        Image.new("RGB", (20, 20), tuple(colour)).save(tmp_path / "img" / f"{i}.png")
    columns = {"uid": [f"u{i}" for i in range(10)], "image": [f"img/{min(i, 8)}.png" for i in range(10)]}
    captions = [f"caption {i} " for i in range(10)]
    return Pairs.build({**columns, "caption": captions}, root=str(tmp_path), provenance={"pool": "abc"})


@pytest.fixture
def make(blip, tmp_path):
    """A refiner of `blip`, as conf/refiner/paragraph.yaml makes it but for what is given."""

    def build(**given: Any) -> Paragraph:
        config: Any = OmegaConf.to_container(OmegaConf.load(CONF / "paragraph.yaml"), resolve=True)
        small = {"checkpoint": str(blip), "folder": tmp_path / "kept", "max_new_tokens": 6}
        assert config.pop("_target_").endswith("Paragraph")
        return Paragraph(**{**config, **small, "rows_per_part": 4, "batch_size": 3, **given})

    return build


def paragraphs(refined: Pairs) -> list[str]:
    return refined.table[GENERATED].to_pylist()


def test_every_picture_gets_the_text_that_the_checkpoint_writes(make, blip, subset):
    refined = make(mode="replace")(subset, None)
    model: Any = BlipForConditionalGeneration.from_pretrained(blip)
    processor: Any = BlipProcessor.from_pretrained(blip)
    for i in range(10):
        with Image.open(f"{subset.root}/{subset.images[i].as_py()}") as image:
            written = model.generate(**processor(images=image.convert("RGB"), return_tensors="pt"), max_new_tokens=6)
        assert paragraphs(refined)[i] == processor.decode(written[0], skip_special_tokens=True).strip()
    assert len(set(paragraphs(refined)[:9])) > 3, "the pictures show"
    assert refined.captions.to_pylist() == paragraphs(refined)


def test_pairs_stay_the_same_pairs(make, subset):
    refined = make()(subset, None)
    assert refined.uids.equals(subset.uids)
    assert refined.images.equals(subset.images)
    assert (refined.root, refined.provenance) == (subset.root, subset.provenance)
    assert refined.table[ORIGINAL].to_pylist() == subset.captions.to_pylist()
    joined = [f"caption {i}; {text}" for i, text in enumerate(paragraphs(refined))]
    assert refined.captions.to_pylist() == joined


def test_the_best_is_what_the_judge_prefers(make, subset):
    class Judge:
        def write(self, pairs: Pairs) -> list[str]:
            raise AssertionError("it only judges")

        def align(self, pairs: Pairs, scorer: str = "") -> np.ndarray:
            own = np.array([text.startswith("caption") for text in pairs.captions.to_pylist()])
            return np.where(own, 0.0, np.arange(len(pairs)))

    refiner = make(mode="best", margin=4.0)
    assert refiner.needs_writer
    assert not make().needs_writer
    refined = refiner(subset, Judge())
    assert refined.captions.to_pylist() == subset.captions.to_pylist()[:5] + paragraphs(refined)[5:]


def test_the_prompt_is_asked_and_no_part_of_the_text(make, subset):
    bare, asked = (paragraphs(make(prompt=prompt)(subset, None)) for prompt in ("", " A picture of "))
    assert asked != bare
    assert not any(text.startswith("a picture of") for text in asked)
    assert {len(text.split()) for text in asked} <= set(range(7))


def test_a_picture_is_described_once(make, subset, monkeypatch):
    refiner, seen = make(), []
    describe = refiner.captioner.describe
    monkeypatch.setattr(
        refiner.captioner, "describe", lambda images, _: seen.append(len(images)) or describe(images, _)
    )
    first = refiner(subset, None)
    assert seen == [3, 1, 3, 1, 1]  # nine pictures in parts of 4 and batches of 3
    assert refiner(subset, None).table.equals(first.table)
    other = subset.take(np.arange(3, 10), provenance=subset.provenance)  # of the same pool
    assert paragraphs(refiner(other, None)) == paragraphs(first)[3:]
    assert sum(seen) == 9, "all of that was in the cache"


def test_a_killed_run_goes_on(make, subset, monkeypatch, tmp_path):
    whole = make(folder=tmp_path / "undisturbed")(subset, None)
    killed, calls = make(), []
    describe = killed.captioner.describe

    def die(images: list[Any], device: str) -> list[str]:
        calls.append(len(images))
        if len(calls) == 4:  # in the second part
            raise KeyboardInterrupt
        return describe(images, device)

    monkeypatch.setattr(killed.captioner, "describe", die)
    with pytest.raises(KeyboardInterrupt):
        killed(subset, None)
    again, seen = make(), []
    describe = again.captioner.describe
    monkeypatch.setattr(again.captioner, "describe", lambda images, _: seen.append(len(images)) or describe(images, _))
    assert again(subset, None).table.equals(whole.table)
    assert sum(seen) == 9 - 4, "the first part was there"
    files = [sorted(folder.rglob("*.parquet")) for folder in (tmp_path / "kept", tmp_path / "undisturbed")]
    assert [file.read_bytes() for file in files[0]] == [file.read_bytes() for file in files[1]]


def test_a_part_that_was_removed_costs_no_other(make, subset, tmp_path):
    whole = make()(subset, None)
    parts = sorted((tmp_path / "kept").rglob("part-*.parquet"))
    assert len(parts) == 3
    last = parts[-1].read_bytes()
    parts[0].unlink()
    assert make()(subset, None).table.equals(whole.table)
    assert parts[-1].read_bytes() == last
    assert sorted((tmp_path / "kept").rglob("part-*.parquet")) == [*parts[1:], parts[0].with_stem("part-00003")]


def test_what_is_drawn_depends_on_the_seed_alone(make, subset, tmp_path):
    options = {"generation": {"do_sample": True}}
    state = torch.get_rng_state()
    first, second, other = (
        paragraphs(make(**options, folder=tmp_path / name, seed=seed)(subset, None))
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first == second != other
    half = subset.take(np.arange(4), provenance=subset.provenance)  # a part of its own
    filled = make(**options, folder=tmp_path / "d")
    filled(half, None)
    assert paragraphs(filled(subset, None)) == first, "what was drawn for others before changes nothing"
    assert torch.equal(torch.get_rng_state(), state)


def test_what_describing_took_is_told_also_when_it_is_found(make, subset):
    ledger = Ledger()
    for rows in (np.arange(10), np.arange(10), np.arange(2)):
        with ledger.stage("refine"):
            make()(subset.take(rows, provenance=subset.provenance), None)
    wrote, found, part = ledger.stages
    assert wrote.flops > 0 == wrote.found_flops
    assert (found.flops, found.found_flops) == (0, pytest.approx(wrote.flops))
    assert 0 < part.found_flops < found.found_flops  # of two pictures among nine


def test_other_settings_are_other_texts(make, subset):
    refiner = make()
    refiner(subset, None)
    make(max_new_tokens=3)(subset, None)
    assert len(list(refiner.folder.iterdir())) == 2


def test_a_picture_is_known_by_its_bytes_in_any_pool(make, subset, tmp_path):
    known = subset.with_column(DIGEST, [f"{min(i, 8):032x}" for i in range(10)])
    first = make()(known, None)
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path / "img", moved / "img")
    refiner = make(batch_size=1)
    refiner.captioner.describe = None  # pyright: ignore[reportAttributeAccessIssue]  (nothing is left to describe)
    there = Pairs.build({name: known.table[name].to_pylist() for name in known.table.column_names}, root=str(moved))
    assert paragraphs(refiner(there, None)) == paragraphs(first)


def test_a_chat_model_is_asked(make, subset, tmp_path):
    llava = tmp_path / "llava"
    vision = CLIPVisionConfig(**{**VISION, "num_hidden_layers": 2}, projection_dim=16)
    text = LlamaConfig(**TEXT, vocab_size=len(WORDS), max_position_embeddings=64, bos_token_id=2, eos_token_id=3)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=5)
    spread(LlavaForConditionalGeneration(config)).save_pretrained(llava)
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=SIZE)
    options = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    LlavaProcessor(images, tokenizer(), chat_template=TEMPLATE, **options).save_pretrained(llava)
    with pytest.raises(ValueError, match=r"refiner\.prompt="):
        make(checkpoint=str(llava))(subset, None)
    refined = make(checkpoint=str(llava), prompt="describe it")(subset, None)
    texts = paragraphs(refined)
    assert len(set(texts[:9])) > 1, "the pictures show"
    assert texts[8] == texts[9]
    model: Any = LlavaForConditionalGeneration.from_pretrained(llava)
    processor: Any = LlavaProcessor.from_pretrained(llava)
    for i in range(9):
        with Image.open(f"{subset.root}/img/{i}.png") as image:
            inputs = processor(images=image, text="user <image> describe it", return_tensors="pt")
        written = model.generate(**inputs, max_new_tokens=6)[0, inputs["input_ids"].shape[1] :]
        assert texts[i] == processor.decode(written, skip_special_tokens=True).strip()


def test_a_vision_encoder_and_a_decoder_saved_apart(make, subset, tmp_path):
    folder = tmp_path / "pair"
    decoder = BertConfig(**TEXT, vocab_size=len(WORDS), is_decoder=True, add_cross_attention=True)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(**VISION), decoder)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 2, 0, 3
    spread(VisionEncoderDecoderModel(config=config)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    ViTImageProcessor(size=SIZE).save_pretrained(folder)
    texts = paragraphs(make(checkpoint=str(folder))(subset, None))
    assert len(set(texts[:9])) > 1
    with pytest.raises(ValueError, match=r"leave refiner\.prompt empty"):
        make(checkpoint=str(folder), prompt="a picture")(subset, None)


def test_a_wrong_checkpoint_is_refused_at_once(make, tmp_path):
    with pytest.raises(ValueError, match=r"refiner\.checkpoint=<folder"):
        make(checkpoint=None)
    with pytest.raises(ValueError, match=r"refiner.checkpoint=\S+nowhere is neither a folder"):
        make(checkpoint=str(tmp_path / "nowhere"))
    BertConfig(**TEXT).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="is a bert, which writes no text about pictures"):
        make(checkpoint=str(tmp_path / "bert"))


@pytest.mark.parametrize("wrong", [{"mode": "both"}, {"dtype": "int8"}, {"batch_size": 0}, {"max_new_tokens": 0}])
def test_wrong_settings_are_refused(make, wrong):
    with pytest.raises(ValueError, match=f"refiner.{next(iter(wrong))}="):
        make(**wrong)


def test_an_unreadable_picture_names_its_pair(make, subset, tmp_path):
    (tmp_path / "img" / "4.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"pair u4: .*verify=decode"):
        make()(subset, None)


def test_the_run_gives_the_folder(blip):
    config = OmegaConf.create({"cache": "elsewhere", "refiner": OmegaConf.load(CONF / "paragraph.yaml")})
    assert instantiate(config.refiner, checkpoint=str(blip)).folder == Path("elsewhere/paragraphs")
