"""The pictures of docs/concepts.md, drawn from real topologies: `python docs/site/pictures.py` writes docs/images/concepts-*.svg."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import truesparse as ts
from truesparse.nn import topology_layers

IMAGES = Path(__file__).parents[1] / "images"
CELL = 14
INK, QUIET, ABSENT = "#1f2933", "#7b8794", "#eef1f4"
KEPT, DROPPED, GROWN = "#17807e", "#d64545", "#3f9142"


class Picture:
    """Collects shapes; a white card, so that it reads on light and dark pages alike."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.shapes: list[str] = []

    def box(self, x: float, y: float, fill: str, size: float = CELL, opacity: float = 1.0) -> None:
        side = size - 2
        self.shapes.append(
            f'<rect x="{x + 1:g}" y="{y + 1:g}" width="{side:g}" height="{side:g}" rx="2" fill="{fill}" opacity="{opacity:.2f}"/>'
        )

    def bar(self, x: float, y: float, width: float, height: float, fill: str) -> None:
        self.shapes.append(f'<rect x="{x:g}" y="{y:g}" width="{width:.1f}" height="{height:g}" rx="2" fill="{fill}"/>')

    def text(self, x: float, y: float, text: str, size: int = 13, fill: str = INK, anchor: str = "start", weight: int = 400) -> None:
        style = f'font-size="{size}" fill="{fill}" text-anchor="{anchor}" font-weight="{weight}"'
        self.shapes.append(f'<text x="{x:g}" y="{y:g}" {style}>{text}</text>')

    def grid(self, x: float, y: float, rows: int, columns: int, fill: Callable[[int, int], tuple[str, float]]) -> None:
        for row in range(rows):
            for column in range(columns):
                colour, opacity = fill(row, column)
                self.box(x + column * CELL, y + row * CELL, colour, opacity=opacity)

    def write(self, name: str, title: str) -> None:
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" width="{self.width}" height="{self.height}"'
        )
        font = 'font-family="system-ui, -apple-system, Segoe UI, Roboto, sans-serif"'
        card = f'<rect width="{self.width}" height="{self.height}" rx="8" fill="#ffffff"/>'
        (IMAGES / name).write_text("\n".join([f'{head} {font} role="img">', f"<title>{title}</title>", card, *self.shapes, "</svg>", ""]))


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def simulated() -> None:
    rows, columns = 10, 14
    topology = ts.Unstructured().random((rows, columns), 14, generator(3))
    weight, mask = torch.rand(rows, columns, generator=generator(5)) * 0.75 + 0.25, topology.mask()
    picture = Picture(800, 270)
    width, top = columns * CELL, 62
    picture.text(24, 30, "simulated: a mask over a dense weight", 15, weight=600)
    picture.grid(24, top, rows, columns, lambda row, column: (KEPT, float(weight[row, column])))
    picture.text(24 + width + 16, top + rows * CELL / 2 + 5, "×", 20, QUIET)
    second = 24 + width + 44
    picture.grid(second, top, rows, columns, lambda row, column: (INK if mask[row, column] else ABSENT, 1.0))
    under = top + rows * CELL + 22
    picture.text(24, under, f"{rows * columns} weights", 13, QUIET)
    picture.text(second, under, f"{rows * columns} zeros and ones", 13, QUIET)
    picture.text(24, under + 20, f"{rows * columns} gradients, {2 * rows * columns} numbers of Adam, {rows * columns} products", 13, QUIET)
    third = second + width + 56
    picture.text(third, 30, "truly sparse: the connections", 15, weight=600)
    for place, (row, column) in enumerate(zip(topology.rows.tolist(), topology.indices.tolist(), strict=True)):
        x = third + place * (CELL + 1)
        picture.box(x, top, KEPT, opacity=float(weight[row, column]))
        picture.text(x + CELL / 2, top + 32, str(column), 9, QUIET, "middle")
    picture.text(third, top + 56, f"{topology.nnz} weights, and the columns they read", 13, QUIET)
    picture.text(third, top + 76, f"{topology.nnz} gradients, {2 * topology.nnz} numbers of Adam,", 13, QUIET)
    picture.text(third, top + 94, f"{topology.nnz} products", 13, QUIET)
    picture.write("concepts-simulated.svg", "A mask over a dense weight beside the connections alone")


def update() -> None:
    rows, columns, count = 10, 16, 10
    before = ts.Unstructured().random((rows, columns), 40, generator(2))
    values = torch.rand(before.nnz, generator=generator(4))
    kept = ts.Unstructured().drop(before, values, count)
    after = ts.Unstructured().grow_random(kept, before.nnz, generator(9))
    old, new, stays = before.mask(), after.mask(), kept.mask()
    picture = Picture(800, 250)
    step, top = columns * CELL + 36, 58

    def cell(mask: torch.Tensor, marked: torch.Tensor | None, colour: str) -> Callable[[int, int], tuple[str, float]]:
        return lambda row, column: (colour if marked is not None and marked[row, column] else KEPT if mask[row, column] else ABSENT, 1.0)

    for place, (title, fill, note) in enumerate(
        [
            ("before", cell(old, None, KEPT), f"{before.nnz} connections"),
            ("dropped: the smallest weights", cell(old, old & ~stays, DROPPED), f"{before.nnz - kept.nnz} dropped, {kept.nnz} kept"),
            ("grown: by gradient or chance", cell(new, new & ~stays, GROWN), f"{after.nnz - kept.nnz} grown, {after.nnz} again"),
        ]
    ):
        x = 24 + place * step
        picture.text(x, 34, title, 14, weight=600)
        picture.grid(x, top, rows, columns, fill)
        picture.text(x, top + rows * CELL + 22, note, 13, QUIET)
    picture.write("concepts-update.svg", "A topology before and after an update")


def patterns() -> None:
    shape, drawn = (8, 8), [ts.Unstructured(), ts.FanIn(), ts.SharedFanIn(4), ts.NM(1, 4), ts.Block(4), ts.Neurons()]
    picture = Picture(960, 200)
    for place, pattern in enumerate(drawn):
        mask = pattern.random(shape, 16, generator(6)).mask()
        x = 24 + place * 155
        picture.text(x, 34, str(pattern), 14, weight=600)
        picture.grid(x, 54, *shape, lambda row, column, mask=mask: (KEPT if mask[row, column] else ABSENT, 1.0))
        picture.text(x, 54 + shape[0] * CELL + 22, f"{int(mask.sum())} of {mask.numel()}", 13, QUIET)
    picture.write("concepts-patterns.svg", "Six patterns at the same sparsity")


def budgets() -> None:
    def network() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 16, 3), nn.Conv2d(16, 32, 3), nn.Conv2d(32, 64, 3), nn.Flatten(), nn.Linear(1600, 128), nn.Linear(128, 10)
        )

    names = ["1 → 16, 3×3", "16 → 32, 3×3", "32 → 64, 3×3", "1600 → 128", "128 → 10"]
    picture = Picture(800, 230)
    for place, (budget, title) in enumerate({"uniform": "uniform", "er": "ER", "erk": "ERK"}.items()):
        x = 130 + place * 225
        layers = topology_layers(ts.sparsify(network(), 0.9, budget=budget, generator=generator()))
        total = sum(layer.topology.nnz for layer in layers.values())
        picture.text(x, 34, title, 14, weight=600)
        for line, (name, layer) in enumerate(zip(names, layers.values(), strict=True)):
            y = 52 + line * 28
            if place == 0:
                picture.text(x - 14, y + 14, name, 12, QUIET, "end")
            density = 1 - layer.topology.sparsity
            picture.bar(x, y, 140, 18, ABSENT)
            picture.bar(x, y, 140 * density, 18, KEPT)
            picture.text(x + 148, y + 14, f"{density:.0%}", 12, QUIET)
        picture.text(x, 52 + 5 * 28 + 18, f"{total:,} connections", 13, QUIET)
    picture.write("concepts-budgets.svg", "Densities of the layers of a network under three budgets, 90 % sparse in all")


if __name__ == "__main__":
    for draw in (simulated, update, patterns, budgets):
        draw()
