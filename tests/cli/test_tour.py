"""The tour in real terminals of its own: keys, colours, widths, Ctrl-C, and what it leaves behind."""

import os
import re
import select
import signal
import struct
import time

import pytest
import torch
from oracles import topology_of
from processes import PATIENCE, Command

from truesparse.cli.blocks import mask_text
from truesparse.cli.main import run
from truesparse.report import Stage

pytest.importorskip("termios", reason="needs terminals of POSIX")
import fcntl
import pty
import termios

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A process in a terminal of its own."""

    def __init__(self, arguments, folder, width=100, height=40, **environment):
        self.ours, self.theirs = pty.openpty()  # theirs is kept open, so that its settings can be read after the end
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        self.before = termios.tcgetattr(self.theirs)
        usual = {"NO_COLOR": None, "COLUMNS": None, "LINES": None, "COLORTERM": None, "TERM": "xterm-256color", "TMPDIR": str(folder)}
        self.command = Command(["tour", *arguments], os.ttyname(self.theirs), **{**usual, **environment})
        self.raw = b""

    @property
    def text(self):
        return ESCAPES.sub("", self.raw.decode(errors="replace")).replace("\r\n", "\n")

    def _read(self, seconds):
        if select.select([self.ours], [], [], seconds)[0]:
            self.raw += os.read(self.ours, 65536)
            return True
        return False

    def until(self, words):
        def said():
            self._read(0.1)
            return words in self.text

        try:
            self.command.until(said)
        except AssertionError as error:
            raise AssertionError(f"{words!r} did not come after:\n{self.text[-2000:]}") from error

    def press(self, keys):
        os.write(self.ours, keys)

    def end(self):
        """The exit code; the terminal is as it was."""
        end = time.monotonic() + PATIENCE
        while self.command.runs:
            assert time.monotonic() < end, f"it has not ended:\n{self.text[-2000:]}"
            self._read(0.1)
        while self._read(0):
            pass
        assert termios.tcgetattr(self.theirs) == self.before, "the terminal is as it was"
        assert "Traceback" not in self.text
        assert self.raw.count(b"\x1b[?25l") == self.raw.count(b"\x1b[?25h"), "the cursor is there again"
        return self.command.wait()

    def close(self):
        self.command.close()
        os.close(self.ours)
        os.close(self.theirs)


@pytest.fixture
def terminal(tmp_path):
    opened = []

    def terminal(*arguments, **settings):
        opened.append(Terminal(arguments, tmp_path, **settings))
        return opened[-1]

    yield terminal
    for one in opened:
        one.close()


def test_the_whole_tour(terminal, tmp_path):
    (tmp_path / "browser").write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened\n')
    (tmp_path / "browser").chmod(0o755)
    shown = terminal(BROWSER=str(tmp_path / "browser"), COLORTERM="truecolor")
    shown.until("q leaves.")
    shown.press(b" ")
    shown.until("truly sparse one")
    shown.press(b"\x1b[C")  # a special key is one key, not three
    shown.until("step  10:")  # a frame or two
    shown.press(b"x")
    shown.until("step 260: ")
    shown.press(b"x")
    assert shown.end() == 0
    assert "Where to go from here" in shown.text
    for colour in (b"38;2;255;75;75", b"38;2;48;213;107", b"38;2;255;255;255"):
        assert colour in shown.raw
    assert "▀" in shown.text
    (page,) = tmp_path.glob("truesparse-tour-*/report.html")
    end = time.monotonic() + PATIENCE  # the browser is a process that nobody waits for
    while not ((tmp_path / "opened").exists() and (tmp_path / "opened").read_text()):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert (tmp_path / "opened").read_text().strip() == page.as_uri()


def test_a_narrow_terminal_without_colours(terminal, tmp_path):
    shown = terminal("--no-browser", width=40, height=24, NO_COLOR="1")
    for words in ("q leaves.", "with the same", "step   0"):
        shown.until(words)
        shown.press(b"\n")
    shown.until("step 260")
    shown.press(b"q")
    assert shown.end() == 130
    assert list(tmp_path.glob("truesparse-tour-*")) == [], "nothing is left of a tour that was left"
    assert not re.search(rb"\x1b\[[0-9;]*[34]8;", shown.raw), "no colour was asked for"
    masks = re.findall(r"^[#.+-]{20,}$", shown.text, re.MULTILINE)
    assert {len(line) for line in masks} == {39}
    lines = shown.text.splitlines()
    assert max(len(line.rstrip()) for line in lines if "/" not in line) <= 40
    assert re.search(r"^memory +275.6 kB +300.3 kB +50.3 kB *$", shown.text, re.MULTILINE), "no cell is cut"


def test_control_c_leaves_nothing(terminal, tmp_path):
    at_once, training = terminal(), terminal()
    at_once.until("q leaves.")
    at_once.press(b"\x03")
    training.until("q leaves.")
    training.press(b" ")
    training.until("training, epoch")
    training.press(b"\x03")
    for one in (at_once, training):
        assert one.end() == 130
        assert one.text.rstrip().endswith("The tour ends here. It begins anew with: truesparse tour")
    assert list(tmp_path.glob("truesparse-tour-*")) == []


def test_without_a_terminal_it_runs_through(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("webbrowser.open", lambda url: pytest.fail("no browser where nobody looks"))
    assert run(["tour", "--out", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    for words in ("Side by side", "truly sparse", "1,704", "step   0", "step 260", "Where to go from here", "report.html"):
        assert words in shown
    assert "\x1b" not in shown
    assert (tmp_path / "run" / "report.html").exists()
    assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
    assert run(["tour", "--out", str(tmp_path / "run")]) == 1
    assert "is not empty" in capsys.readouterr().err


def test_a_mask_in_characters():
    old, new = topology_of("xx.. ...x ...."), topology_of("x.x. ...x ....")
    stage = Stage(5, new, old.keys[~new.contains(old.keys)], new.keys[~old.contains(new.keys)])
    assert mask_text(stage, 3, 4, in_colours=False).plain == "#-+.\n...#\n....\n"
    assert mask_text(stage, 2, 2, in_colours=False).plain == "#-\n..\n"
    text = mask_text(stage, 3, 4, in_colours=True)
    assert text.plain == "▀▀▀▀\n▀▀▀▀\n"
    first = [span.style for span in text.spans]
    assert [style.color.triplet for style in first[:4]] == [(255, 255, 255), (255, 75, 75), (48, 213, 107), (0, 0, 0)]
    assert first[3].bgcolor.triplet == (255, 255, 255)
    assert first[4].bgcolor is None, "the last row stands alone"
    again = Stage(5, old, torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64))
    assert mask_text(again, 1, 4, in_colours=False).plain == "##..\n"
