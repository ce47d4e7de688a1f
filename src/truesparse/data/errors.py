"""The one error of this package."""


class DataError(RuntimeError):
    """A data set cannot be had. The message says what happened and what to do."""
