"""How does a Lightning `Trainer` train truly sparse? With one callback; the module stays as it is.

    trainer = Trainer(callbacks=[SparseTraining(ts.RigL(), sparsity=0.9)])
    trainer.fit(module)

Needs `lightning` or `pytorch_lightning`: `pip install truesparse[lightning]`.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from ..algorithms import AnyAlgorithm, RigL  # type: ignore[attr-defined]
from ..common.optional import library
from ..metrics.flops import weight_layers
from ..nn import topology_layers
from .session import Session, Settings
from .sparse_like import sparse_like

NAME = "pytorch_lightning" if importlib.util.find_spec("lightning") is None else "lightning.pytorch"
pl: Any = library(NAME, "lightning", "truesparse.integrations.lightning")

Module = TypeVar("Module")


class SparseTraining(pl.Callback):
    """Makes the module sparse before its optimizers are configured, and rewires it while it trains.

        Trainer(max_epochs=10, callbacks=[SparseTraining(ts.RigL(), sparsity=0.9, every=100)])

    A module that is sparse already keeps its layers. Rewirings happen in the optimizers' own steps, under automatic and manual
    optimization: each optimizer that holds sparse layers has a `Rewirer` of its own. Clipping by norm and accumulation are followed;
    clipping by value is refused by algorithms that grow by gradients. Checkpoints hold all of it: `fit(ckpt_path=...)` goes on as if it
    had never stopped, as far as the module itself does. Layers must be there after `__init__` or `configure_model`.

    Logged, at each rewiring and each epoch: `model/sparsity`, `model/connections`, `model/rewirings`, `model/itop_rate`,
    `model/dead_outputs`.

    Args:
        algorithm: of `truesparse.algorithms`, or one's own.
        sparsity: share of the weights to leave out; None: what the algorithm begins with (`GMP`, `GraNet`), else 0.9.
        every: steps of an optimizer between two rewirings.
        until: share of the training after which the topologies stay, in (0, 1]; None: the algorithm's own, else 0.75.
        total_steps: of each optimizer; None: as the trainer estimates, which takes a manual optimization to step once a batch.
        seed: of topologies and of every random choice after them.
        log: whether to measure and log.
        **options: of `truesparse.sparsify`: budget, pattern, exclude, from_weights, init, sparsities, masked.

    Attributes:
        session: of the training under way, or the last one; its `rewirers` and `measures()`. None before.

    Raises:
        TypeError, ValueError: if the algorithm is none, `until` is no share, or `sparsify` has no such argument.
        MissingLibrary: on import, if neither `lightning` nor `pytorch_lightning` is installed.
    """

    def __init__(
        self,
        algorithm: AnyAlgorithm | None = None,
        sparsity: float | None = None,
        *,
        every: int = 100,
        until: float | None = None,
        total_steps: int | None = None,
        seed: int = 0,
        log: bool = True,
        **options: Any,
    ) -> None:
        self.settings = Settings(algorithm or RigL(), sparsity, every, until, seed, options)
        self.total_steps = total_steps
        self.measured = log  # Lightning gives each callback a method `log`
        self.session: Session | None = None
        self._state: Mapping[str, Any] = {}
        self._known: set[str] = set()
        self._logged = 0

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage != "fit":
            return
        # Lightning does so later, and asks that it may be done twice.
        with (
            trainer.strategy.tensor_init_context(),
            trainer.strategy.model_sharded_context(),
            trainer.precision_plugin.module_init_context(),
        ):
            pl_module.configure_model()
        self.settings.make_sparse(pl_module)
        self._known = set(weight_layers(pl_module))

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        late = [name for name in weight_layers(pl_module) if name not in self._known]
        if late:
            raise RuntimeError(
                f"layers {', '.join(map(repr, late))} were made after SparseTraining had made the module sparse, and stay dense: build "
                "layers in __init__ or configure_model, not in setup"
            )
        if trainer.ckpt_path is not None and not self._state:
            raise ValueError(
                f"the checkpoint {trainer.ckpt_path} holds no state of SparseTraining: go on with one that was saved with this callback, "
                "or load its weights before fit and leave ckpt_path out"
            )
        self.session = Session(pl_module, trainer.optimizers, self.settings, self._steps(trainer), self.measured)
        self._logged = 0
        if self._state:
            self.session.load_state_dict(self._state)
        self._state = {}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if self.measured and self.session is not None and self.session.rewirings != self._logged:
            self._logged = self.session.rewirings
            for logger in trainer.loggers:
                logger.log_metrics(self.session.measures(), step=trainer.global_step)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if self.measured and self.session is not None:
            pl_module.log_dict(self.session.measures())

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        assert self.session is not None
        taken = max(rewirer.steps for rewirer in self.session.rewirers)
        if not pl_module.automatic_optimization and self.total_steps is None and taken != self.session.total_steps:
            warnings.warn(
                f"the optimizers took {taken} steps each and {self.session.total_steps} were expected, one a batch, so the topologies came "
                f"to rest at another time than was meant: pass SparseTraining(total_steps={taken})",
                stacklevel=2,
            )

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if self.session is not None:
            self.session.end()

    def state_dict(self) -> dict[str, Any]:
        return dict(self._state) if self.session is None or self._state else self.session.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state = state_dict

    def _steps(self, trainer: Any) -> int:
        steps = trainer.estimated_stepping_batches if self.total_steps is None else self.total_steps
        if not 0 < steps < float("inf"):
            raise ValueError(
                "nobody knows how long the training lasts, and the topologies shall rest for its last part: pass Trainer(max_steps=...) or "
                "SparseTraining(total_steps=...)"
            )
        return int(steps)


def load_from_checkpoint(module: type[Module], checkpoint: str | Path, **arguments: Any) -> Module:
    """`module.load_from_checkpoint(checkpoint, **arguments)` for a module that was trained with `SparseTraining`.

    Lightning's own makes a dense module, into which no sparse layer can be loaded. This one makes those layers sparse that the
    checkpoint has sparse. A module that makes itself sparse needs it not.

    Raises:
        RuntimeError: if the checkpoint is of another module.
    """

    kind: Any = module

    class Loaded(kind):
        def on_load_checkpoint(self: Any, checkpoint: dict[str, Any]) -> None:
            kind.on_load_checkpoint(self, checkpoint)
            if not topology_layers(self):
                state = checkpoint["callbacks"].get("SparseTraining", {}) if "callbacks" in checkpoint else {}
                sparse_like(self, checkpoint["state_dict"], state.get("patterns", {}))

    loaded: Any = Loaded.load_from_checkpoint(checkpoint, **arguments)  # type: ignore[attr-defined]
    loaded.__class__ = kind
    return loaded
