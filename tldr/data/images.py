"""Pictures by locator: files, byte ranges of tars, rows of parquet files, frames of clips, URLs (`tldr.pairs` has the
notation).

`ImageStore.load` gives RGB as a person would see the picture: turned the way its EXIF says, transparent parts on
white, 16-bit values scaled, the first frame of an animation. Every pixel is decoded, so that a truncated file is an
`ImageError` here and not a grey half picture in training. A parquet row costs the decoding of its row group unless that
was among the last ones used: for training in random order on large row groups, unpack the file or write tars.
"""

from __future__ import annotations

import io
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs
from PIL import Image, ImageOps, UnidentifiedImageError

from tldr.data.frames import frame_of_folder, frame_of_video

# Only these endings make a fragment: '#' is an ordinary character of a file name.
INSIDE = r"#(bytes=\d+\+\d+|row=\d+(,column=.+)?)$"  # of a tar or of Parquet
_FRAGMENT = re.compile(
    r"(?P<path>.+)#(?:bytes=(?P<offset>\d+)\+(?P<size>\d+)|row=(?P<row>\d+)(?:,column=(?P<column>.+))?"
    r"|frame=(?P<frame>\d+)/(?P<frames>\d+))",
    re.DOTALL,
)
_OPEN_FILES = 64
_ROW_GROUP_BYTES = 256 << 20


class ImageError(Exception):
    """A picture that cannot be had. ``reason`` is one line, ``kind`` or ``kind: detail``."""

    def __init__(self, locator: str, reason: str) -> None:
        super().__init__(locator, reason)  # both, so that it can be pickled
        self.locator = locator
        self.reason = " ".join(reason.split())

    def __str__(self) -> str:
        return f"{self.locator}: {self.reason}"


class Place(NamedTuple):
    """Where a locator points: a file or URL, and which part of it."""

    path: str
    offset: int | None = None
    size: int = 0
    row: int | None = None
    column: str = "image"
    frame: int | None = None
    frames: int = 1


class ImageStore:
    """Opens the locators of one pool. Cheap to make, picklable; threads share it, processes open their own files."""

    def __init__(self, root: str | Path) -> None:
        self.root = str(root)

    def __getstate__(self) -> dict[str, str]:
        return {"root": self.root}

    def place(self, locator: str) -> Place:
        """The file or URL behind a locator, and the part of it. A frame of a folder of pictures is a file of its own.

        Raises ImageError where a clip has no such frame.
        """
        match = _FRAGMENT.fullmatch(locator)
        path = match["path"] if match else locator
        if "://" not in path:
            path = f"{self.root.rstrip('/')}/{path}" if "://" in self.root else os.path.join(self.root, path)
        if match is None:
            return Place(path)
        if match["frame"] is not None:
            return _frame(locator, path, int(match["frame"]), int(match["frames"]))
        if match["row"] is not None:
            return Place(path, row=int(match["row"]), column=match["column"] or "image")
        return Place(path, offset=int(match["offset"]), size=int(match["size"]))

    def stamp(self, locator: str) -> tuple[int, int]:
        """(size, time of change in ns) of the file that holds the picture; the time is 0 for URLs.

        Raises ImageError where there is no such file.
        """
        path = self.place(locator).path
        try:
            if "://" in path:
                fs, name = url_to_fs(path)
                return int(fs.info(name).get("size") or 0), 0
            stat = os.stat(path)
            return stat.st_size, stat.st_mtime_ns
        except Exception as error:
            raise ImageError(locator, _why_unreadable(error)) from error

    def read(self, locator: str) -> bytes:
        """The encoded bytes of a picture. Raises ImageError."""
        place = self.place(locator)
        try:
            if place.frame is not None:
                data = frame_of_video(place.path, place.frame, place.frames)
            elif place.row is not None:
                data = self._files.row(place)
            elif place.offset is not None:
                data = self._files.range(place)
            elif "://" in place.path:
                fs, name = url_to_fs(place.path)
                data = fs.cat_file(name)
            else:
                with open(place.path, "rb") as file:
                    data = file.read()
        except Exception as error:  # fsspec's backends each bring their own exceptions; none may stop a run of days
            raise ImageError(locator, _why_unreadable(error)) from error
        if not data:
            raise ImageError(locator, "empty file")
        if place.offset is not None and len(data) < place.size:
            raise ImageError(locator, f"truncated: the archive ends after {len(data)} of its {place.size} bytes")
        return data

    def load(self, locator: str) -> Image.Image:
        """The picture in RGB, wholly decoded. Raises ImageError."""
        return decode(self.read(locator), locator)

    @property
    def _files(self) -> _OpenFiles:
        """This process's open files: a forked worker must not share read positions or locks with its parent."""
        files = self.__dict__.get("_open")
        if files is None or files.pid != os.getpid():
            files = self.__dict__["_open"] = _OpenFiles()
        return files


def _frame(locator: str, path: str, frame: int, frames: int) -> Place:
    if frame >= frames:
        raise ImageError(locator, f"no such frame: of {frames} parts the last is {frames - 1}")
    if not os.path.isdir(path):
        return Place(path, frame=frame, frames=frames)
    try:
        return Place(frame_of_folder(path, frame, frames))
    except (OSError, ValueError) as error:
        raise ImageError(locator, _why_unreadable(error)) from error


def decode(data: bytes, locator: str, *, draft: bool = False) -> Image.Image:
    """An encoded picture in RGB, every pixel decoded. Raises ImageError naming ``locator``.

    ``draft`` gives JPEGs at an eighth of their size: all of the file is still parsed, in about half the time.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            # Pillow only warns below twice the limit, and filters for warnings are not safe among threads.
            if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError(f"{image.width}x{image.height} pixels")
            if draft:
                image.draft(None, (1, 1))
            image.load()
            with suppress(Exception):  # broken EXIF beside a sound picture: it stays as it lies
                ImageOps.exif_transpose(image, in_place=True)
            return _rgb(image)
    except UnidentifiedImageError as error:
        raise ImageError(locator, f"not an image: {len(data)} bytes that begin with {data[:12]!r}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(locator, f"too large: {error}") from error
    except Exception as error:  # hostile bytes raise anything from OSError to struct.error, zlib.error and SyntaxError
        raise ImageError(locator, f"truncated or corrupt: {error or type(error).__name__}") from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):  # Pillow's own conversion clips these at 255
        values = np.nan_to_num(np.asarray(image, dtype=np.float32))
        peak = float(values.max())
        white = 65535.0 if ";" in image.mode else next(top for top in (1.0, 255.0, 65535.0, peak) if peak <= top)
        image = Image.fromarray((values.clip(0, white) * (255 / white)).round().astype(np.uint8))
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white_page = Image.new("RGBA", image.size, "white")
        white_page.alpha_composite(image)
        image = white_page
    return image.convert("RGB")


def _why_unreadable(error: BaseException) -> str:
    if isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        error = error.__cause__  # what fsspec knows of a URL: no such page, no such host, no connection
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "missing file"
    if isinstance(error, IsADirectoryError):
        return "not an image: a folder"
    cause = error.strerror if isinstance(error, OSError) else None  # without the path, which the locator names
    return f"cannot be read: {cause or error or type(error).__name__}"


class _Descriptor:
    """A local file, closed when its last user lets go: another thread may still read what the cache has dropped."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if "number" in self.__dict__:
            os.close(self.number)


class _OpenFiles:
    """What one process holds open: descriptors, parquet files, and the row groups used last."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.Lock()
        self.descriptors = _Recent(_OPEN_FILES)
        self.parquets = _Recent(_OPEN_FILES)
        self.groups = _Recent(_ROW_GROUP_BYTES)

    def range(self, place: Place) -> bytes:
        assert place.offset is not None
        if "://" in place.path:
            fs, name = url_to_fs(place.path)
            return fs.cat_file(name, start=place.offset, end=place.offset + place.size)
        with self.lock:
            descriptor = self.descriptors.get(place.path, lambda: _Descriptor(place.path))
        return os.pread(descriptor.number, place.size, place.offset)  # pread: threads share no position

    def row(self, place: Place) -> bytes | None:
        assert place.row is not None
        with self.lock:  # also while decoding: neighbours wait for a row group instead of decoding it too
            file: _Parquet = self.parquets.get(place.path, lambda: _Parquet(place.path))
            group = int(np.searchsorted(file.ends, place.row, side="right"))
            if group == len(file.ends):
                raise ValueError(f"row {place.row} of a file of {file.ends[-1] if group else 0} rows")
            key = (place.path, place.column, group)
            images = self.groups.get(key, lambda: file.images(group, place.column), weigh=lambda array: array.nbytes)
        return images[place.row - int(file.ends[group - 1] if group else 0)].as_py()


class _Parquet:
    """A parquet file of pictures: a column of bytes, or of structs with a field ``bytes`` as Hugging Face has them."""

    def __init__(self, path: str) -> None:
        fs, name = url_to_fs(path)  # a plain path too: it opens as a local file
        self.file = pq.ParquetFile(fs.open(name))
        self.schema = self.file.schema_arrow
        meta = self.file.metadata
        self.ends = np.cumsum([meta.row_group(group).num_rows for group in range(meta.num_row_groups)])  # (row groups,)

    def images(self, group: int, column: str) -> pa.ChunkedArray:
        if column not in self.schema.names:
            raise ValueError(f"no column {column!r} among {', '.join(self.schema.names)}")
        if not pa.types.is_struct(self.schema.field(column).type):
            return self.file.read_row_group(group, columns=[column]).column(0)
        return self.file.read_row_group(group, columns=[f"{column}.bytes"]).column(0).flatten()[0]


class _Recent:
    """What was used last, up to a total weight; the newest two stay however heavy they are, for threads that go through
    a file in order are at two of its parts at once."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.weight = 0
        self.items: OrderedDict[Any, tuple[Any, int]] = OrderedDict()

    def get(self, key: Any, make: Callable[[], Any], weigh: Callable[[Any], int] = lambda _: 1) -> Any:
        if key in self.items:
            self.items.move_to_end(key)
            return self.items[key][0]
        value = make()
        weight = weigh(value)
        self.items[key] = value, weight
        self.weight += weight
        while self.weight > self.limit and len(self.items) > 2:
            self.weight -= self.items.popitem(last=False)[1][1]
        return value
