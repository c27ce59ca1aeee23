"""The commands a user types, as the README has them, from a pool to numbers."""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from tldr.pairs import Pairs

ROOT = Path(__file__).parents[2]


def blocks(text: str) -> list[str]:
    """The lines of a Markdown text's bash blocks, without comments."""
    lines = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.S)).splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.strip()]


README = blocks((ROOT / "README.md").read_text())


@pytest.fixture
def own_data(project: Path) -> None:
    """What the README's reader has: pictures and captions in each of the formats it shows."""
    (project / "img").mkdir()
    (project / "pictures").mkdir()
    records, lines = [], []
    for i in range(64):
        picture = Image.new("RGB", (48, 40), (4 * i, 255 - 4 * i, 100))
        picture.save(project / "img" / f"{i}.jpg")
        picture.save(project / "pictures" / f"{i}.jpg")
        caption = f"a plain picture of colour number {i}"
        (project / "pictures" / f"{i}.txt").write_text(caption)
        records.append({"image": f"{i}.jpg", "caption": [caption, f"colour {i}"] if i % 2 else caption})
        lines.append(f"{caption}\t{i}.jpg\n")
    (project / "tars").mkdir()
    with tarfile.open(project / "tars" / "00000.tar", "w") as shard:
        for file in sorted((project / "pictures").iterdir()):
            shard.add(file, file.name)
    (project / "a.json").write_text(json.dumps(records))
    (project / "captions.tsv").write_text("".join(lines))


@pytest.mark.usefixtures("own_data")
def test_every_command_of_the_readme_runs(command, project):
    make, python = (
        [line for line in README if line.startswith("make")],
        [line for line in README if line.startswith("python")],
    )
    assert set(make + python) == set(README), "a command of a kind that this test does not know"
    rules = re.findall(r"(?m)^([a-z]+):", (ROOT / "Makefile").read_text())
    assert {line.split()[1] for line in make} <= set(rules)
    for line in python:
        if "=UID" in line:  # one of those that the first command told of
            uid = pq.read_table(project / "outputs" / "shapes" / "tldr-c0.75-s0" / "decisions.parquet")["uid"][0]
            line = line.replace("=UID", f"={uid}")
        said = command(f"{line} logger=none")
        assert ("percentile" if "explain=" in line else "wrote") in said
    left = [path.name for path in (project / "outputs" / "shapes" / "tldr-c0.75-s0").iterdir()]
    table = re.findall(r"(?m)^\| (`.*?`) \|", (ROOT / "README.md").read_text())
    told = [name for cell in table for name in re.findall(r"`([\w.]+)`", cell)]
    assert told
    assert set(told) <= set(left), "the README names a file that the run does not leave"


def test_a_sweep_leaves_its_subsets_in_one_group_and_extracts_once(command, project):
    said = command("python select.py -m selector=tldr,random compression=0.5,0.75,0.9")
    folders = sorted((project / "outputs" / "shapes").iterdir())
    assert [f.name for f in folders] == sorted(
        f"{name}-c{share}-s0" for name in ("tldr", "random") for share in (0.5, 0.75, 0.9)
    )
    assert [len(Pairs.open(folder)) for folder in folders] == [160, 80, 32] * 2
    assert said.count("no checkpoint given") == 1
    assert said.count("reading shapes: 0 pairs") == said.count("verifying images:   0%") == 1
    assert said.count("320 pairs read") == 6
    assert all((folder / "quarantine.parquet").is_file() for folder in folders)
    signals = list((project / "outputs" / "cache" / "signals").glob("*/*/part-*"))
    assert len(signals) == 1
    ledgers = [json.loads((folder / "ledger.json").read_text()) for folder in folders if folder.name.startswith("tldr")]
    fresh = [stage for ledger in ledgers for stage in ledger if stage["name"] == "signals" and not stage["cached"]]
    assert len(fresh) == 1
    runs = list((project / "outputs").rglob("run-*.wandb"))
    assert len(runs) == 6
    assert all(b"shapes" in run.read_bytes() and b"select" in run.read_bytes() for run in runs)


def test_seeds_share_the_scorers_where_these_have_a_seed_of_their_own(command, project):
    said = command("python select.py -m seed=0,1 training.seed=7 compression=0.5,0.9 logger=none report=false")
    assert said.count("no checkpoint given") == 1
    assert len(list((project / "outputs" / "cache" / "signals").glob("*/*/part-*"))) == 1
    assert command("python select.py seed=7 logger=none report=false").count("no checkpoint given") == 0


def test_a_compression_that_is_none_is_refused_before_the_pool_is_read(command):
    for wrong, told in {"75": "75", "75%": "'75%'", "null": "None", "0": "0"}.items():
        said = command(f"python select.py compression={wrong} logger=none", fails=True)
        assert f"compression={told}: it is the share removed, inside (0, 1)" in said
        assert "reading shapes" not in said


def test_a_sweep_into_one_folder_is_refused(command, project):
    said = command("python select.py -m selector=random compression=0.5,0.9 out=here logger=none", fails=True)
    assert "holds another selection" in said
    assert len(Pairs.open(project / "here")) == 160  # the first stays


def test_what_changes_the_pairs_does_not_replace_a_finished_selection(command, project):
    line = "python select.py selector=tldr out=here logger=none report=false"
    command(line)
    before = (project / "here" / "pairs.arrow").stat().st_mtime_ns
    for change in ("training.max_steps=9", "model.quantizer.codebook_size=16", "verify=exists", "selector.dim=8"):
        said = command(f"{line} {change}", fails=True)
        key = change.partition("=")[0]
        assert "holds another selection" in said
        assert f"({key}=" in said, said[-500:]
    assert (project / "here" / "pairs.arrow").stat().st_mtime_ns == before
    command(f"{line} num_workers=1 training.checkpoint_every=7 device=cpu")


def test_a_subset_is_bit_for_bit_the_same_again(command, project):
    for out in ("one", "two"):
        command(f"python select.py compression=0.75 refiner=best out={out} logger=none", anew=True)
    assert (project / "one" / "pairs.arrow").read_bytes() == (project / "two" / "pairs.arrow").read_bytes()
    assert (project / "one" / "decisions.parquet").read_bytes() == (project / "two" / "decisions.parquet").read_bytes()
    refined = Pairs.open(project / "one")
    assert "caption_original" in refined.table.column_names
    # The second finds what the first has written, and says what that took.
    wrote, found = (
        next(stage for stage in json.loads((project / out / "ledger.json").read_text()) if stage["name"] == "refine")
        for out in ("one", "two")
    )
    assert wrote["found_flops"] == 0 < found["found_flops"]
    assert found["flops"] < wrote["flops"] == wrote["made_flops"] == pytest.approx(found["made_flops"])
    assert found["made_seconds"] > found["found_seconds"] > 0


def test_another_override_gets_another_folder(command, project):
    command("python select.py selector.novelty=0 selector.dim=32 logger=none report=false")
    folder = project / "outputs" / "shapes" / "tldr-c0.75-s0" / "selector.dim-32__selector.novelty-0"
    assert len(Pairs.open(folder)) == 80


def test_a_scorer_that_lacks_what_the_selector_needs_is_named(command):
    command("python train.py model=clip out=clip logger=none")
    said = command("python select.py checkpoint=clip logger=none", fails=True)
    assert "codes" in said
    assert "selector.feature" in said
    said = command("python select.py checkpoint=clip selector.feature=embedding logger=none")
    assert "kept 80 of 320" in said
    said = command("python select.py checkpoint=clip selector=random refiner=append logger=none out=x", fails=True)
    assert "refiner=none" in said


def test_what_is_not_trained_on_is_refused(command, project):
    command("python select.py selector=random logger=none report=false")
    line = "python train.py model=clip pairs=outputs/shapes/random-c0.75-s0 logger=none out=clip"
    said = command(f"{line} data=json data.name=mine", fails=True)
    assert "data=json data.name=mine would be ignored, as pairs=outputs/shapes/random-c0.75-s0" in said
    command(line)
    told = json.loads((project / "clip" / "provenance.json").read_text())
    assert told["count"] == 80
    assert told["subset"]["data"] == "shapes"
    assert told["config"]["data"] is None  # it does not say of which pictures the embedded data would be


def test_two_processes_train_together(command, project):
    given = "trainer=ddp trainer.accelerator=cpu trainer.devices=2 batch_size=16"
    said = command(f"python train.py model=blip out=both {given}")
    assert "GLOBAL_RANK: 1, MEMBER: 2/2" in said  # Lightning has begun it, by the same command
    assert said.count("wrote both/model.ckpt") == 1
    assert len(list((project / "both").rglob("run-*.wandb"))) == 1
    assert "retrieval/tr@1" in command("python evaluate.py checkpoint=both evaluator=retrieval logger=none")


def test_real_photographs_from_a_pool_to_numbers(command, project, test_data):
    root = test_data / "flickr8k"
    command(f"python select.py data=flickr8k data.root={root} selector=tldr compression=0.75 out=flickr8k logger=none")
    subset = Pairs.open(project / "flickr8k")
    assert len(subset) == 881
    decisions = pq.read_table(project / "flickr8k" / "decisions.parquet")
    assert decisions.num_rows == 3525
    assert {"uid", "kept", "reason", "cluster", "alignment"} <= set(decisions.column_names)
    kept = decisions.filter(decisions["kept"])
    assert kept["uid"].to_pylist() == subset.uids.to_pylist()
    assert all(decisions["reason"].to_pylist())
    exported = json.loads((project / "flickr8k" / "annotations.json").read_text())
    assert [pair["uid"] for pair in exported] == subset.uids.to_pylist()
    provenance = json.loads((project / "flickr8k" / "provenance.json").read_text())
    assert provenance["config"]["compression"] == 0.75
    command("python train.py model=blip pairs=flickr8k batch_size=64 max_steps=3 logger=none")
    said = command(
        "python evaluate.py checkpoint=flickr8k/blip-s0/batch_size-64__max_steps-3 pairs=flickr8k logger=none"
    )
    assert "retrieval/tr@1" in said


def test_broken_photographs_are_quarantined_exactly(command, project, test_data):
    """30 files cut short, 5 missing, 5 that are no pictures, 3 captions that are no UTF-8."""
    root = project / "broken"
    (root / "images").mkdir(parents=True)
    source = test_data / "flickr8k"
    names = sorted(path.name for path in (source / "images").iterdir())
    for i, name in enumerate(names):
        data = (source / "images" / name).read_bytes()
        data = data[: len(data) // 2] if i < 30 else b"<html>404</html>" * 50 if i >= 35 and i < 40 else data
        if not 30 <= i < 35:
            (root / "images" / name).write_bytes(data)
    lines = (source / "captions.txt").read_bytes().splitlines(keepends=True)
    good = [k for k, line in enumerate(lines) if k and line.split(b",")[0].decode() in names[100:]]
    for k in good[:3]:
        lines[k] = lines[k].rstrip(b"\r\n") + b" caf\xe9\n"
    (root / "captions.txt").write_bytes(b"".join(lines))

    reduce = f"python select.py data=flickr8k data.root={root} selector=random logger=none"
    said = command(f"{reduce} out=kept")
    assert "3525 pairs read, 3322 in the pool, 203 quarantined" in said
    quarantine = pq.read_table(project / "kept" / "quarantine.parquet")
    stages = quarantine["stage"].to_pylist()
    assert (stages.count("image"), stages.count("caption")) == (200, 3)
    assert {
        image.split("/")[-1]
        for image, stage in zip(quarantine["image"].to_pylist(), stages, strict=True)
        if stage == "image"
    } == set(names[:40])
    assert len(Pairs.open(project / "kept")) == round(3322 / 4)

    said = command(f"{reduce} out=strict max_bad_fraction=0.001", fails=True)
    assert "max_bad_fraction" in said
    assert "203" in said
    assert not (project / "strict" / "pairs.arrow").exists()
    assert pq.read_table(project / "strict" / "quarantine.parquet").num_rows == 203

    command("python train.py model=vqvlm max_steps=6 out=scorer logger=none")
    said = command(f"{reduce} selector=tldr checkpoint=scorer verify=exists out=late".replace("selector=random ", ""))
    assert "3525 pairs read, 3497 in the pool, 28 quarantined" in said  # 5 missing files of 5 pairs, 3 captions
    assert "175 more pairs quarantined" in said
    late = pq.read_table(project / "late" / "quarantine.parquet")
    assert sorted(late["uid"].to_pylist()) == sorted(quarantine["uid"].to_pylist())
    assert late["stage"].to_pylist().count("signals") == 175
    assert len(Pairs.open(project / "late")) == round(3322 / 4)
    assert pq.read_table(project / "late" / "decisions.parquet").num_rows == 3322

    said = command(f"{reduce} refiner=append checkpoint=scorer verify=exists out=torn", fails=True)
    told, _, failed = said.partition("writing captions")
    assert "verify=exists: a picture that cannot be decoded will stop the writing of captions" in told
    assert "reduce the data again with verify=decode" in failed
