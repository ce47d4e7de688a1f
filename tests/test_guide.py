"""The Python in the documentation runs as it stands there."""

import re
import shlex
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import typer
from torch import nn

import truesparse as ts
from truesparse.algorithms import ALGORITHMS
from truesparse.cli.main import app, with_optional_values

ROOT = Path(__file__).parent.parent
RUN_BY_ITS_OWN_TEST = {
    "docs/guide/files.md",
    "docs/guide/frameworks.md",
    "docs/guide/from-dense.md",  # tests/test_guide_from_dense.py
    "docs/guide/gpu.md",  # tests/gpu: what it shows needs a GPU
    "docs/guide/language-models.md",  # tests/pruning/test_language_models_page.py
    "docs/guide/many-processes.md",  # tests/examples/test_ddp.py
    "docs/guide/plots.md",
    "docs/guide/report.md",
    "docs/guide/write-your-own.md",
}


def blocks(text, language="python"):
    """The code between fences that begin with ``` and the language."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [code for found, code in fenced if found == language]


def pages():
    found = [path for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")) if blocks(path.read_text())]
    return sorted({str(path.relative_to(ROOT)) for path in found} - RUN_BY_ITS_OWN_TEST)


@pytest.fixture
def given(tmp_path, monkeypatch):
    """What a page takes for granted: a model, an optimizer, a rewirer, data."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # where layouts are remembered
    monkeypatch.setattr("truesparse.inference.choice.SECONDS", 0.001)
    monkeypatch.chdir(tmp_path)

    def network():
        return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))

    model = ts.sparsify(network(), 0.5)
    optimizer = torch.optim.Adam(model.parameters())
    return {
        "torch": torch,
        "nn": nn,
        "F": F,
        "ts": ts,
        "MyNet": network,
        "total_steps": 1000,
        "model": model,
        "optimizer": optimizer,
        "rewirer": ts.Rewirer(model, optimizer, ts.RigL(), every=10),
        "loader": [(torch.randn(6, 8), torch.randint(4, (6,))) for _ in range(25)],
        "x": torch.randn(6, 8),
        "path": tmp_path / "checkpoint.pt",
    }


@pytest.mark.parametrize("page", pages())
def test_the_code_of_a_page_runs(page, given):
    for block in blocks((ROOT / page).read_text()):
        exec(compile(block, page, "exec"), given)


def test_the_first_page_ends_with_packed_layers(given):
    """The Rewirer of the page is still alive there, and holds nothing back."""
    for block in blocks((ROOT / "docs" / "start.md").read_text()):
        exec(compile(block, "docs/start.md", "exec"), given)
    explanation = given["fast"].explain()
    assert [row.layer for row in explanation.rows] == list(given["rewirer"].layers)
    assert not explanation.hooked
    assert not explanation.whole
    assert not explanation.untraced


def test_pages_are_found():
    assert {"README.md", "docs/concepts.md", "docs/faq.md", "docs/guide/training.md", "docs/index.md", "docs/start.md"} <= set(pages())


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_page_of_an_algorithm(name, hooks, given):
    kind = ALGORITHMS[name]
    page = hooks.page(name, kind)
    exec(compile(blocks(page)[0], name, "exec"), given)
    assert given["rewirer"].algorithm == kind(), "settings are the defaults"
    result = [line for line in page.splitlines() if line.startswith(f"| {name} |")]
    assert len(result) == 1
    assert result[0] in (ROOT / "docs" / "comparison.md").read_text()


def commands():
    """Every command that a page tells a reader to type, without its comment."""
    texts = [path.read_text() for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))]
    fenced = [line for text in texts for language in ("", "sh") for block in blocks(text, language) for line in block.splitlines()]
    return sorted({line.partition(" #")[0].strip() for line in fenced if line.startswith("truesparse ")})


def parsed(command):
    """Down to the innermost command, as the command line reads it; nothing is run."""
    context = typer.main.get_command(app).make_context("truesparse", with_optional_values(shlex.split(command)[1:]))
    while hasattr(context.command, "resolve_command") and (words := [*context._protected_args, *context.args]):
        name, inner, rest = context.command.resolve_command(context, words)
        context = inner.make_context(name, rest, parent=context)
    return context


@pytest.mark.parametrize("command", commands())
def test_a_command_has_the_options_it_is_shown_with(command):
    parsed(command)


def test_commands_are_read_to_the_end():
    assert parsed("truesparse bench linear --threads 1,2").info_name == "linear"
    with pytest.raises(Exception, match=r"No such option: --thread"):
        parsed("truesparse bench linear --thread-count 1")
    assert len(commands()) > 20
