"""The built-in recipes. Each file here is a task, by its name with `-` for `_`; it has the form that `truesparse train FILE.py` takes."""
