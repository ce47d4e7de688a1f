"""The server of examples/serve_text.py, started as anyone would start it, writes what the model writes, while it is made."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests" / "language"))
from tiny import folder  # noqa: E402, F401

import truesparse as ts  # noqa: E402
from truesparse.language import language_model  # noqa: E402


@pytest.fixture
def served(folder, monkeypatch):  # noqa: F811
    monkeypatch.setitem(os.environ, "MODEL", str(folder))
    spec = importlib.util.spec_from_file_location("serve_text", ROOT / "examples" / "serve_text.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def client(served):
    from fastapi.testclient import TestClient

    return TestClient(served.app)


def written(folder, prompt, tokens):  # noqa: F811
    opened = language_model(str(folder))
    ts.pack_layers(opened.model, values="bfloat16")
    given = opened.tokenizer(prompt, return_tensors="pt")
    with torch.inference_mode():
        found = opened.model.generate(**given, max_new_tokens=tokens, pad_token_id=opened.tokenizer.eos_token_id)
    return opened.tokenizer.decode(found[0, given["input_ids"].shape[1] :], skip_special_tokens=True)


def test_it_writes_what_the_model_writes_piece_by_piece(client, folder):  # noqa: F811
    with client.stream("POST", "/generate", json={"prompt": "w1 w2", "tokens": 6}) as response:
        pieces = list(response.iter_text())
    assert response.status_code == 200
    assert "".join(pieces).split() == written(folder, "w1 w2", 6).split()
    assert len("".join(pieces).split()) > 1


def test_who_goes_away_stops_it(served):
    made = served.words(served.Prompt(prompt="w1", tokens=1000))
    next(made)
    made.close()  # as a server does when its client is gone; it returns only once the thread has ended
    assert served.one_at_a_time.acquire(blocking=False)
    served.one_at_a_time.release()


def test_an_error_breaks_the_answer_off(served, monkeypatch):
    monkeypatch.setattr(type(served.opened.model), "generate", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(served.words(served.Prompt(prompt="w1")))
    assert served.one_at_a_time.acquire(blocking=False)
    served.one_at_a_time.release()


@pytest.mark.parametrize("content", [{}, {"prompt": ""}, {"prompt": "w1", "tokens": 0}, {"prompt": "w1", "tokens": 10**9}, {"prompt": 3}])
def test_what_is_no_prompt_is_refused(client, content):
    assert client.post("/generate", json=content).status_code == 422
