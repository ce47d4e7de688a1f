"""What others pruned: read from whatever holds it, into a model with sparse layers."""

from .convert import from_pruned

__all__ = ["from_pruned"]
