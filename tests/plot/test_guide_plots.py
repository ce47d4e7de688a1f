"""docs/guide/plots.md does what it says: its Python runs where its first command has been, and its table has every call."""

import re
from pathlib import Path

import truesparse as ts

PAGE = Path(__file__).parent.parent.parent / "docs" / "guide" / "plots.md"


def test_the_page(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "digits").symlink_to(digits)
    given = {}
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), given)
    assert (tmp_path / "masks.pdf").exists()
    named = set(re.findall(r"`(\w+)\(", PAGE.read_text()))
    assert set(ts.plot.__all__) - {"topology", "change", "write_all"} == named
