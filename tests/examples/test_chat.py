"""examples/chat.py, with a model of two small blocks: what it writes comes while it is made, and each turn sees those before."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests" / "language"))
from tiny import folder  # noqa: E402, F401

TEMPLATE = "{% for turn in messages %}{{ turn['content'] }} {% endfor %}"


@pytest.fixture
def chat():
    spec = importlib.util.spec_from_file_location("chat", ROOT / "examples" / "chat.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("template", [TEMPLATE, None])
def test_it_answers_turn_by_turn(chat, folder, monkeypatch, capsys, template):  # noqa: F811
    lines, opened = iter(["w1 w2", "w3"]), []

    def heard(prompt):
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    def kept(source):
        opened.append(language_model(source))
        opened[0].tokenizer.chat_template = template
        return opened[0]

    language_model = chat.language_model
    monkeypatch.setattr("builtins.input", heard)
    monkeypatch.setattr(chat, "language_model", kept)
    asked = []
    answer = chat.answer
    monkeypatch.setattr(chat, "answer", lambda opened, turns, tokens: asked.append(len(turns)) or answer(opened, turns, tokens))
    chat.main([str(folder), "--tokens", "5", "--values", "int8"])
    told = capsys.readouterr().out
    assert asked == [1, 3]
    assert "16 to 40" in told
    assert told.count("w") > 5
