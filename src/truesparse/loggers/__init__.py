"""Records of training in TensorBoard, MLflow, Weights & Biases, or whatever a class of yours writes to."""

from .mlflow import MLflow
from .protocol import Logger, Subject
from .record import log_model
from .tensorboard import TensorBoard
from .wandb import WandB

__all__ = ["Logger", "MLflow", "Subject", "TensorBoard", "WandB", "log_model"]
