"""Language models as they are handed out, texts to prune them on, and how well they still go on with a text.

`truesparse prune` and `truesparse pack` use it for folders of transformers and GGUF files.
"""

from .models import NAMES, LanguageModel, is_language_model, language_model
from .score import generated, perplexity
from .speed import tokens_a_second
from .texts import Windows, windows

__all__ = [
    "NAMES",
    "LanguageModel",
    "Windows",
    "generated",
    "is_language_model",
    "language_model",
    "perplexity",
    "tokens_a_second",
    "windows",
]
