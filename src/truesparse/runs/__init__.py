"""Training runs: a recipe, a config, a folder. `start` begins one, `resume` goes on with it to the same bits."""

from .config import RunConfig, make_config
from .errors import ConfigError, RunError
from .machine import check_processes
from .recipe import Recipe, load_recipe, task_names
from .results import Results, VariantResult
from .trained import Trained, saved_network, trained_network
from .trainer import Observer, Observers, Outcome, Plan, begin, resume, start
from .variant import Beginning, StepReport

__all__ = [
    "Beginning",
    "ConfigError",
    "Observer",
    "Observers",
    "Outcome",
    "Plan",
    "Recipe",
    "Results",
    "RunConfig",
    "RunError",
    "StepReport",
    "Trained",
    "VariantResult",
    "begin",
    "check_processes",
    "load_recipe",
    "make_config",
    "resume",
    "saved_network",
    "start",
    "task_names",
    "trained_network",
]
