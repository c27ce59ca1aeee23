import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tldr.engine import Local, Ray
from tldr.ledger import Ledger, Stage
from tldr.model.base import load_model
from tldr.pairs import Pairs
from tldr.signal.extract import fingerprint
from tldr.signal.store import PART_ROWS
from tldr.tasks.scorer import score
from tldr.tasks.spread import PortableModel, PortablePairs
from tldr.tasks.writer import CaptionWriter

COUNT = PART_ROWS + 100  # two parts
CPU = torch.device("cpu")
GENERATION = {"strategy": "nucleus", "top_p": 0.9, "max_length": 6}


@pytest.fixture(scope="module")
def pairs(tiny_pool) -> Pairs:
    """More of them, of the same pictures."""
    rows = np.arange(COUNT) % len(tiny_pool)
    columns = tiny_pool.table.select(["image", "caption"]).take(rows).to_pydict()
    return Pairs.build({"uid": [f"{row:06}" for row in range(COUNT)], **columns}, root=tiny_pool.root)


@pytest.fixture(scope="module")
def alone(pairs, tiny_checkpoint, tmp_path_factory) -> tuple[Path, list[str], np.ndarray]:
    """The cache, the captions and their alignments as this process alone makes them."""
    home = tmp_path_factory.mktemp("alone")
    return home, *computed(pairs, tiny_checkpoint, home, Local())


def computed(pairs: Pairs, checkpoint: Path, home: Path, engine) -> tuple[list[str], np.ndarray]:
    """All that models do with a pool."""
    model = load_model(checkpoint)
    ledger = Ledger()
    options: dict[str, Any] = {"engine": engine, "device": CPU, "cache": home, "batch_size": 256, "num_workers": 0}
    signals = score(pairs, model, ledger=ledger, **options)
    assert len(signals["alignment"]) == COUNT
    (stage,) = ledger.stages
    assert (stage.images, stage.devices, stage.cached) == (COUNT, 0, False)
    assert stage.flops > 1e6 * COUNT / 100
    writer = CaptionWriter({"": model}, seed=3, generation=GENERATION, **options)
    captions = writer.write(pairs)
    return captions, writer.align(pairs.with_column("caption", captions))


def files(home: Path) -> dict[str, bytes]:
    """What was left, without what it took."""
    found = {file.relative_to(home).as_posix(): file for file in sorted(home.rglob("*.npy"))}
    return {name: file.read_bytes() for name, file in found.items()}


def writer_of(checkpoint: Path, home: Path, engine=None, **options) -> CaptionWriter:
    rest: dict[str, Any] = {"batch_size": 256, "num_workers": 0, "seed": 3, "generation": GENERATION, **options}
    return CaptionWriter({"": load_model(checkpoint)}, cache=home, engine=engine or Local(), device=CPU, **rest)


@pytest.mark.parametrize("engine", [Local(2), Ray(address="local", workers=2)], ids=["processes", "ray"])
def test_several_find_what_one_does(pairs, tiny_checkpoint, tmp_path, alone, engine):
    home, captions, alignments = alone
    found, aligned = computed(pairs, tiny_checkpoint, tmp_path, engine)
    assert files(tmp_path) == files(home)
    assert found == captions
    assert np.array_equal(aligned, alignments)
    assert len(set(captions)) > 20


def test_captions_that_were_written_are_found(pairs, tiny_checkpoint, alone):
    home, captions, _ = alone
    writer, stage = writer_of(tiny_checkpoint, home), Stage("refine")
    assert writer.write(pairs) == captions
    writer.charge(stage)
    assert (stage.flops, stage.devices) == (0, 0)
    assert stage.found_flops > 0
    assert stage.found_seconds > 0


def test_writing_that_was_killed_goes_on(pairs, tiny_checkpoint, tmp_path, alone, monkeypatch):
    _, captions, _ = alone
    writer = writer_of(tiny_checkpoint, tmp_path)
    model: Any = writer.scorers[""]
    generate, batches = model.generate, []

    def dying(images, **options):
        batches.append(len(images))
        if sum(batches) > PART_ROWS:
            raise KeyboardInterrupt
        return generate(images, **options)

    monkeypatch.setattr(model, "generate", dying)
    with pytest.raises(KeyboardInterrupt):
        writer.write(pairs)
    (first,) = tmp_path.rglob("part-*.parquet")
    assert pq.read_metadata(first).num_rows == PART_ROWS

    again, stage = writer_of(tiny_checkpoint, tmp_path), Stage("refine")
    assert again.write(pairs) == captions
    again.charge(stage)
    cost = json.loads((pq.read_schema(first).metadata or {})[b"cost"])
    assert stage.found_flops == cost["flops"]
    assert stage.flops == pytest.approx(cost["flops"] * 100 / PART_ROWS, rel=0.2)


def test_scoring_that_was_killed_goes_on(pairs, tiny_checkpoint, tmp_path, alone, monkeypatch):
    """And the ledger has what the signals took in all."""
    home, _, _ = alone
    model: Any = load_model(tiny_checkpoint)
    say, rows = model.signals, []

    def dying(batch):
        rows.extend(batch["captions"])
        if len(rows) > PART_ROWS:
            raise KeyboardInterrupt
        return say(batch)

    options: dict[str, Any] = {"cache": tmp_path, "engine": Local(), "device": CPU, "batch_size": 256, "num_workers": 0}
    monkeypatch.setattr(model, "signals", dying)
    with pytest.raises(KeyboardInterrupt):
        score(pairs, model, ledger=Ledger(), **options)
    monkeypatch.undo()
    (first,) = tmp_path.rglob("part-*/cost.json")
    ledger, cost = Ledger(), json.loads(first.read_text())
    signals = score(pairs, model, ledger=ledger, **options)
    assert files(tmp_path) == files(home)
    (stage,) = ledger.stages
    assert (stage.images, stage.found_seconds, stage.found_flops) == (100, cost["seconds"], cost["flops"])
    assert stage.flops == pytest.approx(cost["flops"] * 100 / PART_ROWS, rel=0.2)
    made = json.loads((signals.folder / "cost.json").read_text())
    assert made == {"seconds": stage.seconds + cost["seconds"], "flops": stage.flops + cost["flops"]}


def test_draws_seeds_and_parts_differ(pairs, tiny_checkpoint, tmp_path, alone):
    _, captions, _ = alone
    few = pairs.take(np.arange(200))
    drawn = [
        writer_of(tiny_checkpoint, tmp_path).write(few),
        writer_of(tiny_checkpoint, tmp_path).write(few, draw=1),
        writer_of(tiny_checkpoint, tmp_path, seed=4).write(few),
    ]
    assert all(a != b for i, a in enumerate(drawn) for b in drawn[:i])
    tail = pairs.take(np.arange(PART_ROWS, COUNT))
    assert writer_of(tiny_checkpoint, tmp_path).write(tail) != captions[PART_ROWS:]  # another part's


def test_a_model_arrives_as_it_was(tiny_vqvlm, tiny_pool):
    sent = pickle.loads(pickle.dumps(PortableModel(tiny_vqvlm))).model
    assert not sent.training
    assert fingerprint(sent) == fingerprint(tiny_vqvlm)
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    assert torch.equal(sent.image_encoder(images), tiny_vqvlm.image_encoder(images))


def test_pairs_travel_as_the_name_of_a_file(pairs, tmp_path):
    few = pairs.take(np.arange(300))
    sent = PortablePairs(few, tmp_path)
    with sent.filed():
        parcel = pickle.dumps(sent)
        assert len(parcel) < 1000
        arrived = pickle.loads(parcel).pairs
        assert arrived.table.equals(few.table)
        assert (arrived.hash, arrived.root) == (few.hash, few.root)
    assert list(tmp_path.rglob("pairs.arrow")) == []  # it was theirs alone


def test_the_pools_file_is_taken_if_it_holds_the_same(pairs, tmp_path):
    file = pairs.write(tmp_path / "pools" / pairs.hash)
    before = file.stat().st_mtime_ns
    elsewhere = replace(pairs, root="elsewhere")
    labelled = pairs.with_column("label", np.arange(COUNT))
    for other in (pairs, elsewhere, labelled):
        sent = PortablePairs(other, tmp_path)
        with sent.filed():
            assert (sent.folder == file.parent) is (other is not labelled)
            arrived = pickle.loads(pickle.dumps(sent)).pairs
            assert arrived.root == other.root
            assert arrived.table.equals(other.table)
    assert file.stat().st_mtime_ns == before


def test_an_engine_is_asked_for_the_device_that_was_asked_for(pairs, tiny_vqvlm, tmp_path):
    """Not for the one that a model lies on, which has a number: all GPUs but that one would be idle."""

    class Asked(Local):
        def alone(self, device):
            raise NotImplementedError(str(device))

    options: dict[str, Any] = {"cache": tmp_path, "engine": Asked(), "device": torch.device("cuda")}
    options |= {"batch_size": 256, "num_workers": 0}
    with pytest.raises(NotImplementedError, match=r"^cuda$"):
        score(pairs, tiny_vqvlm, ledger=Ledger(), **options)
    with pytest.raises(NotImplementedError, match=r"^cuda$"):
        CaptionWriter({"": tiny_vqvlm}, seed=0, generation=GENERATION, **options).write(pairs)
