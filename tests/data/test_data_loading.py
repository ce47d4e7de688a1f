"""Loading: verified, cached, atomic, offline; and each error says what to do. Sources here are local, the code is the real one."""

import errno
import gzip
import hashlib
import http.server
import io
import os
import subprocess
import sys
import tarfile
import threading

import pytest
import torch

from truesparse.data import DataError, cache_folder, load, loading, names, sources
from truesparse.data.published import PUBLISHED, Published
from truesparse.data.sources import DebianPackage, FetchError, NpmPackage, Urls

FILES = {"a": b"alpha" * 100, "b": b"beta" * 100}
GOOD = {name: hashlib.md5(content).hexdigest() for name, content in FILES.items()}


class Given:
    """A source that delivers what it is given, and counts how often it was asked."""

    label = "a given source"

    def __init__(self, files=FILES, error=None):
        self.files, self.error, self.asked = files, error, 0

    def fetch(self):
        self.asked += 1
        if self.error:
            raise self.error
        return dict(self.files)


def read(files):
    return tuple(torch.tensor([len(files["a"]), len(files["b"])]) for _ in range(4))


@pytest.fixture
def publish(monkeypatch, tmp_path):
    """Makes `load("toy")` ask the given sources, with its cache in a folder of this test."""
    monkeypatch.setenv("TRUESPARSE_DATA", str(tmp_path / "cache"))

    def publish(*given):
        monkeypatch.setattr(loading, "PUBLISHED", {"toy": Published(("one",), GOOD, given, read)})
        return tmp_path / "cache" / "toy"

    return publish


@pytest.fixture
def program(monkeypatch, tmp_path):
    """Puts a shell script of that name first on the path."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def program(name, script):
        (folder / name).write_text("#!/bin/sh\n" + script)
        (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    return program


def test_digits_are_packaged_and_split_by_class():
    digits = load("digits")
    assert digits.train_images.shape == (1433, 1, 8, 8)
    assert digits.test_images.shape == (364, 1, 8, 8)
    assert digits.train_images.dtype == torch.uint8
    assert digits.train_labels.dtype == torch.int64
    assert digits.train_images.max() == 16
    assert len(digits.classes) == 10
    assert digits.test_labels.bincount().tolist() == [36, 37, 36, 37, 37, 37, 37, 36, 35, 36]
    assert repr(digits) == "DataSet(digits: 1433 training and 364 test images, 1 x 8 x 8)"


def test_unknown_name_lists_the_known():
    with pytest.raises(DataError, match="unknown data set 'minst'; known are mnist, fashion-mnist, cifar10, digits"):
        load("minst")
    assert names() == ("mnist", "fashion-mnist", "cifar10", "digits")


def test_cache_folder_can_be_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("TRUESPARSE_DATA", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("TRUESPARSE_DATA")
    assert "truesparse" in cache_folder().parts


def test_fetched_once_then_offline(publish, capsys):
    source = Given({**FILES, "not needed": b"x"})
    folder = publish(source)
    for _ in range(2):
        assert load("toy").train_labels.tolist() == [500, 400]
    assert source.asked == 1
    assert sorted(path.name for path in folder.iterdir()) == ["a.gz", "b.gz"]
    assert gzip.decompress((folder / "a.gz").read_bytes()) == FILES["a"]
    assert (folder / "a.gz").stat().st_mode & 0o777 == 0o666 & ~current_umask()


def current_umask():
    current = os.umask(0)
    os.umask(current)
    return current


def test_cache_argument(publish, tmp_path):
    publish(Given())
    load("toy", cache=tmp_path / "other")
    assert (tmp_path / "other" / "toy" / "a.gz").exists()


@pytest.mark.parametrize("damage", [lambda c: c[:-5], lambda c: c[:15] + b"?" + c[16:], lambda c: b"", lambda c: gzip.compress(b"other")])
def test_a_damaged_cached_file_is_fetched_again(publish, damage, capsys):
    source = Given()
    folder = publish(source)
    load("toy")
    (folder / "a.gz").write_bytes(damage((folder / "a.gz").read_bytes()))
    assert load("toy").train_labels.tolist() == [500, 400]
    assert source.asked == 2
    assert f"{folder / 'a.gz'} is damaged; fetching it again" in capsys.readouterr().err
    load("toy")
    assert source.asked == 2


def test_wrong_checksum_is_neither_used_nor_kept(publish):
    folder = publish(Given({**FILES, "b": b"changed"}))
    expected = f"wrong checksum: b has MD5 {hashlib.md5(b'changed').hexdigest()}, expected {GOOD['b']}; nothing of it was kept"
    with pytest.raises(DataError, match=expected):
        load("toy")
    assert list(folder.iterdir()) == []


def test_the_next_source_is_asked(publish):
    publish(Given(error=FetchError("no")), Given({"a": FILES["a"]}), Given())
    assert load("toy").train_labels.tolist() == [500, 400]


def test_all_sources_fail(publish):
    folder = publish(Given(error=FetchError("npm is not on this machine")), Given({"a": FILES["a"]}))
    with pytest.raises(DataError) as caught:
        load("toy")
    assert str(caught.value) == (
        "cannot get the data set toy. Tried a given source: npm is not on this machine; a given source: it holds no b. "
        f"Connect this machine to the network or install what it lacks, or copy the folder {folder} from a machine that has it"
    )


def test_no_npm(publish, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    publish(NpmPackage("toy", "1.0", 1), DebianPackage("toy", 1, "usr/"))
    with pytest.raises(DataError, match=r"npm package toy@1\.0: npm is not on this machine; Debian package toy: apt-get is not on this"):
        load("toy")


def test_npm_without_network(publish, program):
    program("npm", "echo 'npm error code ENOTFOUND' >&2; echo 'npm error log of this run' >&2; exit 1")
    publish(NpmPackage("toy", "1.0", 1))
    with pytest.raises(DataError, match="npm failed: npm error code ENOTFOUND"):
        load("toy")


def test_apt_without_the_package(publish, program):
    program("apt-get", "echo 'W: sandbox' >&2; echo 'E: Unable to locate package toy' >&2; exit 100")
    publish(DebianPackage("toy", 1, "usr/"))
    with pytest.raises(DataError, match="apt-get failed: E: Unable to locate package toy"):
        load("toy")


def test_npm_package(publish, program, tmp_path, capsys):
    with tarfile.open(tmp_path / "toy.tgz", "w:gz") as archive:
        for name, content in FILES.items():
            entry = tarfile.TarInfo(f"package/data/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    program("npm", f"test \"$1 $2\" = 'pack toy@1.0' && cp {tmp_path}/toy.tgz toy-1.0.tgz")
    publish(NpmPackage("toy", "1.0", 11.5))
    assert load("toy").train_labels.tolist() == [500, 400]
    captured = capsys.readouterr()
    assert captured.err == "fetching npm package toy@1.0 (12 MB)\n"
    assert captured.out == ""


def test_npm_hands_out_rubbish(publish, program):
    program("npm", "echo rubbish > toy-1.0.tgz")
    publish(NpmPackage("toy", "1.0", 1))
    with pytest.raises(DataError, match="what came is damaged: cannot read archive"):
        load("toy")


@pytest.fixture
def server(tmp_path):
    """The address of a web server that serves `tmp_path / "web"`."""
    folder = tmp_path / "web"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/", folder
        running.shutdown()


def test_urls(publish, server, capsys):
    address, folder = server
    for name, content in FILES.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
    publish(Given(error=FetchError("no")), Urls(address, ("a.gz", "b.gz")))
    assert load("toy").train_labels.tolist() == [500, 400]
    assert f"fetching {address}b.gz" in capsys.readouterr().err


def test_url_errors(publish, server):
    address, folder = server
    (folder / "a.gz").write_bytes(b"no gzip")
    publish(Urls(address, ("a.gz",)), Urls(address, ("missing.gz",)))
    with pytest.raises(DataError, match=r"a\.gz: what came is damaged: cannot unpack a\.gz.*missing\.gz: the server answered 404"):
        load("toy")


def test_no_network(publish):
    publish(Urls("http://127.0.0.1:9/", ("a.gz",)))
    with pytest.raises(
        DataError, match=r"http://127\.0\.0\.1:9/a\.gz: no answer: .*refused.*Connect this machine to the network or install what it lacks"
    ):
        load("toy")


def test_a_broken_connection(publish, monkeypatch):
    def breaks(read, advance):
        raise ConnectionResetError("reset by peer")

    class Answer(io.BytesIO):
        def __init__(self, *args, **keywords):
            super().__init__(b"short")
            self.headers = {"Content-Length": "10"}

    monkeypatch.setattr(sources.urllib.request, "urlopen", Answer)
    publish(Urls("http://host/", ("a",)))
    with pytest.raises(DataError, match="the connection ended after 5 of 10 bytes"):
        load("toy")
    monkeypatch.setattr(sources, "_read_all", breaks)
    with pytest.raises(DataError, match="the connection broke: reset by peer"):
        load("toy")


def test_full_disk(publish, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder = publish(Given())
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"cannot keep the data set toy: the disk is full .*; free space, or set TRUESPARSE_DATA"):
        load("toy")
    assert list(folder.iterdir()) == []


def test_unusable_cache_folder(publish, tmp_path):
    publish(Given())
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(DataError, match=r"cannot use the cache folder .*toy: .*; set TRUESPARSE_DATA to a folder you may write to"):
        load("toy")


def test_unreadable_cached_file(publish):
    folder = publish(Given())
    load("toy")
    (folder / "a.gz").unlink()
    (folder / "a.gz").mkdir()
    with pytest.raises(DataError, match=r"cannot use the cache folder .*a\.gz: Is a directory; set TRUESPARSE_DATA"):
        load("toy")


LOAD = """
import hashlib, sys, torch
from truesparse.data import load, loading
from truesparse.data.published import Published
from truesparse.data.sources import Urls

address, folder, a, b = sys.argv[1:]
read = lambda files: tuple(torch.tensor([len(files["a"]), len(files["b"])]) for _ in range(4))
loading.PUBLISHED = {"toy": Published(("one",), {"a": a, "b": b}, (Urls(address, ("a.gz", "b.gz")),), read)}
assert load("toy", cache=folder).train_labels.tolist() == [500, 400]
"""


def test_two_processes_at_once(server, tmp_path):
    address, folder = server
    for name, content in FILES.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
    command = [sys.executable, "-c", LOAD, address, str(tmp_path / "cache"), *GOOD.values()]
    started = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(60) for process in started] == [0, 0]
    assert sorted(path.name for path in (tmp_path / "cache" / "toy").iterdir()) == ["a.gz", "b.gz"]


def test_everything_published_is_whole():
    for name, published in PUBLISHED.items():
        assert len(published.classes) == 10, name
        assert all(len(checksum) == 32 for checksum in published.checksums.values()), name
        assert isinstance(published.sources[-1], Urls), "the canonical URL comes last"


def test_data_needs_no_network_library_at_import():
    """Loading packaged data must not need what only fetching needs."""
    code = "import sys, truesparse.data as d; d.load('digits'); assert 'PIL' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_standardized_images_have_mean_zero_and_deviation_one():
    digits = load("digits")
    pixels = digits.train_images.double()
    train, test = digits.standardized(float(pixels.mean()) / 16, [float(pixels.std()) / 16], largest=16)
    images, labels = train.tensors
    assert images.dtype == torch.float32
    assert abs(float(images.mean())) < 1e-5
    assert abs(float(images.std()) - 1) < 1e-5
    assert torch.equal(labels, digits.train_labels)
    assert test.tensors[0].shape == digits.test_images.shape
    assert digits.train_images.dtype == torch.uint8
