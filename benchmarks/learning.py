"""Do the models learn? Pre-train each, give it heads, measure every downstream task that it can do, beside chance.

For each data set, BLIP, ViLT, CLIP, the captioner and the VQ-VLM are trained on its training pairs without the planted
noise, then fine-tuned for NLVR2-style statements and VQA-style questions, and evaluated on held-out pictures; models of
`cifar_scenes` also classify CIFAR-10 zero-shot, having seen only captions. ViLT is initialised from a CLIP, as the
published one is from a trained ViT: from scratch it does not learn to use the picture in so few steps. It has as many
blocks as the others have for pictures and words together, and a quarter of their learning rate, because at theirs it
forgets what the CLIP knew of classes before making use of it. Its retrieval is measured after fine-tuning of its own (a
caption among those of 15 others); its heads learn ten times as fast as the model, and statements are learned after
questions. One tokenizer, learned from the words of captions, statements and questions, serves all, as a published one
would. Every result is kept in --out under its settings: run again, only what is missing is computed.
Prints one table, and writes it as Markdown and JSON.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import Counter, defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from _command import command, read
from _results import kept, markdown, publish

from tldr.data.tokenizer import Tokenizer
from tldr.metric.answer import accuracy
from tldr.metric.caption import score_captions
from tldr.pairs import Pairs

DATA = ("shapes", "cifar_scenes")
TASKS = {  # of each model: what it can do without a head
    "clip": ("retrieval",),
    "vilt": ("retrieval",),
    "blip": ("retrieval", "captioning"),
    "captioner": ("captioning",),
    "vqvlm": ("captioning",),
}
STEPS = {"blip": 600, "vilt": 2000, "clip": 400, "captioner": 800, "vqvlm": 800}
BEGINS = {"vilt": ("clip", ["model.image.depth=4"])}  # what it begins from, and how that is made
GENTLY = "model.optimizer.lr=5e-4"  # for what begins from a trained model
BATCH = {"blip": 64, "vilt": 64}
TUNED = {("vilt", "retrieval"): (2000, [GENTLY, "model.ranked=15", "batch_size=16"])}  # for a task: steps, and how
HEADS = {"vqa": "vqa_train", "nlvr2": "nlvr2_train"}  # and what they learn from
APART = ["model.optimizer.head_lr_scale=10", "model.optimizer.warmup_steps=0.1"]
HEADED = {  # times --head-steps, and how: at the heads' own rate it forgets what it knew before they make use of it
    ("vilt", "vqa"): (2, ["model.optimizer.lr=2e-4", *APART]),
    ("vilt", "nlvr2"): (2, ["model.optimizer.lr=1e-4", *APART]),
}
AFTER = {("vilt", "nlvr2"): "vqa"}  # the head whose backbone it goes on with
COLUMNS = {
    "retrieval/tr@1": "TR@1", "retrieval/ir@1": "IR@1", "captioning/cider": "CIDEr", "nlvr2/accuracy": "NLVR",
    "vqa/accuracy": "VQA", "zeroshot/top1": "zero-shot CIFAR-10",
}  # fmt: skip
CLEAN = ("data.mismatched=0", "data.duplicates=0")
EDGE = 20  # steps over which a loss is averaged at either end


def main() -> None:
    """Run it; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=list(DATA), choices=DATA)
    parser.add_argument("--models", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--size", type=int, default=16_000, help="pairs of every training split")
    parser.add_argument("--eval-images", type=int, default=200, help="held-out pictures, and questions")
    parser.add_argument("--share", type=float, default=1.0, help="of the steps")
    parser.add_argument("--head-steps", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("outputs/learning"))
    given = parser.parse_args()

    sizes = [f"data.size={given.size}", f"data.eval_images={given.eval_images}"]
    setting = [given.size, given.eval_images, given.share, given.head_steps]
    home = given.out / f"{'-'.join(f'{value:g}' for value in setting)}-s{given.seed}"
    rows = []
    for data in given.data:
        chance = kept(home / data / "chance.json", lambda data=data: chances(data, sizes, given.seed))
        rows += [{"data": data, "model": "chance", **chance}]
        for model in given.models:
            bench = Bench(data, model, sizes, given, home)
            rows.append({"data": data, "model": model, **kept(bench.home / "row.json", bench.row)})
    publish(given.out, rows, vars(given), table_of(rows))


class Bench:
    """One model on one data set: its training, its heads, its numbers."""

    def __init__(self, data: str, model: str, sizes: list[str], given: argparse.Namespace, place: Path) -> None:
        self.data, self.model, self.given = data, model, given
        self.home = place / data / model
        self.steps = self.steps_of(model)
        self.always = [f"cache={given.out / 'cache'}", *sizes]
        self.tokenizer = f"tokenizer={tokenizer_of(data, sizes, place / data / 'tokenizer')}"

    def steps_of(self, model: str) -> int:
        """Of its pre-training."""
        return max(2, round(STEPS[model] * self.given.share))

    def pretrain(self) -> float:
        """Without the planted noise; the seconds that it took, with those of the model that it begins from."""
        options, seconds = [self.tokenizer], 0.0
        if self.model in BEGINS:
            model, own = BEGINS[self.model]
            begin = self.home / model
            seconds = self.train(model, begin, self.steps_of(model), *CLEAN, *options, batch_of(model), *own)
            options += [f"init_from={begin}", GENTLY]
        return seconds + self.train(self.model, self.home, self.steps, *CLEAN, *options, batch_of(self.model))

    def tune(self, task: str) -> tuple[Path, float]:
        """The model that does ``task``, and the seconds that it took to fine-tune it: itself and none, but for those
        that learn it first."""
        if (self.model, task) not in TUNED:
            return self.home, 0.0
        steps, options = TUNED[self.model, task]
        out, steps = self.home / task, max(2, round(steps * self.given.share))
        return out, self.train(self.model, out, steps, *CLEAN, f"init_from={self.home}", *options)

    def row(self) -> dict[str, float]:
        """Every number of the model, and what its training did."""
        seconds = self.pretrain()
        first, last = loss_of(self.home)
        numbers = {"steps": self.steps, "seconds": seconds, "first loss": first, "last loss": last}
        homes = {}
        for task in TASKS[self.model]:
            homes[task], more = self.tune(task)
            numbers["seconds"] += more
            numbers |= self.evaluate(task, homes[task], f"data={self.data}_eval")
        for head, split in HEADS.items():
            home, backbone = self.home / head, self.home / AFTER.get((self.model, head), "")
            times, own = HEADED.get((self.model, head), (1, []))
            steps = times * self.given.head_steps
            options = [f"model.backbone={backbone}", f"data.split={split}", "batch_size=64", *own]
            numbers["seconds"] += self.train(head, home, steps, *options)
            numbers |= self.evaluate(head, home, f"data={self.data}_eval")
        if self.data == "cifar_scenes" and "retrieval" in homes:
            numbers |= self.evaluate("zeroshot", homes["retrieval"], "data=cifar10")
        return {key: value for key, value in numbers.items() if key in COLUMNS or "/" not in key}

    def train(self, model: str, out: Path, steps: int, *options: str) -> float:
        """What ``train.py`` does, if it has not been done; the seconds that it took. All have the same seed."""
        fixed = [f"model={model}", f"data={self.data}", f"out={out}", f"max_steps={steps}", f"seed={self.given.seed}"]
        command("train", *fixed, "logger=csv", "resume=true", *self.always, *options)
        ledger = json.loads((out / "ledger.json").read_text(encoding="utf-8"))
        return sum(stage["seconds"] for stage in ledger if stage["name"] == "train")

    def evaluate(self, task: str, checkpoint: Path, *options: str) -> dict[str, float]:
        """What ``evaluate.py`` finds. Caption metrics do without Java, so that every machine has the same."""
        captions = ["evaluator.captioning.tokenizer=simple", "evaluator.captioning.metrics=[bleu,cider]"]
        sizes = self.always if task != "zeroshot" else self.always[:1]
        fixed = [f"evaluator={task}", f"checkpoint={checkpoint}", "logger=none", *sizes]
        return command("evaluate", *fixed, *options, *(captions if task == "captioning" else []))[0]


def batch_of(model: str) -> str:
    """The override that says how large a batch of pre-training is."""
    return f"batch_size={BATCH.get(model, 128)}"


def tokenizer_of(data: str, sizes: list[str], folder: Path) -> Path:
    """Of the words of captions, statements and questions, as a published one would know them; learned once."""
    if not folder.is_dir():
        splits = ("train", "nlvr2_train", "vqa_train")
        texts = [text for split in splits for text in read(f"data={data}", f"data.split={split}", *sizes).captions]
        Tokenizer.learn(str(text) for text in texts).save(folder)
    return folder


def loss_of(folder: Path) -> tuple[float, float]:
    """The training loss over the first and the last steps that were logged."""
    file = max(folder.glob("csv/version_*/metrics.csv"), key=lambda path: int(path.parent.name.split("_")[1]))
    with file.open(encoding="utf-8", newline="") as lines:
        found = [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(lines) if row["loss"]]
    last = max(step for step, _ in found)
    begin, end = [loss for step, loss in found if step < EDGE], [loss for step, loss in found if step > last - EDGE]
    return fmean(begin), fmean(end)


def chances(data: str, sizes: list[str], seed: int) -> dict[str, float]:
    """What knowing nothing of the picture gives: a random order; another picture's caption; the commoner label; of
    every question, the answer that it had most often in training."""

    def pairs(split: str) -> Pairs:
        return read(f"data={data}", f"data.split={split}", *sizes)

    captions = defaultdict(list)
    for image, caption in zip(pairs("eval").images.to_pylist(), pairs("eval").captions.to_pylist(), strict=True):
        captions[image].append(caption)
    own = list(captions.values())
    order = np.random.default_rng(seed).permutation(len(own))
    strangers = [own[other][0] for other in order[np.argsort(np.roll(order, 1))]]  # nobody's own
    cider = score_captions(strangers, own, metrics=["cider"], tokenizer="simple").overall["cider"]
    true = float(np.mean(pairs("nlvr2").column("label")))
    asked: dict[str, Counter[str]] = defaultdict(Counter)
    for row in pairs("vqa_train").table.select(["caption", "answers"]).to_pylist():
        asked[row["caption"]].update(row["answers"])
        asked[""].update(row["answers"])
    blind = [
        accuracy((asked.get(row["caption"]) or asked[""]).most_common(1)[0][0], row["answers"])
        for row in pairs("vqa").table.select(["caption", "answers"]).to_pylist()
    ]
    recall = 100 / len(own)
    numbers = {"retrieval/tr@1": recall, "retrieval/ir@1": recall, "captioning/cider": cider}
    numbers |= {"nlvr2/accuracy": 100 * max(true, 1 - true), "vqa/accuracy": 100 * fmean(blind)}
    return numbers | ({"zeroshot/top1": 10.0} if data == "cifar_scenes" else {})


def table_of(rows: list[dict[str, Any]]) -> str:
    """The table."""
    head = ["data", "model", "steps", "seconds", "loss, first to last", *COLUMNS.values()]
    lines = [head]
    for row in rows:
        loss = f"{row['first loss']:.2f} to {row['last loss']:.2f}" if "last loss" in row else ""
        told = [f"{row[key]:,.0f}" if key in row else "" for key in ("steps", "seconds")]
        lines.append(
            [row["data"], row["model"], *told, loss, *(f"{row[key]:.1f}" if key in row else "" for key in COLUMNS)]
        )
    return markdown(lines, ["---", "---", *["---:"] * (len(head) - 2)])


if __name__ == "__main__":
    main()
