"""A criterion is one file: it registers itself, names its paper, sees no layer, and its page of the documentation is made of it."""

import ast
import importlib
import importlib.util
import inspect
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import truesparse as ts
from truesparse.pruning import CRITERIA, STATISTICS, criteria

ROOT = Path(__file__).parents[2]
FOLDER = Path(criteria.__file__).parent
FILES = {path.stem: path for path in FOLDER.glob("*.py") if path.stem != "__init__"}
SEEN = {"...topology", "...topology.patterns", "...topology.select", "..base", "..history"}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_a_criterion_with_a_paper_that_knows_no_layer(name):
    kind = CRITERIA[name]
    assert kind.__module__ == f"truesparse.pruning.criteria.{name}"
    assert getattr(ts.criteria, kind.__name__) is kind
    assert kind.__name__ in ts.criteria.__all__
    page = importlib.import_module(kind.__module__).__doc__
    assert "https://" in page or name == "random"
    relative = [node for node in ast.walk(ast.parse(FILES[name].read_text())) if isinstance(node, ast.ImportFrom) and node.level]
    assert {"." * node.level + (node.module or "") for node in relative} <= SEEN
    assert inspect.getdoc(kind)


def test_every_criterion_has_a_file_and_is_known_to_those_who_read_types():
    assert set(CRITERIA) == set(FILES)
    told = (FOLDER / "__init__.py").read_text()
    for name, kind in CRITERIA.items():
        assert f"from .{name} import {kind.__name__} as {kind.__name__}" in told


def test_what_criteria_need_can_be_measured():
    for name, kind in CRITERIA.items():
        if name != "movement":
            assert set(getattr(kind(), "needs", ())) <= set(STATISTICS)


@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.filterwarnings("ignore:nearly pruned away", "ignore:.*singular")
def test_the_example_of_a_page_runs(name, hooks):
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    model.register_module("head", nn.Linear(4, 4))
    given = {"ts": ts, "F": F, "model": model, "loader": [(torch.randn(6, 8), torch.randint(4, (6,))) for _ in range(3)]}
    page = hooks.criterion_page(name, CRITERIA[name])
    code = page.split("```python\n")[1].split("```")[0].replace('["head"]', '["head", "3"]')
    exec(compile(code, name, "exec"), given)
    assert any(isinstance(module, ts.SparseLinear) for module in model.modules())
    assert "None" not in page.split("## The file")[0].replace("History | None", "")


def test_the_list_names_each_with_its_paper(hooks):
    lines = hooks.criteria_overview().splitlines()
    assert len(lines) == 2 + len(CRITERIA)
    assert (
        "| [SynFlow](synflow.md) | what many paths lead through stays, whatever the data | synaptic flow | network | [Tanaka et al. 2020]("
        in lines[-3]
    )
