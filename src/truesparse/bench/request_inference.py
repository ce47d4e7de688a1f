"""Which layers and networks are to be run at inference? Read from the options' text, and refused before any work if it cannot be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from ..runs import ConfigError
from .inference import InferenceCase
from .inference_cases import Case, LinearCase, NetworkCase, RunCase
from .inference_tables import TABLES
from .networks import NETWORKS, Density
from .request import counts_of, matrix_of, pattern_of, sparsities_for, sparsities_of, values_of

SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.99)
OF_LAYERS = ("shape", "pattern", "ablated")


@dataclass(frozen=True)
class InferenceRequest:
    """Options as they were typed; None, or the default, where they were not.

    Raises:
        ConfigError: of `cases`: if options exclude one another, or a text cannot be read.
    """

    table: str | None = None
    shape: Sequence[str] | None = None
    network: Sequence[str] | None = None
    run: Path | None = None
    sparsity: str | None = None
    batch: str | None = None
    values: str = "float32"
    pattern: str = "unstructured"
    ablated: float = 0.0
    tune: bool = True

    def cases(self) -> list[InferenceCase]:
        """What is asked for, in the order of the table."""
        batches = None if self.batch is None else counts_of("--batch", self.batch)
        if self.table is not None:
            self._refuse("table", ("shape", "network", "run", "sparsity", "values", "pattern", "ablated", "tune"))
            if self.table not in TABLES:
                raise ConfigError(f"--table: unknown {self.table!r}; known are {', '.join(TABLES)}")
            return TABLES[self.table](batches)
        subjects = self._of_run() if self.run is not None else self._of_networks() if self.network else self._of_layers()
        lines = product(subjects, batches or (1,), values_of(self.values))
        return [InferenceCase(of, samples, values, self.tune) for of, samples, values in lines]

    def _of_run(self) -> list[Case]:
        self._refuse("run", ("network", "sparsity", *OF_LAYERS))
        assert self.run is not None
        return [RunCase(self.run)]

    def _of_networks(self) -> list[Case]:
        self._refuse("network", OF_LAYERS)
        asked = None if self.sparsity is None else [Density(share) for share in sparsities_of(self.sparsity)]
        for name in self.network or ():
            if name not in NETWORKS:
                raise ConfigError(f"--network: unknown {name!r}; known are {', '.join(NETWORKS)}")
        networks = [NETWORKS[name] for name in self.network or ()]
        return [NetworkCase(network, density) for network in networks for density in asked or network.densities]

    def _of_layers(self) -> list[Case]:
        rule = pattern_of(self.pattern)
        sparsities = sparsities_for(rule, self.sparsity, SPARSITIES)
        matrices = [matrix_of(text) for text in self.shape or ["3072x768"]]
        return [LinearCase(matrix, share, rule, self.ablated) for matrix, share in product(matrices, sparsities)]

    def _refuse(self, option: str, others: Sequence[str]) -> None:
        """What the lines of `option` leave no choice of."""
        default = InferenceRequest()
        for other in others:
            if getattr(self, other) != getattr(default, other):
                raise ConfigError(f"--{option} does not go with --{other}: leave one of them out")
