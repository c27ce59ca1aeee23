"""Files that are whole or not there: write under a temporary name beside the target, then rename."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """A temporary path to write to; on leaving, it becomes ``target``; on an error it is removed.

    The name is nobody else's, so that two processes writing the same file, of one machine or of two, do not disturb
    each other.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid4().hex}.tmp")
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(target: Path, value: Any) -> Path:
    """Write ``value`` as readable UTF-8 JSON, whole or not at all."""
    with atomic_path(target) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
    return target


def make_folder(folder: Path, key: str) -> None:
    """Make ``folder`` where it is not there. Raises ValueError naming ``key`` where something else is in its place."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"{key}={folder} is no folder, or lies in a file: give another {key}=...") from error
