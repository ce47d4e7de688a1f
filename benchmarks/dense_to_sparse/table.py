"""How are the results kept, and how do they become a table? Files of rows, to which each is added as soon as it is there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from truesparse.common.files import write_atomically
from truesparse.common.markdown import table_head, table_row

DENSE = "dense"
Way = Literal["one-shot", "fine-tuned", "rounds"]
TITLES = {"one-shot": "", "fine-tuned": ", fine-tuned", "rounds": ", in rounds"}


class Key(NamedTuple):
    network: str
    criterion: str
    sparsity: float
    way: Way


@dataclass(frozen=True)
class Row:
    """One result.

    Args:
        network, criterion, sparsity, way: of what.
        score: in percent.
        seconds: of a core, of pruning (one-shot), of fine-tuning (fine-tuned), or of both since the beginning (rounds).
        megabytes: of the file that `ts.save` writes.
        title: of the network.
        measure: what the score is.
    """

    network: str
    criterion: str
    sparsity: float
    way: Way
    score: float
    seconds: float
    megabytes: float
    title: str
    measure: str

    @property
    def key(self) -> Key:
        return Key(self.network, self.criterion, self.sparsity, self.way)


class Results:
    """All rows of all networks, in a folder with a file for each network."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def rows(self) -> list[Row]:
        return [row for path in sorted(self.folder.glob("*.json")) for row in _read(path)]

    def __contains__(self, key: tuple[object, ...]) -> bool:
        return any(row.key == key for row in self.rows)

    def add(self, row: Row) -> None:
        """Keep and print it, in the place of one with the same key."""
        path = self.folder / f"{row.network}.json"
        rows = [one for one in _read(path) if one.key != row.key] + [row]
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps([asdict(one) for one in rows], indent=1))
        said = f"{row.network:12}  {row.criterion:18}  {row.sparsity:4.0%}  {row.way:10}"
        print(f"{said}  {row.score:6.2f}  {row.seconds:7.1f} s  {row.megabytes:6.2f} MB", flush=True)


def _read(path: Path) -> list[Row]:
    return [Row(**row) for row in json.loads(path.read_text())] if path.exists() else []


def markdown(rows: Sequence[Row]) -> str:
    """A table of scores, a row for each network and criterion, and one of the sizes of files."""
    columns = sorted({(row.sparsity, row.way) for row in rows if row.criterion != DENSE}, key=_order)
    head = [f"{sparsity:.0%}{TITLES[way]}" for sparsity, way in columns]
    lines = table_head("network", "criterion", "dense", *head, "s to prune", "s to tune")
    for network, criterion in dict.fromkeys((row.network, row.criterion) for row in rows if row.criterion != DENSE):
        found = {row.key: row for row in rows if row.network == network}
        own = [row for row in found.values() if row.criterion == criterion]
        dense = [found.get(Key(network, DENSE, 0.0, way)) for way in ("one-shot", "fine-tuned")]
        cells = [found.get(Key(network, criterion, *column)) for column in columns]
        lines.append(
            table_row(
                f"{own[0].title}, {own[0].measure}",
                criterion,
                " / ".join(f"{row.score:.1f}" for row in dense if row),
                *(f"{row.score:.1f}" if row else "" for row in cells),
                _longest(own, "one-shot"),
                _longest(own, "fine-tuned"),
            )
        )
    return "\n".join([*lines, "", *_sizes(rows)])


def _sizes(rows: Sequence[Row]) -> Iterator[str]:
    sparsities = sorted({row.sparsity for row in rows})
    yield from table_head("MB of the file", *(f"{sparsity:.0%}" if sparsity else DENSE for sparsity in sparsities))
    for network in dict.fromkeys(row.network for row in rows):
        own = [row for row in rows if row.network == network]
        found = {row.sparsity: row for row in own}
        yield table_row(own[0].title, *(f"{found[one].megabytes:.2f}" if one in found else "" for one in sparsities))


def _order(column: tuple[float, Way]) -> tuple[int, float]:
    sparsity, way = column
    return list(TITLES).index(way), sparsity


def _longest(rows: Sequence[Row], way: Way) -> str:
    found = [row.seconds for row in rows if row.way == way]
    return f"{max(found):.3g}" if found else ""
