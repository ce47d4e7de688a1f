"""Which dense modules can be opened, and what is a model called when they are?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn

from .attention import OpenedAttention
from .base import Opened
from .cells import OpenedCell
from .conv1d import OpenedConv1D
from .embedding import OpenedEmbedding, OpenedEmbeddingBag
from .recurrent import OpenedRecurrent

# By the full name of the dense class, exactly: so other libraries are known without being imported.
OPENED: dict[str, type[Opened]] = {
    "torch.nn.modules.activation.MultiheadAttention": OpenedAttention,
    "torch.nn.modules.rnn.LSTM": OpenedRecurrent,
    "torch.nn.modules.rnn.GRU": OpenedRecurrent,
    "torch.nn.modules.rnn.RNN": OpenedRecurrent,
    "torch.nn.modules.rnn.LSTMCell": OpenedCell,
    "torch.nn.modules.rnn.GRUCell": OpenedCell,
    "torch.nn.modules.rnn.RNNCell": OpenedCell,
    "torch.nn.modules.sparse.Embedding": OpenedEmbedding,
    "torch.nn.modules.sparse.EmbeddingBag": OpenedEmbeddingBag,
    "transformers.pytorch_utils.Conv1D": OpenedConv1D,
}


def opened_kind(kind: type[nn.Module]) -> type[Opened] | None:
    """What modules of exactly this class are when opened; None if they cannot be."""
    return OPENED.get(f"{kind.__module__}.{kind.__qualname__}")


def closed_base(kind: type[nn.Module]) -> type[nn.Module] | None:
    """The class, this one or one that it derives from, that can be opened."""
    return next((base for base in kind.__mro__ if issubclass(base, nn.Module) and opened_kind(base)), None)


def named_opened(model: nn.Module, opened: Mapping[nn.Module, nn.Module], prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """All modules under all their names, as `model.named_modules(remove_duplicate=False)`, if others stood for those in `opened`."""
    model = opened.get(model, model)
    yield prefix, model
    for name, child in model._modules.items():
        if child is not None:
            yield from named_opened(child, opened, f"{prefix}.{name}" if prefix else name)
