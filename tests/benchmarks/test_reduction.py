"""The harness, tiny: every row it promises is there, and no row is computed twice. What the numbers are, it shows."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from tests.tasks.test_every_selector import FOR_A_TARGET, MAKERS
from tldr.pairs import Pairs
from tldr.selector.base import Selection, Selector

ROOT = Path(__file__).parents[2]
SETTINGS = [
    "data=shapes", "size=240", "eval_images=8", 'overrides.data=["data.image_size=32"]', "models=[clip]",
    'overrides.train=["image_size=32"]', 'overrides.select=["model.image.image_size=32","model.quantizer.after=2"]',
    "scorer_steps=6", "batch_size=16", "budgets.short=4", "budgets.long=null", "budgets.epochs=null",
    "compressions=[0.75]", "seeds=[0,1]", "logger=csv", "out=out", "cache=cache",
]  # fmt: skip
METHODS = ["full", "full_refined", "random", "oracle", "longest", "oracle_longest", "tldr_length_bins", "tldr"]


def test_a_row_for_every_run_and_none_twice(benchmark, tmp_path):
    def reduction(*more: str) -> str:
        return benchmark("reduction", *SETTINGS, *more)

    out = tmp_path / "out"
    assert "16 runs, 16 missing" in reduction("dry=true")
    assert not out.exists()
    said = reduction()
    assert said.count("$ python train.py") == said.count("$ python evaluate.py") == 16
    assert said.count("$ python select.py") == 10  # longest and the oracles take rows of full's pool
    assert said.count(" training.balance=0 ") == 10  # as for the rows that are known

    table = pl.read_parquet(out / "rows.parquet")
    rows = {(row["selector"], row["seed"]): row for row in table.to_dicts()}
    assert sorted(rows) == sorted((method, seed) for method in METHODS for seed in (0, 1))
    for (method, _), row in rows.items():
        assert row["pairs"] == (240 if method.startswith("full") else 60)
        assert row["steps"] == 4
        assert row["score"] == pytest.approx((row["retrieval/tr@1"] + row["retrieval/ir@1"]) / 2)
        assert row["flops_train"] > 0
        assert row["seconds_train"] > 0
    assert rows["oracle", 0]["mismatched"] == rows["oracle", 0]["duplicates"] == 0
    assert rows["full", 0]["mismatched"] == rows["full", 0]["duplicates"] == pytest.approx(0.4)
    assert rows["longest", 0]["words"] == max(row["words"] for row in rows.values())
    assert rows["tldr_length_bins", 0]["words"] == pytest.approx(rows["full", 0]["words"], rel=0.1)
    assert rows["tldr", 0]["flops_scorer"] > 0 == rows["random", 0]["flops_scorer"]
    assert rows["tldr", 0]["hash"] != rows["tldr", 1]["hash"]
    assert len(pl.read_csv(out / "rows.csv")) == 16
    pairs = Pairs.open(next(out.glob("selections/tldr_length_bins-*")))
    assert pairs.provenance["names"]["selector"] == "tldr_length_bins"
    reasons = pq.read_table(next(out.glob("selections/tldr_length_bins-*/decisions.parquet")))["reason"]
    assert reasons[0].as_py().startswith("captions of ")

    told = (out / "results.md").read_text()
    assert told in said
    assert "## clip, budget short (4 steps each), 75% removed" in told
    assert all(f"| {method} | " in told for method in METHODS)
    assert set(json.loads((out / "results.json").read_text())["advice"]["clip short"]) == set(METHODS[2:])
    assert (out / "reduction.png").stat().st_size > 10_000
    assert len(list(out.glob("csv/version_*/metrics.csv"))) == 1
    assert not list(out.glob("runs/*/model.ckpt"))

    lost = next(out.glob("rows/random-c0.75-s1-*.json"))
    before = json.loads(lost.read_text())
    lost.unlink()
    again = reduction()
    assert again.count("$ python train.py") == 1
    assert again.count("$ python select.py") == 0
    assert json.loads(lost.read_text())["retrieval/tr@1"] == before["retrieval/tr@1"]
    assert "16 runs, 0 missing" in (third := reduction())
    assert "$ python" not in third

    (tmp_path / "rows.csv").write_text((out / "rows.csv").read_text())
    elsewhere = reduction("known=[rows.csv]", "out=elsewhere")
    assert "16 runs, 0 missing" in elsewhere
    assert "$ python" not in elsewhere
    assert (tmp_path / "elsewhere" / "results.md").read_text() == (out / "results.md").read_text()
    assert "32 runs, 16 missing" in reduction("known=[rows.csv]", "out=elsewhere", "seeds=[0,1,2,3]", "dry=true")


# ---------------------------------------------------------------- its parts


@pytest.fixture(scope="module")
def parts(module):
    """The benchmark's own modules."""
    yield {name: module(name) for name in ("_command", "_plan", "_controls", "_tables", "reduction")}
    GlobalHydra.instance().clear()


@pytest.fixture
def cfg() -> dict[str, Any]:
    return {
        "data": "shapes", "selectors": ["tldr"], "controls": ["full", "random"], "refined": [],
        "compressions": [0.5, 0.9], "seeds": [0, 1, 2], "batch_size": 128,
        "models": ["clip", {"name": "wide", "model": "clip", "batch_size": 64}],
        "budgets": {"short": 300, "epochs": "2.5 epochs", "long": None}, "score": ["retrieval/tr@1"],
        "against": ["random", "full"], "tolerance": 1.0,
    }  # fmt: skip


def test_data_of_ones_own_are_compared_as_documented(benchmark, tmp_path, tiny_pool):
    """Nothing was planted in them: the control that would have to know it has no row."""
    pairs = list(zip(tiny_pool.images.to_pylist(), tiny_pool.captions.to_pylist(), strict=True))
    for name, some in (("train", pairs[:40]), ("held_out", pairs[40:48])):
        records = [{"image": image, "caption": caption} for image, caption in some]
        (tmp_path / f"{name}.json").write_text(json.dumps(records))
    (tmp_path / "img").symlink_to(tiny_pool.root)
    documented = (ROOT / "docs" / "selectors.md").read_text(encoding="utf-8").split("On data of yours")[1]
    line = documented.partition("benchmarks/reduction.py ")[2].partition("\n\n")[0]
    asked = shlex.split(line.replace("\\\n", " "))
    assert "runs, " in benchmark("reduction", *asked)

    less = ["selectors=[random]", "controls=[full,oracle]", "compressions=[0.5]", "seeds=[0]"]
    said = benchmark("reduction", *SETTINGS[5:], *asked[1:-1], *less, "data=json")
    assert sorted(pl.read_parquet(tmp_path / "out" / "rows.parquet")["selector"]) == ["full", "random"]
    assert "oracle" in said


def test_the_plan_has_every_combination_once(parts, cfg):
    runs = parts["_plan"].plan(cfg, ROOT / "conf")
    names = [str(run) for run in runs]
    assert len(set(names)) == len(names) == 3 * 2 * 2 * (1 + 2 * 2)  # full has no compression
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)
    wide = next(run for run in runs if str(run) == "full-c0-s0-wide-epochs")
    assert wide.budget.of(16_000, wide.learner.batch_size) == 625
    assert runs[0].budget.of(16_000, 128) == 300


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"compressions": [1.0]}, "inside"),
        ({"seeds": []}, "seeds"),
        ({"selectors": ["tlrd"]}, "selectors has 'tlrd'; choose from .*tldr"),
        ({"selectors": ["tldr", {"name": "tldr", "overrides": []}]}, "twice"),
        ({"selectors": ["oracle"]}, "control's name"),
        ({"selectors": [{"selector": "tldr"}]}, "give a name, or a mapping of name, overrides, selector"),
        ({"controls": ["none"]}, "choose from full"),
        ({"models": ["clop"]}, "models has 'clop'"),
        ({"models": ["clip", {"name": "clip", "overrides": ["model/size=small"]}]}, "models has a name twice"),
        ({"budgets": {"short": "3 hours"}}, r"budgets\.short=3 hours"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(parts, cfg, change, message):
    with pytest.raises(ValueError, match=message):
        parts["_plan"].plan({**cfg, **change}, ROOT / "conf")


def test_the_pool_is_not_what_is_evaluated(parts):
    """Of Flickr8k, whose splits are one folder's."""
    dev = ["data=flickr8k", "data.split=dev"]
    asked = comparison("flickr8k", "telling")
    for evaluated, split in ((None, "data.split=test"), (dev, "data.split=dev")):
        pool, other = parts["_plan"].pool_of(asked | {"evaluated": evaluated}, ROOT / "conf")
        assert ("data.split=train" in pool, split in other) == (True, True)


def test_compressions_are_told_to_the_last_digit(parts, tmp_path):
    bench = parts["reduction"].Bench(comparison("shapes", "telling") | {"out": str(tmp_path)})
    method, ratio = bench.runs[0].method, 1 - 100 / 12e6
    assert f"compression={ratio}" in bench.select_overrides(method, ratio, 0)
    assert "compression=0.75" in bench.select_overrides(method, 0.75, 0)
    assert "compression=1e-12" in bench.select_overrides(method, 0, 0)


def test_rows_of_another_pool_are_refused(parts, tmp_path):
    bench = parts["reduction"].Bench(comparison("shapes", "telling") | {"out": str(tmp_path)})
    first, second, third = (bench.file(run) for run in bench.runs[:3])
    first.parent.mkdir()
    first.write_text('{"pool": null}')  # known from before rows said it
    second.write_text('{"pool": "abc"}')
    bench.refuse_other_pool("abc")
    with pytest.raises(ValueError, match=rf"changed since {second.stem} .*hash def, then abc.*: give another out="):
        bench.refuse_other_pool("def")
    assert third.stem in bench.file(bench.runs[2]).name


def test_what_failed_to_be_evaluated_need_not_be_trained_again(parts, tmp_path):
    asked = comparison("shapes", "telling") | {"out": str(tmp_path)}
    one, other = (parts["reduction"].Bench(asked | {"evaluated": evaluated}) for evaluated in (None, ["data=json"]))
    run = one.runs[0]
    assert one.file(run) != other.file(run)
    assert one.home(run) == other.home(run)
    assert len({one.home(run) for run in one.runs}) == len({one.file(run) for run in one.runs})


@pytest.mark.parametrize("dry", ["false", "true"])
def test_an_evaluation_that_cannot_be_costs_no_training(parts, tmp_path, monkeypatch, dry):
    monkeypatch.chdir(tmp_path)
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit, match=r"typo\.json: there is no such file"):
        parts["reduction"].main([*SETTINGS, 'evaluated=["data=json","data.annotations=typo.json"]', f"dry={dry}"])
    assert not (tmp_path / "out").exists()


def test_rows_that_are_none_are_refused(parts, tmp_path):
    with pytest.raises(ValueError, match=r"known has .*rows\.csv, which is not there"):
        parts["reduction"].known([str(tmp_path / "rows.csv")])
    (tmp_path / "rows.csv").write_text("selector,score\ntldr,1.0\n")
    with pytest.raises(ValueError, match=r"known has .*rows\.csv, which has no column run"):
        parts["reduction"].known([str(tmp_path / "rows.csv")])


def comparison(data: str, experiment: str) -> Any:
    """The configuration of a comparison that is written down."""
    GlobalHydra.instance().clear()  # of the scripts' configurations, which the benchmark keeps open
    with initialize_config_dir(str(ROOT / "benchmarks/conf"), version_base="1.3"):
        cfg = compose("reduction", overrides=[f"data={data}", f"+experiment={experiment}"])
    return OmegaConf.to_container(cfg, resolve=True)


@pytest.mark.parametrize("data", ["shapes", "cifar_scenes", "flickr8k"])
@pytest.mark.parametrize("experiment", ["every_selector", "telling"])
def test_the_comparisons_have_every_method_that_chooses_pairs(parts, experiment, data):
    runs = parts["_plan"].plan(comparison(data, experiment), ROOT / "conf")
    assert {run.seed for run in runs} == {0, 1, 2}
    asked = {run.method.selector for run in runs}
    there = {path.stem for path in (ROOT / "conf/selector").glob("*.yaml")} - MAKERS
    assert asked == there if experiment == "every_selector" else asked < there
    for method in {run.method for run in runs}:
        wants = method.selector in FOR_A_TARGET and "selector.against=pool" not in method.overrides
        assert wants == (f"+data@selector.target={data}" in method.overrides)


@pytest.mark.parametrize("experiment", ["every_selector", "telling"])
def test_the_comparisons_compose_for_photographs(parts, experiment, tmp_path, test_data):
    """Every selection of every method is one that select.py would take."""
    cfg = comparison("flickr8k", experiment) | {"out": str(tmp_path)}
    cfg["overrides"]["data"] = [f"data.root={test_data / 'flickr8k'}"]
    bench = parts["reduction"].Bench(cfg)
    for method in {run.method for run in bench.runs}:
        given, _ = parts["_command"].arguments("select", *bench.select_overrides(method, 0.75, 0), f"out={tmp_path}")
        target = given["selector"].target
        assert (target is not None) == ("+data@selector.target=flickr8k" in method.overrides)
        if target is not None:
            assert (target.root, target.split) == (given["data"].root, "dev")


def test_pairs_that_are_made_have_rows_as_any_others(benchmark, tmp_path, parts):
    """As the comparison of them asks; nobody knows which captions of theirs are wrong."""
    cfg = comparison("shapes", "distilled")
    runs = parts["_plan"].plan(cfg, ROOT / "conf")
    made = {run.method.name for run in runs if run.method.selector in MAKERS}
    assert made == {"trajectory_matching", "lors", "kept_captions"}
    assert {run.seed for run in runs} == {0, 1, 2}
    tiny = '["selector.similarity=lors","selector.experts=1","selector.iterations=2","selector.image_size=8"]'
    asked = f"[{{name: lors, selector: trajectory_matching, overrides: {tiny}}}]"
    benchmark(
        "reduction", *SETTINGS, f"selectors={asked}", "controls=[random]", "seeds=[0]",
        'overrides.select=["scorers.clip.training.max_steps=2"]',
    )  # fmt: skip
    rows = {row["selector"]: row for row in pl.read_parquet(tmp_path / "out" / "rows.parquet").to_dicts()}
    assert rows["lors"]["pairs"] == rows["random"]["pairs"] == 60
    assert rows["lors"]["flops_select"] > 0
    assert rows["lors"]["mismatched"] is None
    assert rows["random"]["mismatched"] == pytest.approx(0.4, abs=0.15)


@pytest.mark.parametrize("file", sorted((ROOT / "docs/rows").glob("*.csv")), ids=lambda file: file.stem)
def test_published_rows_are_those_of_the_comparisons(parts, file):
    """Else they would be measured again in silence: a change of what decides a run asks for new rows."""
    runs: set[str] = set()
    for experiment in ("every_selector", "telling"):
        bench = parts["reduction"].Bench(comparison(file.stem, experiment))
        runs |= {bench.file(run).stem for run in bench.runs}
    rows = parts["reduction"].known([str(file)])
    assert rows
    assert set(rows) <= runs
    assert all(row["data"] == file.stem and 0 <= row["score"] <= 100 for row in rows.values())


def test_the_oracle_takes_back_what_it_must(parts, tiny_pool):
    """The tiny pool: 400 pairs, 160 mismatched, 240 scenes."""
    wrong, scene = tiny_pool.column("truth_mismatched"), tiny_pool.column("truth_scene")
    clean = len(np.unique(scene[~wrong]))
    few, some, most = (parts["_controls"].oracle(tiny_pool, keep, 0) for keep in (clean, 240, 300))
    assert not wrong[few].any()
    assert len(np.unique(scene[few])) == clean
    assert sorted(some) == sorted(np.flatnonzero(~wrong))
    assert wrong[most].sum() == 60
    assert not np.array_equal(parts["_controls"].oracle(tiny_pool, 50, 0), parts["_controls"].oracle(tiny_pool, 50, 1))


def test_the_wordy_oracle_prefers_long_captions_among_the_clean(parts, tiny_pool):
    wrong, scene = tiny_pool.column("truth_mismatched"), tiny_pool.column("truth_scene")
    kept = parts["_controls"].ROWS["oracle_longest"](tiny_pool, 50, 0)
    assert not wrong[kept].any()
    assert len(np.unique(scene[kept])) == 50
    longest = [tiny_pool.words[~wrong & (scene == one)].max() for one in np.unique(scene[~wrong])]
    assert sorted(tiny_pool.words[kept]) == sorted(longest)[-50:]


class First(Selector):
    """Keeps the first rows of whatever it is given."""

    def choose(self, pool, signals, *, keep, seed):
        return Selection(np.arange(keep), [f"row {row}" for row in range(len(pool))])


@pytest.mark.parametrize("keep", [1, 100, 399, 400])
def test_length_bins_keep_their_shares(parts, tiny_pool, keep):
    length = tiny_pool.words
    assert length[0] == len(tiny_pool.captions[0].as_py().split())
    found = parts["_controls"].LengthBins(First(), bins=4)(tiny_pool, None, keep=keep, seed=0)
    edges = np.unique(np.quantile(length, [0.25, 0.5, 0.75], method="lower"))
    label = np.searchsorted(edges, length)
    shares, kept = np.bincount(label) * keep / 400, np.bincount(label[found.rows], minlength=len(edges) + 1)
    assert (abs(kept - shares) < 1).all()
    assert found.reasons[int(found.rows[0])] == (
        f"captions of {length[label == label[found.rows[0]]].min()} to {length[label == label[found.rows[0]]].max()} "
        f"words: row {np.flatnonzero(label == label[found.rows[0]]).tolist().index(found.rows[0])}"
    )


def test_a_wrong_caption_to_which_was_added_is_still_wrong(parts, tmp_path):
    captions = ["a dog; a cat", "a cat", "a red ball", "a hat"]
    columns = {
        "uid": list("abcd"), "image": ["1.png", "2.png", "3.png", "4.png"], "caption": captions,
        "caption_original": ["a dog", "a dog", "a red ball", "a hat"], "truth_mismatched": [True, True, True, False],
    }  # fmt: skip
    assert parts["reduction"].left(Pairs.build(columns, root=tmp_path))["mismatched"] == 0.5


def rows_of(name: str, compression: float, scores: list[float], seconds: float | None) -> list[dict[str, Any]]:
    told = {
        "data": "shapes",
        "model": "clip",
        "budget": "short",
        "steps": 300,
        "epochs": 1.0,
        "pairs": 100,
        "words": 9.0,
    }
    flat = {
        f"{unit}_{kind}": 1.0 for unit in ("seconds", "flops") for kind in ("scorer", "signals", "select", "refine")
    }
    cost = {
        "seconds_train": 10.0,
        "flops_train": 2e12,
        "seconds_total": seconds,
        "flops_total": seconds and seconds * 1e12,
    }
    return [
        {**told, **flat, **cost, "selector": name, "compression": compression, "seed": seed, "score": score}
        for seed, score in enumerate(scores)
    ]


def test_the_tables_tell_verdict_cost_and_advice(parts, cfg, tmp_path):
    rows = [
        *rows_of("full", 0.0, [50.0, 52.0, 54.0], 10.0), *rows_of("random", 0.5, [49.0, 52.0, 51.0], 5.0),
        *rows_of("tldr", 0.5, [55.0, 57.5, 59.0], 30.0), *rows_of("tldr", 0.9, [40.0, 42.0, 44.0], None),
    ]  # fmt: skip
    text, advice = parts["_tables"].report(rows, cfg)
    half, ninety = text.split("90% removed")
    line = next(line for line in half.splitlines() if line.startswith("| tldr |"))
    assert "| 57.2 ± 5.0 |" in line  # 4.303 * 2.021 / sqrt(3)
    assert "better, +5.2 ± 0.7 (3)" in line  # against full: 5, 5.5, 5
    assert "indistinguishable, -1.3 ± 3.8 (3)" in half  # random against full: -1, 0, -3
    assert "worse, -10.0 ± 0.0 (3)" in ninety
    assert "| 3.00 x |" in half  # 30 s of full's 10
    cost = next(line for line in ninety.split("Cost")[1].splitlines() if line.startswith("| tldr |"))
    assert cost.endswith("| – | – | 2 | – | – |")  # a cost that nobody wrote down is not 0
    found = advice["clip short"]["tldr"]
    assert 0.5 < found["recommended"] < 0.9
    assert not found["whole"]
    assert parts["_tables"].figure(rows, 1.0, tmp_path / "figure.png").stat().st_size > 10_000
    assert " *" not in text.partition("## ")[2]
    for row in rows:
        row["machine"] = "a Xeon" if row["selector"] == "tldr" and row["seed"] == 1 else "an EPYC"
    text, _ = parts["_tables"].report(rows, cfg)
    assert "better, +5.2 ± 0.7 (3) *" in text
    assert "indistinguishable, -1.3 ± 3.8 (3) |" in text


def test_costs_are_those_of_making_what_was_found(parts):
    made = {"made_seconds": 7.0, "made_flops": 3.0}
    stages = [
        {"name": "read", "made_seconds": 99.0, "made_flops": 99.0}, {"name": "scorer", **made},
        {"name": "scorer clip", **made}, {"name": "signals", **made}, {"name": "train", **made},
    ]  # fmt: skip
    found = parts["reduction"].costs(stages)
    assert (found["seconds_scorer"], found["flops_total"], found["seconds_refine"]) == (14.0, 12.0, 0.0)
    unknown = parts["reduction"].costs([*stages, {"name": "signals clip", "made_seconds": None, "made_flops": None}])
    assert unknown["seconds_signals"] is unknown["seconds_total"] is None
    assert unknown["seconds_train"] == 7.0
