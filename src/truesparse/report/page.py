"""How do runs become a page? A template, its style and script, and what it shows, in one file that opens without a network."""

from __future__ import annotations

import base64
import gzip
import html
import json
from collections.abc import Sequence
from pathlib import Path

from ..common.files import write_atomically
from ..runs import RunError
from .content import page_content
from .run import Run

TEMPLATE = Path(__file__).parent / "template"
STYLES = ("page.css",)
SCRIPTS = ("format.js", "charts.js", "masks.js", "sections.js", "topology.js", "life.js", "pruning.js", "page.js")


def write_page(runs: Sequence[Run], path: Path) -> None:
    """The page as the file `path`, whole or not at all.

    Raises:
        RunError: if a file of a run is missing or damaged, or the page cannot be written.
        ValueError: if there is no run.
    """
    content = page(runs)
    try:
        write_atomically(path, content)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}; choose another place with --out") from error


def page(runs: Sequence[Run]) -> str:
    """The page as text.

    Args:
        runs: one, or several to lay over each other.

    Raises:
        RunError: if a file of a run is missing or damaged.
        ValueError: if there is no run.
    """
    if not runs:
        raise ValueError("expected at least one run to report on, got none")
    content = json.dumps(page_content(runs), separators=(",", ":")).encode()
    parts = {
        "title": html.escape(" and ".join(dict.fromkeys(run.recipe for run in runs))),
        "style": "\n".join((TEMPLATE / name).read_text(encoding="utf-8") for name in STYLES),
        "script": "\n".join((TEMPLATE / name).read_text(encoding="utf-8") for name in SCRIPTS),
        # Compressed: positions are most of it. No time in the header: equal runs give equal pages.
        "content": base64.b64encode(gzip.compress(content, mtime=0)).decode(),
    }
    text = (TEMPLATE / "page.html").read_text(encoding="utf-8")
    for name, part in parts.items():
        text = text.replace(f"<!--{name}-->", part)
    return text
