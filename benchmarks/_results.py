"""What a benchmark leaves: numbers that are computed once and kept, and a table of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tldr.atomic import atomic_path, write_json


def kept(file: Path, compute: Callable[[], Any]) -> Any:
    """What ``compute`` gives, from ``file`` if it is there."""
    if not file.is_file():
        write_json(file, compute())
    return json.loads(file.read_text(encoding="utf-8"))


def markdown(lines: Sequence[Sequence[str]], rule: Sequence[str] | None = None) -> str:
    """A table, its first line the head; ``rule`` sets the columns, by default all but the first to the right."""
    rule = rule or ["---", *["---:"] * (len(lines[0]) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])


def publish(out: Path, rows: list[dict[str, Any]], settings: dict[str, Any], table: str) -> None:
    """Write and print them: ``results.json`` and ``results.md``."""
    write_json(out / "results.json", {"rows": rows, "settings": settings})
    with atomic_path(out / "results.md") as temporary:
        temporary.write_text(table + "\n", encoding="utf-8")
    print(f"\n{table}\n\nwrote {out / 'results.json'} and results.md")
