"""The documentation opens from a folder: its search has no worker there, and what stands in for one must do."""

import shutil
from pathlib import Path

import pytest
from browser import Browser, executable

SHIM = Path(__file__).parent.parent / "docs" / "site" / "iframe-worker.js"
PAGE = """<!doctype html><html><head><script src="iframe-worker.js"></script><script>
const worker = new Worker("worker.js")
worker.addEventListener("message", ({ data }) => { document.title = data.sum; document.documentElement.dataset.ready = "yes" })
worker.postMessage([20, 22])
</script></head><body></body></html>"""
WORKER = "addEventListener('message', ({ data }) => postMessage({ sum: data[0] + data[1] }))"


@pytest.mark.skipif(
    executable() is None, reason="no Chromium on this machine: apt-get install chromium, or name one in TRUESPARSE_CHROMIUM"
)
def test_a_worker_answers_on_a_page_that_was_opened_from_a_folder(tmp_path):
    shutil.copy(SHIM, tmp_path)
    (tmp_path / "worker.js").write_text(WORKER)
    (tmp_path / "page.html").write_text(PAGE)
    browser = Browser(tmp_path / "profile")
    try:
        browser.open(tmp_path / "page.html")
        assert browser.value("document.title") == "42"
    finally:
        browser.close()
