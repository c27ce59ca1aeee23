"""Every locator opens; what a person would see comes out; what is broken is said to be, never shown in part."""

import http.server
import io
import multiprocessing
import os
import pickle
import re
import tarfile
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageFile

from tldr.data.images import ImageError, ImageStore, decode


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def plain(color: object, mode: str = "RGB", size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.new(mode, size, color)  # type: ignore[arg-type]


def photo(size: int = 96) -> Image.Image:
    x, y = np.meshgrid(np.arange(size), np.arange(size))
    noise = np.random.default_rng(0).integers(0, 60, (size, size, 3))
    return Image.fromarray((np.stack([x + y, 2 * x, 255 - y], -1) % 196 + noise).astype(np.uint8))


def seen(data: bytes) -> tuple[int, ...]:
    image = decode(data, "here")
    assert image.mode == "RGB"
    pixel = image.getpixel((1, 1))
    assert isinstance(pixel, tuple)
    return pixel


def test_a_file_under_the_root_elsewhere_and_by_url(tmp_path):
    data = encoded(plain("red"), "PNG")
    (tmp_path / "a").mkdir()
    file = tmp_path / "a" / "b #1.png"
    file.write_bytes(data)
    store = ImageStore(tmp_path)
    for locator in ("a/b #1.png", str(file)):
        assert store.read(locator) == data
        assert store.stamp(locator) == (len(data), file.stat().st_mtime_ns)
    (tmp_path / "plain.png").write_bytes(data)
    assert store.read(f"file://{tmp_path}/plain.png") == data
    assert ImageStore(f"file://{tmp_path}").read("plain.png") == data
    assert store.stamp(f"file://{tmp_path}/plain.png") == (len(data), 0)
    assert store.load("plain.png").getpixel((0, 0)) == (255, 0, 0)


def test_a_page_of_a_server(tmp_path):
    data = encoded(plain("red"), "PNG")
    (tmp_path / "a.png").write_bytes(data)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        store = ImageStore(f"http://127.0.0.1:{server.server_port}")
        assert store.read("a.png") == data
        assert store.stamp("a.png") == (len(data), 0)
        for method in (store.read, store.stamp):
            with pytest.raises(ImageError, match=r"cannot be read: .*404|missing file"):
                method("none.png")
        server.shutdown()
    with pytest.raises(ImageError, match=r"cannot be read: .*[Cc]onnect"):
        store.stamp("a.png")


def test_a_byte_range_of_a_tar(tmp_path):
    pictures = {f"{number}.png": encoded(plain((number, 0, 0)), "PNG") for number in range(3)}
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for name, data in pictures.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with tarfile.open(tmp_path / "shard.tar") as tar:
        places = {member.name: f"shard.tar#bytes={member.offset_data}+{member.size}" for member in tar}
    store = ImageStore(tmp_path)
    for name, locator in places.items():
        assert store.read(locator) == pictures[name]
    by_url = ImageStore(f"file://{tmp_path}")
    assert by_url.read(places["1.png"]) == pictures["1.png"]
    end = (tmp_path / "shard.tar").stat().st_size
    with pytest.raises(ImageError, match=r"truncated: .* after 10 of its 50 bytes"):
        store.read(f"shard.tar#bytes={end - 10}+50")


def test_a_row_of_a_parquet_file(tmp_path):
    data = [encoded(plain((number, 0, 0)), "PNG") for number in range(10)]
    structs = [{"bytes": one, "path": f"{number}.png"} for number, one in enumerate(data)]
    pq.write_table(pa.table({"image": data, "jpg": data[::-1]}), tmp_path / "plain.parquet", row_group_size=3)
    pq.write_table(pa.table({"image": structs}), tmp_path / "hugging.parquet", row_group_size=4)
    store = ImageStore(tmp_path)
    for row in (9, 0, 3, 2, 5, 8, 6, 1, 4, 7):
        assert store.read(f"plain.parquet#row={row}") == data[row]
        assert store.read(f"plain.parquet#row={row},column=jpg") == data[9 - row]
        assert store.read(f"hugging.parquet#row={row}") == data[row]
    with pytest.raises(ImageError, match="row 10 of a file of 10 rows"):
        store.read("plain.parquet#row=10")
    with pytest.raises(ImageError, match="no column 'png' among image, jpg"):
        store.read("plain.parquet#row=0,column=png")


def test_a_parquet_row_without_picture(tmp_path):
    pq.write_table(pa.table({"image": pa.array([None, b""], pa.binary())}), tmp_path / "a.parquet")
    for row in (0, 1):
        with pytest.raises(ImageError, match="empty"):
            ImageStore(tmp_path).read(f"a.parquet#row={row}")


@pytest.mark.parametrize(
    ("locator", "reason"),
    [
        ("none.jpg", "^missing file$"),
        ("none.tar#bytes=0+5", "^missing file$"),
        ("none.parquet#row=0", "^missing file$"),
        ("text.jpg/below.jpg", "^missing file$"),
        ("folder", "^not an image: a folder$"),
        ("empty.jpg", "^empty file$"),
        ("text.jpg", "^not an image: 6 bytes that begin with b'<html>'$"),
        ("nul\0.jpg", "^cannot be read: embedded null byte$"),
        ("n" * 300 + ".jpg", "^cannot be read: File name too long$"),
        ("text.jpg#row=0", "^cannot be read: "),
        ("nonsense://host/a.jpg", "^cannot be read: "),
    ],
)
def test_what_cannot_be_opened_says_why_on_one_line(tmp_path, locator, reason):
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_bytes(b"<html>")
    with pytest.raises(ImageError) as caught:
        ImageStore(tmp_path).load(locator)
    assert caught.value.locator == locator
    assert re.search(reason, caught.value.reason)


def test_an_error_survives_the_way_between_processes():
    error = pickle.loads(pickle.dumps(ImageError("a.jpg", "missing\n file")))
    assert (error.locator, error.reason, str(error)) == ("a.jpg", "missing file", "a.jpg: missing file")


@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_turns_the_picture(turn):
    upright = photo().resize((16, 24))
    lying = upright
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose of each orientation, inverted
    if turn in undo:
        lying = upright.transpose(Image.Transpose(undo[turn]))
    exif = Image.Exif()
    exif[0x0112] = turn
    np.testing.assert_array_equal(decode(encoded(lying, "PNG", exif=exif), "x"), upright)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
def test_broken_exif_does_not_cost_the_picture():
    data = encoded(plain("red"), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff\xff nonsense")
    assert seen(data)[0] > 250


def test_transparency_shows_white():
    half = plain((255, 0, 0, 128), "RGBA")
    assert seen(encoded(half, "PNG")) == (255, 127, 127)
    assert seen(encoded(plain((0, 0, 0, 0), "RGBA"), "PNG")) == (255, 255, 255)
    assert seen(encoded(plain((0, 0), "LA"), "PNG")) == (255, 255, 255)
    assert seen(encoded(plain((1, 2, 3)), "PNG", transparency=(1, 2, 3))) == (255, 255, 255)
    palette = plain((255, 0, 0)).quantize(4)
    assert seen(encoded(palette, "PNG")) == (255, 0, 0)
    for transparent in (0, bytes([0, 255, 255, 255])):
        assert seen(encoded(palette, "PNG", transparency=transparent)) == (255, 255, 255)


def test_deep_greys_keep_their_brightness():
    ramp = np.linspace(0, 65535, 256).reshape(16, 16)
    expected = np.arange(256).reshape(16, 16)
    deep = decode(encoded(Image.fromarray(ramp.astype(np.uint16)), "PNG"), "x")
    np.testing.assert_array_equal(np.asarray(deep)[:, :, 1], expected)
    for scaled in (ramp / 65535, ramp / 65535 * 255, ramp):
        floats = decode(encoded(Image.fromarray(scaled.astype(np.float32)), "TIFF"), "x")
        np.testing.assert_array_equal(np.asarray(floats)[:, :, 1], expected)
    integers = decode(encoded(Image.fromarray(ramp.astype(np.int32)), "TIFF"), "x")
    np.testing.assert_array_equal(np.asarray(integers)[:, :, 1], expected)


@pytest.mark.parametrize("mode", ["1", "L", "CMYK", "YCbCr", "LAB"])
def test_other_modes_become_rgb(mode):
    white = {"1": 1, "L": 255, "CMYK": (0, 0, 0, 0), "YCbCr": (255, 128, 128), "LAB": (255, 128, 128)}[mode]
    format = "JPEG" if mode in ("CMYK", "YCbCr", "L") else "TIFF"
    assert min(seen(encoded(plain(white, mode), format))) > 250


def test_an_animation_shows_its_first_frame():
    frames = [plain("red"), plain("blue")]
    assert seen(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])) == (255, 0, 0)


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("JPEG", {"subsampling": 0}),
        ("PNG", {}),
        ("WEBP", {}),
        ("TIFF", {}),
    ],
    ids=str,
)
def test_a_truncated_picture_is_never_shown(format, options):
    whole = encoded(photo(), format, **options)
    full = np.asarray(decode(whole, "x"))
    for length in [*range(1, len(whole), max(1, len(whole) // 150)), *range(len(whole) - 32, len(whole))]:
        part = whole[:length]
        for draft in (False, True):
            try:
                image = decode(part, "x", draft=draft)
            except ImageError as error:
                assert re.match("truncated or corrupt: |not an image: ", error.reason)  # noqa: PT017
            else:  # nothing but an end mark may be gone
                assert length > len(whole) - 32
                if not draft:
                    np.testing.assert_array_equal(image, full)


def test_a_draft_is_small_and_as_strict():
    data = encoded(photo(), "JPEG")
    assert decode(data, "x", draft=True).size == (12, 12)
    assert decode(data, "x").size == (96, 96)


def test_nobody_let_truncated_pictures_pass():
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


@pytest.mark.parametrize("side", [11, 100])
def test_bombs_are_refused(monkeypatch, side):
    data = encoded(plain("red", size=(side, side)), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match=r"too large: .*pixels"):
        decode(data, "x")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in a program that does not turn warnings into errors
        with pytest.raises(ImageError, match=r"too large: .*pixels"):
            decode(data, "x")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    decode(data, "x")


def test_garbage_is_an_image_error_whatever_pillow_raises():
    random = np.random.default_rng(0)
    pictures = [encoded(photo(32), format) for format in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP")]
    refused = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow may warn of what it repairs
        for trial in range(300):
            data = bytearray(pictures[trial % len(pictures)])
            for at in random.integers(0, min(len(data), 200), 6):
                data[at] = random.integers(256)
            try:
                decode(bytes(data), "x")
            except ImageError:
                refused += 1
    assert refused > 50


def shards(folder: Path) -> tuple[list[str], list[bytes]]:
    data = [encoded(plain((number, 0, 0)), "PNG") for number in range(40)]
    pq.write_table(pa.table({"image": data}), folder / "a.parquet", row_group_size=7)
    (folder / "a.tar").write_bytes(b"".join(data))
    starts = np.cumsum([0, *map(len, data)]).tolist()
    locators = [f"a.tar#bytes={start}+{len(one)}" for start, one in zip(starts, data, strict=False)]
    return locators + [f"a.parquet#row={row}" for row in range(len(data))], data * 2


def test_threads_share_a_store(tmp_path):
    locators, data = shards(tmp_path)
    store = ImageStore(tmp_path)
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(store.read, locators * 5)) == data * 5


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_read_what_their_parent_had_open(tmp_path, method):
    locators, data = shards(tmp_path)
    store = ImageStore(tmp_path)
    assert store.read(locators[0]) == data[0]
    assert store.read(locators[-1]) == data[-1]
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(store.read, locators) == data
    assert store.read(locators[1]) == data[1]


def test_open_files_are_few_and_row_groups_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("tldr.data.images._OPEN_FILES", 3)
    monkeypatch.setattr("tldr.data.images._ROW_GROUP_BYTES", 1)
    data = encoded(plain("red"), "PNG")
    for number in range(20):
        (tmp_path / f"{number}.tar").write_bytes(data)
        pq.write_table(pa.table({"image": [data] * 4}), tmp_path / f"{number}.parquet", row_group_size=2)
    store = ImageStore(tmp_path)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for number in range(20):
        assert store.read(f"{number}.tar#bytes=0+{len(data)}") == data
        for row in range(4):
            assert store.read(f"{number}.parquet#row={row}") == data
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before + 6
    files = store._files
    assert (len(files.descriptors.items), len(files.parquets.items), len(files.groups.items)) == (3, 3, 2)
