"""What is run at inference? A linear layer, a whole network, or what a training run left, each with the ways it could be run instead."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from ..export import save
from ..nn import SparseLinear, TopologyLayer, densify, topology_layers
from ..nn.initial import initial_values
from ..runs import ConfigError, trained_network
from ..topology import Topology
from ..topology.budgets import kept
from ..topology.geometry import Matrix
from ..topology.patterns import FanIn, Pattern
from .csr import csr_addmm, csr_linear, csr_network
from .networks import SEED, Density, Network, example_of, twins

Accuracy = Callable[[nn.Module], float | None]


@dataclass(frozen=True)
class Way:
    """One way to compute a model's output.

    Args:
        call: computes it.
        part: what `call` should give, from the model's true output.
    """

    call: Callable[[], Tensor]
    part: Callable[[Tensor], Tensor] = lambda y: y


@dataclass(frozen=True, eq=False)
class Subject:
    """A sparse model that could be packed, in eval mode, and what it is compared with.

    Args:
        name: for people.
        sparse: the model.
        dense: computes the same with dense weights.
        rivals: further ways for an input, by name. Those that begin with "csr, " are of one kind: the fastest counts.
        example: a batch of that many samples, always the same.
        accuracy: of a model that computes the same, on test data; None if there is none.
    """

    name: str
    sparse: nn.Module
    dense: nn.Module
    rivals: Callable[[Tensor], Mapping[str, Way]]
    example: Callable[[int], Tensor]
    accuracy: Accuracy | None = None

    @property
    def layers(self) -> list[TopologyLayer]:
        return list(topology_layers(self.sparse).values())

    @property
    def connections(self) -> int:
        return sum(layer.topology.nnz for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """Of the layers made sparse, together."""
        return 1 - self.connections / sum(layer.topology.size for layer in self.layers)

    @cached_property
    def file_bytes(self) -> tuple[int, int]:
        """Of (the model, its dense twin) as saved."""
        with TemporaryDirectory() as folder:
            path = Path(folder) / "net.safetensors"
            save(self.sparse, path)
            sparse = path.stat().st_size
            save(self.dense, path)
            return sparse, path.stat().st_size


@dataclass(frozen=True)
class LinearCase:
    """One linear layer with bias and a random topology.

    Args:
        ablated: share of the neurons that have no connections, the others sharing theirs: constant fan-in as SRigL makes it.

    Raises:
        ConfigError: if the pattern does not fit the layer, or has no ablated neurons.
    """

    matrix: Matrix
    sparsity: float
    pattern: Pattern
    ablated: float = 0.0
    kind = "layer"

    def __post_init__(self) -> None:
        try:
            connections = self._connections
        except ValueError as error:
            raise ConfigError(f"{self.name}: {error}") from error
        if not 0 <= self.ablated < 1:
            raise ConfigError(f"--ablated must be in [0, 1), got {self.ablated}")
        if self.ablated and self.pattern != FanIn():
            raise ConfigError(f"--ablated needs --pattern fan-in, whose neurons can be ablated, got {self.pattern}")
        if connections > self._active * self.matrix.columns:
            raise ConfigError(
                f"--ablated {self.ablated:g}: {self._active} neurons of {self.matrix.columns} inputs cannot hold the {connections:,} "
                f"connections of {self.sparsity:.0%} sparsity; ablate fewer"
            )

    @property
    def name(self) -> str:
        return f"{self.matrix.columns} -> {self.matrix.rows}"

    def __str__(self) -> str:
        pattern = "" if str(self.pattern) == "Unstructured()" else f", {self.pattern}"
        return f"{self.name}, {self.sparsity:.1%} sparse{pattern}"

    @property
    def _connections(self) -> int:
        rows, columns = self.matrix.shape
        return self.pattern.round(self.matrix.shape, kept(rows * columns, self.sparsity))

    @property
    def _active(self) -> int:
        return max(1, round(self.matrix.rows * (1 - self.ablated)))

    def subject(self) -> Subject:
        """The layer, dense PyTorch, torch's CSR weights, and a dense layer of the neurons that are left where some are not."""
        generator = torch.Generator().manual_seed(SEED)
        if self.ablated:
            topology = _ablated(self.matrix, self._active, self._connections, generator)
        else:
            topology = self.pattern.random(self.matrix.shape, self._connections, generator)
        whole = nn.Linear(self.matrix.columns, self.matrix.rows)
        nn.init.uniform_(whole.bias, -1, 1, generator)
        sparse = SparseLinear.from_dense(
            whole, topology, pattern=self.pattern, values=initial_values(topology, SparseLinear.geometry_of(whole), generator)
        ).eval()
        dense, active = sparse.dense_module(), topology.fan_in > 0
        csr, fewer = csr_linear(dense), _rows_of(dense, active)

        def rivals(x: Tensor) -> dict[str, Way]:
            features_first = x.t().contiguous()
            ways = {
                "csr, F.linear": Way(lambda: csr(x)),
                "csr, addmm": Way(lambda: csr_addmm(csr, x.t()).t()),
                "csr_features_first": Way(lambda: csr_addmm(csr, features_first), lambda y: y.t()),
            }
            return ways if bool(active.all()) else ways | {"ablated": Way(lambda: fewer(x), lambda y: y[:, active])}

        def example(samples: int) -> Tensor:
            return torch.randn(samples, self.matrix.columns, generator=torch.Generator().manual_seed(SEED))

        return Subject(self.name, sparse, dense, rivals, example)


@dataclass(frozen=True)
class NetworkCase:
    """One of the networks that are timed, with random topologies.

    Args:
        budget: "erk", "er" or "uniform": how layers share what is kept, unless the density is an epsilon.
    """

    network: Network
    density: Density
    budget: str = "erk"
    kind = "network"
    pattern = "Unstructured()"

    def __str__(self) -> str:
        return f"{self.network.name}, {self.density}"

    def subject(self) -> Subject:
        """The network, dense, dense + mask, and with torch's CSR weights in its linear layers.

        Raises:
            ConfigError: if it cannot be made sparse this way.
        """
        models = twins(self.network, self.density, self.budget)
        with torch.no_grad():
            for model in models.values():
                model(example_of(self.network, self.network.batch)[0])  # in training mode: norms get statistics worth folding
                model.eval()
        sparse, dense = models["sparse"], models["dense"]
        rivals = _network_rivals(dense, models["masked"])
        return Subject(str(self), sparse, dense, rivals, lambda samples: example_of(self.network, samples)[0])


@dataclass(frozen=True)
class RunCase:
    """The truly sparse network that a training run left, on its test data."""

    path: Path
    kind = "network"
    pattern = "as trained"

    def __str__(self) -> str:
        return f"the network of {self.path}"

    def subject(self) -> Subject:
        """The network, dense, and with torch's CSR weights in its linear layers.

        Raises:
            RunError: if the folder has no such network.
        """
        found = trained_network(self.path)
        dense = densify(deepcopy(found.model))
        return Subject(found.name, found.model, dense, _network_rivals(dense), found.test.first, found.accuracy)


Case = LinearCase | NetworkCase | RunCase


@lru_cache(maxsize=1)
def subject_of(case: Case) -> Subject:
    """The subject of `case`, made once for lines that follow one another."""
    return case.subject()


def _network_rivals(dense: nn.Module, masked: nn.Module | None = None) -> Callable[[Tensor], Mapping[str, Way]]:
    csr = csr_network(dense)

    def rivals(x: Tensor) -> dict[str, Way]:
        found = {"masked": masked, "csr, linear layers": csr}
        return {name: Way(lambda model=model: model(x)) for name, model in found.items() if model is not None}

    return rivals


def _ablated(matrix: Matrix, active: int, connections: int, generator: torch.Generator) -> Topology:
    """A random topology whose connections are shared evenly, give or take one, by `active` of the rows."""
    rows = torch.randperm(matrix.rows, generator=generator)[:active].sort().values
    counts = torch.full((active,), connections // active) + (torch.arange(active) < connections % active)
    places = torch.rand(active, matrix.columns, generator=generator).argsort(1)
    chosen = torch.arange(matrix.columns) < counts[:, None]
    return Topology.from_keys(matrix.shape, (rows[:, None] * matrix.columns + places)[chosen])


def _rows_of(dense: nn.Linear, rows: Tensor) -> nn.Linear:
    """A dense layer of some of the neurons (bool) of another."""
    layer = nn.Linear(dense.in_features, int(rows.sum()), device="meta")
    layer.weight, layer.bias = nn.Parameter(dense.weight.detach()[rows]), nn.Parameter(dense.bias.detach()[rows])
    return layer.eval()
