"""What did compression make of each layer? Bytes beside the entropy that they cannot be less than, as long as each symbol is by itself."""

from __future__ import annotations

from dataclasses import dataclass

from ...common.shown import Table


@dataclass(frozen=True)
class CompressedLayer:
    """One layer in a compressed file.

    Attributes:
        size: weights of the dense layer.
        values: how they are held: "floats", "row, 8 bits", "codebook, 5 bits".
        value_bytes, gap_bytes: of the coded values, or their numbers, and of the gaps between connections; tables included.
        value_entropy, gap_entropy: in bits, all together, by how often each symbol is there.
        other_bytes: of scales or a codebook, and of which connections act.
    """

    name: str
    size: int
    connections: int
    values: str
    value_bytes: int
    value_entropy: float
    gap_bytes: int
    gap_entropy: float
    other_bytes: int

    @property
    def nbytes(self) -> int:
        return self.value_bytes + self.gap_bytes + self.other_bytes

    @property
    def entropy(self) -> float:
        """In bytes, of values and gaps."""
        return (self.value_entropy + self.gap_entropy) / 8

    @property
    def coded(self) -> int:
        """The bytes that stand beside the entropy."""
        return self.value_bytes + self.gap_bytes


@dataclass(frozen=True)
class CompressionReport:
    """A compressed network.

    Attributes:
        layers: the sparse layers.
        tensor_bytes: of every other tensor: biases, norms, dense layers.
        nbytes: of the file.
        dense_nbytes: of the dense network, its numbers in float32.
    """

    layers: tuple[CompressedLayer, ...]
    tensor_bytes: int
    nbytes: int
    dense_nbytes: int

    @property
    def ratio(self) -> float:
        """Times as small as the dense network."""
        return self.dense_nbytes / self.nbytes

    @property
    def entropy(self) -> float:
        """In bytes, of the values and gaps of all layers."""
        return sum(layer.entropy for layer in self.layers)

    @property
    def coded(self) -> int:
        """Bytes of the same as coded, tables included."""
        return sum(layer.coded for layer in self.layers)

    def table(self) -> Table:
        """A row a layer."""
        heads = ("layer", "connections", "density", "values", "bits a value", "entropy", "bits a gap", "entropy", "bytes", "over entropy")
        rows = [
            (
                layer.name or "(model)",
                f"{layer.connections:,}",
                f"{layer.connections / layer.size:.2%}" if layer.size else "-",
                layer.values,
                _each(8 * layer.value_bytes, layer.connections),
                _each(layer.value_entropy, layer.connections),
                _each(8 * layer.gap_bytes, layer.connections),
                _each(layer.gap_entropy, layer.connections),
                f"{layer.nbytes:,}",
                _over(layer.coded, layer.entropy),
            )
            for layer in self.layers
        ]
        connections = sum(layer.connections for layer in self.layers)
        nbytes = sum(layer.nbytes for layer in self.layers)
        total = ("all", f"{connections:,}", "", "", "", "", "", "", f"{nbytes:,}", _over(self.coded, self.entropy))
        caption = (
            f"{self.nbytes:,} bytes, {self.ratio:.1f} times as small as {self.dense_nbytes:,} of dense float32; "
            f"other tensors {self.tensor_bytes:,}, description {self.nbytes - nbytes - self.tensor_bytes:,}"
        )
        return Table(heads, tuple(rows), total, frozenset({1, 2, 4, 5, 6, 7, 8, 9}), caption=caption)

    def __str__(self) -> str:
        return self.table().text()

    def _repr_html_(self) -> str:
        return self.table().html()


def _each(bits: float, connections: int) -> str:
    return f"{bits / connections:.2f}" if connections else "-"


def _over(coded: int, entropy: float) -> str:
    return f"{coded / entropy - 1:+.1%}" if entropy else "-"
