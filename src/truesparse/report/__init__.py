"""What happened in a training run? `read_run` reads its folder, `write_page` makes one page of it that anyone can open."""

from .evolution import Evolution, evolution
from .heat import input_heat
from .page import page, write_page
from .run import Run, RunLayer, Stage, read_run

__all__ = ["Evolution", "Run", "RunLayer", "Stage", "evolution", "input_heat", "page", "read_run", "write_page"]
