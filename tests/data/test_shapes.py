import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tldr.data import shapes
from tldr.data.base import Row
from tldr.data.images import ImageStore
from tldr.data.pool import read_pool
from tldr.data.shapes import Shapes

SIZE = 300


def files(folder: str | Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(Path(folder).iterdir())}


@pytest.fixture(scope="module")
def reader(tmp_path_factory) -> Shapes:
    return Shapes(tmp_path_factory.mktemp("shapes"), size=SIZE, mismatched=0.3, duplicates=0.35)


@pytest.fixture(scope="module")
def rows(reader) -> pl.DataFrame:
    found = list(reader.rows())
    assert all(isinstance(row, Row) and row.uid is None for row in found)
    return pl.DataFrame([{"image": row.image, "caption": row.caption, **row.extra} for row in found])


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory) -> Shapes:
    return Shapes(tmp_path_factory.mktemp("eval"), split="eval", eval_images=40)


@pytest.fixture(scope="module")
def pixels(reader, rows) -> np.ndarray:
    """(N, 64, 64, 3)."""
    store = ImageStore(reader.root)
    return np.stack([np.asarray(store.load(image)) for image in rows["image"]])


def test_two_folders_hold_the_same_bytes(reader, rows, tmp_path):
    again = Shapes(tmp_path, size=SIZE, mismatched=0.3, duplicates=0.35)
    list(again.rows())
    assert Path(again.root).name == Path(reader.root).name
    assert files(again.root) == files(reader.root)


def test_what_is_rendered_is_not_rendered_again(reader, rows, monkeypatch):
    monkeypatch.delattr(shapes, "render")
    again = Shapes(Path(reader.root).parent, size=SIZE, mismatched=0.3, duplicates=0.35)
    assert [row.image for row in again.rows() if isinstance(row, Row)] == rows["image"].to_list()


def test_a_killed_rendering_is_done_again(tmp_path):
    reader = Shapes(tmp_path, size=20)
    list(reader.rows())
    whole = files(reader.root)
    (Path(reader.root) / "pairs.parquet").unlink()  # written last
    (Path(reader.root) / "images.tar").write_bytes(b"half")
    list(reader.rows())
    assert files(reader.root) == whole


def test_every_argument_makes_another_set(tmp_path):
    base = {"size": 20, "image_size": 16}
    changes = [{}, {"seed": 1}, {"size": 21}, {"image_size": 32}, {"mismatched": 0.1}, {"duplicates": 0.1},
               {"copies": 0.5}]  # fmt: skip
    readers = [Shapes(tmp_path, **(base | change)) for change in changes]
    readers.append(Shapes(tmp_path, split="eval", eval_images=4, image_size=16))
    assert len({reader.root for reader in readers}) == len(readers)
    first, other = ([row.caption for row in reader.rows() if isinstance(row, Row)] for reader in readers[:2])
    assert first != other
    # What does not concern a split does not make it anew.
    assert Shapes(tmp_path, split="eval", size=5).root == Shapes(tmp_path, split="eval").root
    assert Shapes(tmp_path, eval_images=5).root == Shapes(tmp_path).root


def test_the_planted_shares_are_exact(rows):
    assert len(rows) == SIZE
    assert rows["truth_mismatched"].sum() == 90
    assert rows["truth_duplicate"].sum() == 105
    assert rows["image"].n_unique() == SIZE


@pytest.mark.parametrize("copies", [0.5, 1.0])
def test_copies_repeat_the_first_caption_right_or_wrong(tmp_path, copies):
    reader = Shapes(tmp_path, size=SIZE, image_size=16, mismatched=0.3, duplicates=0.6, copies=copies)
    rows = pl.DataFrame([{"caption": row.caption, **row.extra} for row in reader.rows() if isinstance(row, Row)])
    first = rows.filter(~pl.col("truth_duplicate"))
    again = rows.filter("truth_duplicate").join(first, on="truth_scene", suffix="_first")
    assert len(again) == 180
    same = again.filter(pl.col("caption") == pl.col("caption_first"))
    # Captions of their own, of the same scene, seldom coincide.
    assert 180 * copies <= len(same) <= 180 * copies + 20
    agree = (same["truth_mismatched"] == same["truth_mismatched_first"]).sum()
    assert agree > 0.95 * len(same)
    assert same["truth_mismatched"].n_unique() == 2
    if copies == 1:
        assert first["truth_mismatched"].sum() == 36  # a share of the pairs that are no copies


def test_a_few_scenes_are_repeated_often_and_most_never(rows):
    first = rows.filter(~pl.col("truth_duplicate"))
    assert first["truth_scene"].n_unique() == len(first)  # every other rendering of a scene is marked as one
    assert set(rows["truth_scene"]) == set(first["truth_scene"])
    counts = np.sort(rows["truth_scene"].value_counts()["count"].to_numpy())[::-1]
    assert (counts == 1).mean() > 0.6
    assert counts[0] >= 6


def plain(text: str) -> str:
    stems = {"crimson": "red", "violet": "purple", "turquoise": "cyan", "gray": "grey", "big": "large", "huge": "large",
             "little": "small", "tiny": "small", "disc": "circle", "dot": "circle", "box": "square", "plus": "cross",
             "rhombus": "diamond", "hoop": "ring", "backdrop": "background", "centre": "middle"}  # fmt: skip
    return re.sub(r"\w+", lambda word: stems.get(word[0], word[0]), text)


def told(text: str) -> frozenset[str] | None:
    """All that a full caption says, as a set; None for the other styles."""
    text = plain(text)
    background = re.findall(r"on an? (\w+) background", text)
    if not background:
        return None
    text = re.sub(r" ?on an? \w+ background,? ?", "", text)
    text = text[re.search(r"an? (large|small) ", text).start() :]  # pyright: ignore[reportOptionalMemberAccess]
    return frozenset([*background, *re.split(r", | and ", text)])


def test_mismatched_captions_are_of_another_scene(rows):
    """Full captions say everything: those of one scene agree, unless one is marked."""
    right, wrong = defaultdict(set), []
    for row in rows.iter_rows(named=True):
        said = told(row["caption"])
        if said and row["truth_mismatched"]:
            wrong.append((row["truth_scene"], said))
        elif said:
            right[row["truth_scene"]].add(said)
    assert all(len(sayings) == 1 for sayings in right.values())
    checkable = [(scene, said) for scene, said in wrong if scene in right]
    assert len(checkable) > 5
    assert all(said not in right[scene] for scene, said in checkable)


COLOURS = {
    "red": (214, 39, 40), "blue": (31, 90, 220), "green": (30, 150, 60), "yellow": (245, 215, 40),
    "orange": (250, 130, 20), "purple": (130, 60, 180), "pink": (245, 130, 190), "cyan": (40, 200, 220),
    "brown": (125, 75, 40), "lime": (160, 235, 60),
}  # fmt: skip
PLACES = ["at the top left", "at the top", "at the top right", "on the left", "in the middle", "on the right"]
PLACES += ["at the bottom left", "at the bottom", "at the bottom right"]


def seen(picture: np.ndarray, place: str) -> str:
    """The colour in the middle of a cell."""
    row, column = divmod(PLACES.index(place), 3)
    y, x = round((row + 0.5) * 64 / 3), round((column + 0.5) * 64 / 3)
    pixel = np.median(picture[y - 1 : y + 2, x - 1 : x + 2].reshape(-1, 3).astype(float), 0)
    unit = pixel / np.linalg.norm(pixel)
    return max(COLOURS, key=lambda name: float(unit @ np.array(COLOURS[name]) / np.linalg.norm(COLOURS[name])))


def test_pictures_show_what_captions_say_unless_mismatched(rows, pixels):
    agrees = {True: [], False: []}
    for row, picture in zip(rows.iter_rows(named=True), pixels, strict=True):
        filled = re.findall(
            rf"(\w+) (?:circle|square|diamond|heart) ({'|'.join(sorted(PLACES, key=len, reverse=True))})",
            plain(row["caption"]),
        )
        if filled:
            agrees[row["truth_mismatched"]].append(all(seen(picture, place) == colour for colour, place in filled))
    assert len(agrees[False]) > 40
    assert all(agrees[False])
    assert np.mean(agrees[True]) < 0.3


def test_rows_of_one_scene_look_alike(rows, pixels):
    small = pixels.reshape(SIZE, 8, 8, 8, 8, 3).mean((2, 4)).reshape(SIZE, -1)  # jitter and noise away
    distance = np.linalg.norm(small[:, None] - small[None], axis=2)
    scene = rows["truth_scene"].to_numpy()
    same = (scene[:, None] == scene[None]) & ~np.eye(SIZE, dtype=bool)
    other = scene[:, None] != scene[None]
    assert np.median(distance[same]) < np.percentile(distance[other], 1)
    nearest = np.where(np.eye(SIZE, dtype=bool), np.inf, distance).argmin(1)
    repeated = same.any(1)
    assert (scene[nearest] == scene)[repeated].mean() > 0.85
    assert len({picture.tobytes() for picture in pixels}) == SIZE  # alike, and never the same


def test_rarity_is_minus_the_log_probability_of_the_rarest_object(rows):
    assert rows.group_by("truth_scene").agg(pl.col("truth_rarity").n_unique())["truth_rarity"].max() == 1
    shapes_by_rank = "circle square triangle star cross diamond ring heart".split()
    colour, shape = (np.arange(1, n + 1.0) ** -0.8 for n in (10, 8))
    checked = 0
    for row in rows.filter(~pl.col("truth_mismatched")).iter_rows(named=True):
        things = re.findall(rf"(?:large|small) (\w+) ({'|'.join(shapes_by_rank)})", plain(row["caption"]))
        if told(row["caption"]):
            probability = [colour[list(COLOURS).index(c)] * shape[shapes_by_rank.index(s)] for c, s in things]
            expected = -np.log(min(probability) / colour.sum() / shape.sum())
            assert row["truth_rarity"] == pytest.approx(expected), row["caption"]
            checked += 1
    assert checked > 50


def test_the_evaluation_split_is_clean_and_favours_no_style(evaluation):
    found = pl.DataFrame(
        [{"image": row.image, "caption": row.caption, **row.extra} for row in evaluation.rows() if isinstance(row, Row)]
    )
    assert len(found) == 200
    assert not found["truth_mismatched"].any()
    assert not found["truth_duplicate"].any()
    for (_,), group in found.group_by("image"):
        texts = group["caption"].to_list()
        assert len(set(texts)) == 5
        styles = Counter(
            "full" if told(text)
            else "count" if " shapes on " in text
            else "relation" if re.search("above|below|to the left of|to the right of", text)
            else "terse"
            for text in texts
        )  # fmt: skip
        assert styles == {"full": 2, "relation": 1, "terse": 1, "count": 1}
        assert len({told(text) for text in texts if told(text)}) == 1
        assert group["truth_scene"].n_unique() == 1


def test_the_splits_draw_different_scenes(reader, rows, evaluation):
    train = {told(text) for text in rows["caption"]}
    assert not any(told(row.caption) in train for row in evaluation.rows() if told(row.caption))


def test_it_reads_as_a_pool(reader):
    pool = read_pool(reader, progress=False)
    assert (pool.read, pool.quarantine.num_rows) == (SIZE, 0)
    assert {name for name in pool.pairs.table.column_names if name.startswith("truth_")} == {
        "truth_mismatched", "truth_scene", "truth_duplicate", "truth_rarity",
    }  # fmt: skip
    assert read_pool(reader, verify="none", progress=False).pairs.uids.equals(pool.pairs.uids)


def test_errors_name_the_argument(tmp_path):
    for arguments, message in [
        ({"split": "test"}, r"data\.split='test'; shapes has train, eval, nlvr2_train"),
        ({"mismatched": 1.0}, r"data\.mismatched=1\.0"),
        ({"duplicates": -0.1}, r"data\.duplicates=-0\.1"),
        ({"copies": 1.5}, r"data\.copies=1\.5 must be a share of the redundant pairs"),
        ({"size": 1}, r"data\.size=1 .* fewer than two distinct scenes"),
        ({"size": 10, "duplicates": 0.95}, r"data\.size=10 with data\.duplicates=0\.95"),
    ]:
        with pytest.raises(ValueError, match=message):
            Shapes(tmp_path, **arguments)
