"""What does a model compute, and what smaller graph computes the same? Passes over a traced model; `simplify` is their order."""
