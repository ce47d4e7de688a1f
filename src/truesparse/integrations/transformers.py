"""How does a transformers `Trainer` train truly sparse? With one callback; the model stays as it is.

    trainer = Trainer(model, args, train_dataset=data, callbacks=[SparseTraining(ts.RigL(), sparsity=0.9)])
    trainer.train()

With this module imported, `save_pretrained` and `from_pretrained` know sparse models. Needs `pip install truesparse[transformers]`.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

from ..algorithms import AnyAlgorithm, RigL  # type: ignore[attr-defined]
from ..common.optional import library
from ..nn import topology_layers
from ..rewiring.optimizers import optimizers_in
from .pretrained import WHAT, mark
from .session import Session, Settings

callbacks: Any = library("transformers.trainer_callback", "transformers", WHAT)

KEY = "truesparse"  # of the state of a session in that of the optimizer


class SparseTraining(callbacks.TrainerCallback):
    """Makes the model sparse before its optimizer is made, and rewires it while it trains.

        Trainer(model, args, train_dataset=data, callbacks=[SparseTraining(ts.RigL(), sparsity=0.9, every=100)])

    A model that is sparse already keeps its layers. It is given to the `Trainer` when that is made: `add_callback` comes too late.
    Accumulation and clipping are followed. Checkpoints hold all of it, in optimizer.pt: `train(resume_from_checkpoint=...)` goes on as if
    it had never stopped.

    Logged with the loss: `model/sparsity`, `model/connections`, `model/rewirings`, `model/itop_rate`, `model/dead_outputs`, in
    `trainer.state.log_history`.

    Args:
        algorithm: of `truesparse.algorithms`, or one's own; None: `RigL()`.
        sparsity: share of the weights to leave out; None: what the algorithm begins with (`GMP`, `GraNet`), else 0.9.
        every: steps of the optimizer between two rewirings.
        until: share of the training after which the topologies stay, in (0, 1]; None: the algorithm's own, else 0.75.
        seed: of topologies and of every random choice after them.
        log: whether to measure and log.
        **options: of `truesparse.sparsify`: budget, pattern, exclude, from_weights, init, sparsities, masked.

    Attributes:
        session: of the training under way, or the last one; its `rewirers` and `measures()`. None before.

    Raises:
        TypeError, ValueError: if the algorithm is none, `until` is no share, or `sparsify` has no such argument.
        MissingLibrary: on import, if transformers is not installed.
    """

    def __init__(
        self,
        algorithm: AnyAlgorithm | None = None,
        sparsity: float | None = None,
        *,
        every: int = 100,
        until: float | None = None,
        seed: int = 0,
        log: bool = True,
        **options: Any,
    ) -> None:
        self.settings = Settings(algorithm or RigL(), sparsity, every, until, seed, options)
        self.log = log
        self.session: Session | None = None
        self._handle: Any = None

    def on_init_end(self, args: Any, state: Any, control: Any, model: nn.Module, **_: Any) -> None:
        self.settings.make_sparse(model)
        mark(model)

    def on_train_begin(self, args: Any, state: Any, control: Any, model: nn.Module, optimizer: Any, **_: Any) -> None:
        if not topology_layers(model):
            raise RuntimeError(
                "the model was made after the Trainer, or the callback was added to it later, so nothing is sparse: pass "
                "Trainer(callbacks=[SparseTraining(...)]), and with model_init= call truesparse.sparsify in that function"
            )
        inner = optimizers_in(optimizer)[-1]
        saved = inner.param_groups[0].pop(KEY, None)
        if state.global_step and saved is None:
            raise ValueError(
                f"the checkpoint of step {state.global_step} holds no state of SparseTraining: it was saved without this callback, or with "
                "save_only_model=True. Go on with one that has it, or begin anew from its weights alone"
            )
        self.session = Session(model, [optimizer], self.settings, state.max_steps, self.log)
        if saved is not None:
            self.session.load_state_dict(saved)
        self._handle = inner.register_state_dict_post_hook(self._put_state)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if self.log and self.session is not None and logs is not None and "loss" in logs:
            measures = self.session.measures()
            logs.update(measures)
            state.log_history[-1].update(measures)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.session is not None:
            self.session.end()
            self._handle.remove()

    def _put_state(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
        assert self.session is not None
        state_dict["param_groups"][0][KEY] = self.session.state_dict()
