"""How does a framework's own training loop train truly sparse? A module for each framework, which is imported by its name.

`truesparse.integrations.lightning`, `.transformers`. Accelerate and timm need nothing of their own: docs/guide/frameworks.md.
"""
