"""What the pictures show is what the files of the run say, read here by themselves."""

import json
import subprocess
import sys
from itertools import pairwise

import numpy
import pytest
import torch
from oracles import topology_of
from PIL import Image
from safetensors.torch import load_file

import truesparse as ts
from truesparse.cli.main import run
from truesparse.report import read_run
from truesparse.topology.picture import PALETTES


def masks_of(path, layer, shape, variant="sparse"):
    """The mask after each update, by step, from the files alone."""
    at = load_file(path / variant / "topologies" / "epoch-0000.safetensors")
    masks = {0: ts.Topology(shape, at[f"{layer}.indptr"], at[f"{layer}.indices"]).mask()}
    for epoch in (1, 2, 3):
        stored = load_file(path / variant / "updates" / f"epoch-{epoch:04d}.safetensors")
        cursor = {"dropped": 0, "grown": 0}
        for number, step in enumerate(stored["steps"].tolist()):
            mask = masks[max(masks)].clone().flatten()
            for kind, value in (("dropped", False), ("grown", True)):
                count = int(stored[f"{layer}.{kind}_counts"][number])
                gaps = stored[f"{layer}.{kind}"][cursor[kind] : cursor[kind] + count].long()
                mask[gaps.cumsum(0)] = value  # positions are stored as their distances
                cursor[kind] += count
            masks[step] = mask.view(shape)
    return masks


def pictures(figure):
    return [torch.tensor(numpy.asarray(axes.images[0].get_array())) for axes in figure.axes if axes.images]


def is_colour(image, colour):
    return (image == torch.tensor(colour, dtype=torch.uint8)).all(-1)


@pytest.fixture(scope="module")
def masks(digits):
    return masks_of(digits, "3", (64, 128))


@pytest.mark.parametrize("palette", PALETTES)
def test_a_frame_has_the_connections_of_the_files(digits, masks, palette):
    for before, step in ((0, 10), (10, 20), (80, 90)):
        (image,) = pictures(ts.plot.mask_evolution(digits, "3", step, palette=palette))
        old, new, shades = masks[before], masks[step], PALETTES[palette]
        assert (old != new).any()
        assert torch.equal(is_colour(image, shades.unchanged), old & new)
        assert torch.equal(is_colour(image, shades.dropped), old & ~new)
        assert torch.equal(is_colour(image, shades.grown), new & ~old)
        assert torch.equal(is_colour(image, (0, 0, 0)), ~old & ~new)


def test_titles_count(digits, masks):
    figure = ts.plot.mask_evolution(digits, "3", 25)
    dropped, grown = int((masks[10] & ~masks[20]).sum()), int((masks[20] & ~masks[10]).sum())
    assert figure.axes[0].get_title() == f"step 20\n{dropped} dropped, {grown} grown", "the last update at or before the step"
    assert figure.get_suptitle() == "digits, layer 3, 64 x 128"


def test_the_strip_begins_and_ends_where_the_run_does(digits, masks):
    found = pictures(ts.plot.mask_evolution(digits, "3"))
    assert len(found) == 6
    assert torch.equal(is_colour(found[0], (255, 255, 255)), masks[0])
    last = PALETTES["usual"]
    assert torch.equal(is_colour(found[-1], last.unchanged) | is_colour(found[-1], last.grown), masks[max(masks)])
    masked = pictures(ts.plot.mask_evolution(digits, "3", variant="masked"))
    assert all(torch.equal(one, other) for one, other in zip(found, masked, strict=True)), "the twins have the same topologies"


def test_large_layers_say_that_positions_share_a_pixel(monkeypatch):
    figure = ts.plot.topology(ts.SparseLinear(2000, 600, sparsity=0.99))
    (image,) = pictures(figure)
    assert image.shape == (300, 667, 3)
    assert "600 x 2,000" in figure.axes[0].get_title()


def test_topologies_at_hand():
    topology = topology_of("xx.. .x.x")
    (image,) = pictures(ts.plot.topology(topology))
    assert torch.equal(is_colour(image, (255, 255, 255)), topology.mask())
    layer = ts.MaskedLinear(6, 4, sparsity=0.5)
    (image,) = pictures(ts.plot.topology(layer))
    assert torch.equal(is_colour(image, (255, 255, 255)), layer.topology.mask())
    figure = ts.plot.change(topology, topology_of("x.x. .x.x"))
    assert figure.axes[0].get_title() == "1 dropped, 1 grown"
    (image,) = pictures(figure)
    assert is_colour(image, PALETTES["usual"].dropped).nonzero().tolist() == [[0, 1]]
    with pytest.raises(ValueError, match=r"expected topologies of one shape, got \(2, 4\) and \(1, 2\)"):
        ts.plot.change(topology, topology_of("xx"))


def test_the_heat_map_counts_columns(digits):
    path = masks_of(digits, "1", (128, 64))
    found = pictures(ts.plot.input_heat_map(digits))
    assert torch.equal(found[0], path[0].sum(0).view(8, 8))
    assert torch.equal(found[1], path[max(path)].sum(0).view(8, 8))
    unseen = int((path[20].sum(0) == 0).sum())
    figure = ts.plot.input_heat_map(digits, "1", step=20)
    assert figure.axes[0].get_title() == f"step 20\n{unseen} of 64 pixels unseen"
    with pytest.raises(ValueError, match="expected a layer of digits that sees its samples: '1'"):
        ts.plot.input_heat_map(digits, "3")


def lines_of(path, variant):
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["variant"] == variant]


def plotted(axes):
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}


def test_curves(digits):
    figure = ts.plot.curves(digits)
    loss, accuracy = figure.axes
    lines = lines_of(digits, "sparse")
    assert plotted(loss)["truly sparse"] == ([1, 2, 3], [line["test_loss"] for line in lines])
    assert list(accuracy.lines[2].get_ydata()) == [100 * line["test_accuracy"] for line in lines]
    at = plotted(ts.plot.curves(digits, "flops").axes[0])["truly sparse"][0]
    assert at == [line["flops"]["training"] for line in lines]
    at = plotted(ts.plot.curves(digits, "seconds").axes[0])["dense"][0]
    assert at[-1] == pytest.approx(sum(line["seconds"] for line in lines_of(digits, "dense")))
    both = ts.plot.curves([digits, read_run(digits)])
    assert len(both.axes[0].lines) == 2 * len(loss.lines)


def test_layers_and_step_time(digits):
    axes = ts.plot.layers(digits).axes[0]
    last = lines_of(digits, "sparse")[-1]["layers"]
    assert [bar.get_width() for bar in axes.patches] == [layer["connections"] for layer in last.values()]
    axes = ts.plot.step_time(digits).axes[0]
    results = json.loads((digits / "results.json").read_text())["variants"]
    total = sum(bar.get_width() for bar in axes.patches if bar.get_y() == axes.patches[2].get_y())
    assert total == pytest.approx(1e3 * sum(results[2]["step_seconds"].values()))


def test_life(digits, masks):
    steps, first = sorted(masks), masks[0]
    alive, at = [int(first.sum())], first.clone()
    for step in steps[1:]:
        at &= masks[step]
        alive.append(int(at.sum()))
    found = plotted(ts.plot.survival(digits, "3").axes[0])["3"]
    assert found == (steps, pytest.approx([count / alive[0] for count in alive]))
    union, rates = torch.zeros_like(first), []
    for step in steps:
        union |= masks[step]
        rates.append(union.double().mean().item())
    assert plotted(ts.plot.explored(digits).axes[0])["3"] == (steps, pytest.approx(rates))
    pairs = [(masks[before], masks[step]) for before, step in pairwise(steps)]
    jaccard = [1 - int((old & new).sum()) / int((old | new).sum()) for old, new in pairs]
    assert plotted(ts.plot.mask_distance(digits, "3").axes[0])["3"] == (steps[1:], pytest.approx(jaccard))
    bars = ts.plot.changes(digits, "3").axes[0].patches
    assert [bar.get_height() for bar in bars] == [
        *(int((new & ~old).sum()) for old, new in pairs),
        *(-int((old & ~new).sum()) for old, new in pairs),
    ]
    dead = plotted(ts.plot.neurons(digits, "3").axes[0])["3"]
    assert dead == (steps, [int((~masks[step].any(1)).sum()) for step in steps])


def test_fan_and_ages(digits, masks):
    figure = ts.plot.fan(digits, "3")
    for axes, dimension in zip(figure.axes, (1, 0), strict=True):
        stairs = {patch.get_label(): patch.get_data() for patch in axes.patches}
        counts = masks[max(masks)].sum(dimension)
        assert stairs["at the end"].values.sum() == counts.numel()
        expected, _ = numpy.histogram(counts.numpy(), stairs["at the end"].edges)
        assert list(stairs["at the end"].values) == list(expected)
    areas = ts.plot.ages(digits, "3").axes[0].collections
    top = max(path.vertices[:, 1].max() for area in areas for path in area.get_paths())
    assert top == int(masks[0].sum())
    oldest = areas[0].get_paths()[0].vertices
    survivors = torch.stack(list(masks.values())).all(0)
    assert oldest[oldest[:, 0] == max(masks)][:, 1].max() == int(survivors.sum())


def test_all_of_them(digits, dense, tmp_path):
    written = ts.plot.write_pictures(digits, tmp_path / "new" / "png")
    names = [path.stem for path in written]
    drawn = set(ts.plot.__all__) - {"write_all", "write_pictures", "topology", "change"}
    assert {name.replace("-", "_").rstrip("_135") for name in names} == drawn - {"curves"} | {
        "curves_epoch",
        "curves_seconds",
        "curves_flops",
    }
    assert [name for name in names if name.startswith("mask-evolution")] == [f"mask-evolution-{layer}" for layer in "135"]
    for path in written:
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert min(image.size) > 100
    from truesparse.plot.figure import png

    assert png(ts.plot.layers(digits)) == written[names.index("layers")].read_bytes(), "equal runs give equal files"
    assert {path.stem for path in ts.plot.write_pictures(dense, tmp_path / "dense")} == {
        "curves-epoch",
        "curves-seconds",
        "curves-flops",
        "step-time",
    }


def test_the_command(digits, dense, tmp_path, capsys):
    assert run(["report", str(dense), "--png", str(tmp_path / "png"), "--out", str(tmp_path / "page.html")]) == 0
    assert capsys.readouterr().out == f"4 pictures are in {tmp_path / 'png'}\nThe page is {tmp_path / 'page.html'}\n"
    assert run(["report", str(dense), str(dense), "--png", str(tmp_path / "both"), "--out", str(tmp_path / "page.html")]) == 0
    files = {str(path.relative_to(tmp_path / "both")) for path in (tmp_path / "both").rglob("*.png")}
    assert {"curves-epoch.png", "curves-seconds.png", "curves-flops.png", "dense/step-time.png", "dense-2/step-time.png"} <= files
    assert run(["report", str(dense), "--png", str(tmp_path / "new"), "--palette", "red"]) == 2
    assert "expected one of usual, safe, got 'red'" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert run(["report", str(dense), "--png", str(tmp_path / "file")]) == 1
    assert "cannot write" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda run, _: ts.plot.mask_evolution(run, "2"), "digits has no sparse layer '2'; its layers are '1', '3', '5'"),
        (lambda run, _: ts.plot.survival(run, "fc"), "digits has no sparse layer 'fc'; its layers are '1', '3', '5'"),
        (lambda run, _: ts.plot.gradients(run, "fc"), "digits has no sparse layer 'fc'"),
        (lambda run, _: ts.plot.mask_evolution(run, "1", variant="dense"), "with topologies: masked, sparse; got 'dense'"),
        (lambda run, _: ts.plot.mask_evolution(run, "1", -1), "expected a step of training, 0 or later, got -1"),
        (lambda run, _: ts.plot.mask_evolution(run, "1", palette="red"), "unknown palette 'red'; known are usual, safe"),
        (lambda run, _: ts.plot.survival(run, palette="red"), "unknown palette 'red'"),
        (lambda run, _: ts.plot.curves(run, "time"), "curves can be drawn over epoch, seconds, flops, not over 'time'"),
        (lambda run, _: ts.plot.curves([]), "expected at least one run, got none"),
        (lambda _, run: ts.plot.survival(run), "expected a variant of dense with topologies: there is none"),
        (lambda _, run: ts.plot.layers(run), "expected a variant of dense with topologies: there is none"),
    ],
)
def test_errors(digits, dense, call, said):
    with pytest.raises(ValueError, match=said):
        call(digits, dense)


def test_a_figure_shows_itself_in_a_notebook(digits):
    assert ts.plot.layers(digits)._repr_png_().startswith(b"\x89PNG")


def test_without_matplotlib(monkeypatch):
    from truesparse.plot.figure import _kind

    _kind.cache_clear()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"a picture needs .*matplotlib.*: pip install 'truesparse\[plot\]'"):
        ts.plot.topology(ts.SparseLinear(3, 2))


def test_truesparse_itself_imports_none_of_this():
    code = """
import sys, truesparse
print({"matplotlib", "PIL", "rich", "tensorboard", "mlflow", "wandb", "truesparse.plot", "truesparse.runs"} & set(sys.modules))
truesparse.plot.topology
print(truesparse.loggers.__name__, "matplotlib" in sys.modules)
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert finished.stdout == "set()\ntruesparse.loggers False\n"
