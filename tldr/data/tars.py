"""Where files lie in a tar, by its headers alone: a picture is a range of bytes, and nothing is unpacked."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from typing import BinaryIO

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")  # endings of file names
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")  # how such files begin
_BLOCK = 512


def refusal(name: str) -> str:
    """What to tell a person whose tar is compressed."""
    return f"{name} is compressed: no picture in it can be read by itself; make it a plain .tar, e.g. with gunzip"


def members(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """The regular files in a tar, in their order; ``offset_data`` and ``size`` say where their bytes are. Meanwhile
    ``file`` may be read from.

    Raises ValueError if the tar is compressed; tarfile.ReadError if it is truncated, but only after yielding all files
    that it has, of which the last may be incomplete.
    """
    if file.read(6).startswith(_COMPRESSED):
        raise ValueError(refusal(file.name))
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]  or it keeps every header
            if tar.offset < member.offset_data:  # or it goes backwards for ever
                raise tarfile.ReadError(f"{member.name} has a size below 0")
            member.size = min(member.size, end - member.offset_data)
            if member.isfile():
                yield member
            if tar.offset > end:
                raise tarfile.ReadError(f"{member.name} is cut")
        file.seek(tar.offset)  # tarfile takes any block that is not a header for the end
        if file.read(_BLOCK) != bytes(_BLOCK):
            raise tarfile.ReadError(f"neither a header nor the mark of the end at byte {tar.offset} of {end}")
        while block := file.read(1 << 20):
            if block.strip(b"\0"):
                raise tarfile.ReadError(f"more follows the mark of the end at byte {tar.offset}: tars joined by cat?")
