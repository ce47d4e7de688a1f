"""What can be wrong with a run. Each message is one line that says what to do."""


class ConfigError(ValueError):
    """What was asked for cannot be: an option, a setting or a recipe."""


class RunError(RuntimeError):
    """A run cannot start, go on or be read: its folder, its files, its numbers."""
