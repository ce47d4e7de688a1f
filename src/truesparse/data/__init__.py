"""Where do real images come from? From `load(name)`: verified by checksum, kept in a cache, offline after the first time."""

from .errors import DataError
from .loading import DataSet, cache_folder, load, names

__all__ = ["DataError", "DataSet", "cache_folder", "load", "names"]
