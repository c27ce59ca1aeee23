"""Frames of a clip: the middle one of the i-th of n equal parts, as video retrieval samples them (8 a clip in BLIP's
zero-shot MSRVTT, https://arxiv.org/abs/2201.12086).

A clip is a folder of pictures, its frames in the order of their names, or a video file, decoded by PyAV (an extra:
``pip install 'tldr-vlp[video]'``). A video is divided by time and not by frames, as few containers store their number;
the frame taken is the one on the screen at the middle of the part.
"""

from __future__ import annotations

import importlib
import io
import os
from typing import Any

from fsspec.core import url_to_fs

from tldr.data.base import PICTURES


def frame_of_folder(folder: str, part: int, parts: int) -> str:
    """The file of the frame. Raises ValueError where the folder has no picture."""
    names = sorted(name for name in os.listdir(folder) if name.lower().endswith(PICTURES) and not name.startswith("."))
    if not names:
        raise ValueError("a folder without pictures")
    return os.path.join(folder, names[(2 * part + 1) * len(names) // (2 * parts)])


def frame_of_video(path: str, part: int, parts: int) -> bytes:
    """The frame as PNG, from a local file or a URL.

    Raises OSError where there is no such file, ValueError where it is no video, or PyAV is not installed.
    """
    fs, name = url_to_fs(path)
    with fs.open(name) as file:  # first: that a file is missing is the better news
        try:
            av: Any = importlib.import_module("av")  # not `import av`: the package does without
        except ImportError as error:
            raise ValueError("frames of a video need PyAV: pip install 'tldr-vlp[video]'") from error
        with av.open(file) as container:
            if not container.streams.video:
                raise ValueError("a file without pictures, no video")
            stream = container.streams.video[0]
            wanted = (part + 0.5) / parts * _seconds(container, stream, av.time_base)
            start = float((stream.start_time or 0) * stream.time_base)
            container.seek(int((start + wanted) / stream.time_base), stream=stream)  # to the key frame before it
            shown = None
            for frame in container.decode(stream):
                if shown is not None and frame.time is not None and frame.time - start > wanted:
                    break
                shown = frame
            if shown is None:
                raise ValueError("a video without frames")
            buffer = io.BytesIO()
            shown.to_image().save(buffer, "PNG", compress_level=1)
            return buffer.getvalue()


def _seconds(container: Any, stream: Any, time_base: int) -> float:
    if stream.duration:
        return float(stream.duration * stream.time_base)
    if container.duration:
        return container.duration / time_base
    raise ValueError("a video that does not say how long it is")
