"""Which pages are made from the code itself? One for each algorithm and criterion, from its file; and the decisions from their folder."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from truesparse.algorithms import ALGORITHMS
from truesparse.pruning import CRITERIA
from truesparse.runs.algorithm import usual_terms
from truesparse.runs.presets import PRESETS
from truesparse.testing import PATTERNS, reason_against

DOCS = Path(__file__).parents[1]
COMPARED = "mnist-mlp"  # the table of docs/comparison.md that a page takes its small result from
BESIDE = "dense (0%)", "static"
URL = re.compile(r"https?://\S+")
FETCHED = re.compile(r"""<(?:script|link|img|iframe)\b(?![^>]*rel="canonical")[^>]*\b(?:src|href)="?((?:https?:)?//[^"\s>]+)""")


def on_config(config: Any) -> Any:
    """Fills the places of the navigation that folders decide."""
    algorithms = [{title(kind): f"algorithms/{name}.md"} for name, kind in ALGORITHMS.items()]
    criteria = [{title(kind): f"criteria/{name}.md"} for name, kind in CRITERIA.items()]
    decisions = [f"decisions/{path.name}" for path in sorted((DOCS / "decisions").glob("*.md"))]
    config.nav = filled(config.nav, {"ALGORITHMS": algorithms, "CRITERIA": criteria, "DECISIONS": decisions})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages of the algorithms and of the criteria."""
    for name, kind in ALGORITHMS.items():
        files.append(File.generated(config, f"algorithms/{name}.md", content=page(name, kind)))
    for name, kind in CRITERIA.items():
        files.append(File.generated(config, f"criteria/{name}.md", content=criterion_page(name, kind)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fills in the lists; pages that link to files beside the documentation find what stands for them here."""
    made = {"<!-- algorithms -->": overview, "<!-- criteria -->": criteria_overview, "<!-- presets -->": presets}
    for place, make in made.items():
        if place in markdown:
            markdown = markdown.replace(place, make())
    return markdown.replace("(../README.md)", "(index.md)").replace("(../../CONTRIBUTING.md)", "(../architecture.md)")


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """
    Raises:
        PluginError: if a page would fetch something from elsewhere.
    """
    if fetched := FETCHED.search(output):
        raise PluginError(f"{page.file.src_uri} fetches {fetched[1]}: the documentation must open without a network")
    return output


def filled(nav: list[Any], places: dict[str, list[Any]]) -> list[Any]:
    found: list[Any] = []
    for entry in nav:
        if isinstance(entry, dict):
            found.append({key: filled(value, places) if isinstance(value, list) else value for key, value in entry.items()})
        else:
            found.extend(places.get(entry, [entry]))
    return found


def title(kind: type) -> str:
    return kind.__name__


def described(kind: type) -> tuple[str, str]:
    """(what it does, the paper as a link), from the first line of its file."""
    first = (inspect.getdoc(sys.modules[kind.__module__]) or "").splitlines()[0]
    rule, _, paper = first.partition(". ")
    link = URL.search(paper)
    if link is None:
        return first, ""
    return rule.partition(": ")[2] or rule, f"[{paper[: link.start()].strip().rstrip(',')}]({link[0]})"


def overview() -> str:
    rows = [f"| [{title(kind)}]({name}.md) | {rule} | {paper} |" for name, kind in ALGORITHMS.items() for rule, paper in [described(kind)]]
    return "\n".join(["| algorithm | what it drops, what it grows | paper |", "|---|---|---|", *rows])


def criteria_overview() -> str:
    rows = [
        f"| [{title(kind)}]({name}.md) | {rule} | {measured(kind)} | {getattr(kind, 'across', 'layer')} | {paper} |"
        for name, kind in CRITERIA.items()
        for rule, paper in [described(kind)]
    ]
    return "\n".join(["| criterion | what goes | looks at | who competes | paper |", "|---|---|---|---|---|", *rows])


def measured(kind: type) -> str:
    """What a criterion looks at beside the weights."""
    try:
        needs = getattr(kind(), "needs", ())
    except ValueError:
        return "a history"
    return ", ".join(need.replace("_", " ") for need in needs) or "weights"


def presets() -> str:
    return "\n".join(["| option | |", "|---|---|", *(f"| `--algorithm {name}` | {preset.described} |" for name, preset in PRESETS.items())])


def page(name: str, kind: type) -> str:
    terms = usual_terms(kind)
    command = ["```", f"truesparse train mnist-mlp --algorithm {name} --sparsity 0.95", "```", ""]
    rewires = [f"Rewires, unless told otherwise: {'; '.join(terms)}." if terms else "", ""]
    return "\n".join(
        [*opening(kind, example(kind)), *command, *rewires, *reference(kind), *result(name), *listing("algorithms", name, kind)]
    )


def criterion_page(name: str, kind: type) -> str:
    competes = f"Competes, unless told otherwise: {getattr(kind, 'across', 'layer')}. Looks at: {measured(kind)}."
    return "\n".join([*opening(kind, criterion_example(kind)), competes, "", *reference(kind), *listing("pruning/criteria", name, kind)])


def opening(kind: type, code: str) -> list[str]:
    rule, paper = described(kind)
    return [f"# {title(kind)}", "", f"**{rule[:1].upper()}{rule[1:]}.** {paper}", "", "```python", code, "```", ""]


def reference(kind: type) -> list[str]:
    return [
        f"::: {kind.__module__}.{kind.__name__}",
        "    options: {show_root_heading: false, show_root_toc_entry: false, members: []}",
        "",
        "## Patterns",
        "",
        "| pattern | |",
        "|---|---|",
        *(f"| `{pattern}` | {reason_against(kind(), pattern) or 'yes'} |" for pattern in PATTERNS),
        "",
    ]


def listing(folder: str, name: str, kind: type) -> list[str]:
    source = Path(inspect.getfile(kind)).read_text()
    return ["## The file", "", f"`{folder}/{name}.py`, {len(source.splitlines())} lines:", "", "```python", source.rstrip(), "```", ""]


def example(kind: type) -> str:
    """The lines of a user's script, with what the algorithm wants of the model and every setting at its default."""
    settings = ", ".join(f"{field.name}={field.default!r}" for field in dataclasses.fields(kind))
    start, pattern = getattr(kind, "start_sparsity", 0.95), getattr(kind, "default_pattern", None)
    wanted = f", pattern=ts.{pattern}" if pattern is not None else ""
    return "\n".join(
        [
            f"model = ts.sparsify(MyNet(), sparsity={start}{wanted})",
            "optimizer = torch.optim.Adam(model.parameters())",
            f"algorithm = ts.{title(kind)}({settings})",
            "rewirer = ts.Rewirer(model, optimizer, algorithm, every=100, until=0.75 * total_steps)",
        ]
    )


def criterion_example(kind: type) -> str:
    """The lines of a user's script, with what the criterion measures and every setting at its default."""
    looks = measured(kind)
    if looks == "a history":
        return f"history = ts.pruning.History(model)\n...  # fine-tune\nts.prune(model, 0.5, ts.criteria.{title(kind)}(history))"
    settings = ", ".join(f"{field.name}={field.default!r}" for field in dataclasses.fields(kind))
    data = "" if looks == "weights" else ", data=loader"
    loss = ", loss=F.cross_entropy" if "gradient" in looks or "hessian" in looks else ""
    pattern = "" if reason_against(kind(), PATTERNS[0]) is None else ', pattern="neurons", exclude=["head"]'
    return f"ts.prune(model, 0.5, ts.criteria.{title(kind)}({settings}){data}{loss}{pattern})"


def result(name: str) -> list[str]:
    """Its line of the comparison's first table of that task, beside dense and static."""
    text = (DOCS / "comparison.md").read_text()
    section = text.partition(f"<!-- {COMPARED} -->")[2].partition("<!-- /")[0]
    lines = [line for line in section.splitlines() if line.startswith("|") and not line.startswith("|---")]
    if not lines:
        return []
    until = next((index for index, line in enumerate(lines[1:], 1) if line.startswith("| time")), len(lines))
    rows = [line for line in lines[1:until] if line.split(" | ")[0].strip("| ") in (*BESIDE, name)]
    mean = next(line for line in section.splitlines() if line and not line.startswith("|"))
    ruler = "|" + "---|" * (lines[0].count("|") - 1)
    return ["## A small result", "", mean, "", lines[0], ruler, *rows, "", "All of them: [compared](../comparison.md).", ""]
