"""The server of examples/serve.py, started as anyone would start it, gives what the network gives, to many clients at once."""

import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import torch

import truesparse as ts
from truesparse.tasks import digits_mlp

EXAMPLES = Path(__file__).parents[2] / "examples"
SECONDS = 60


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return ts.sparsify(digits_mlp.model(), 0.9, generator=torch.Generator().manual_seed(0)).eval()


@pytest.fixture(scope="module")
def address(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    ts.save(model, folder / "net.safetensors")
    environment = {**os.environ, "NETWORK": str(folder / "net.safetensors"), "XDG_CACHE_HOME": str(folder)}
    port, log = free_port(), folder / "log"
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(EXAMPLES), "serve:app", "--port", str(port)]
    with log.open("wb") as written, subprocess.Popen(command, env=environment, stdout=written, stderr=written) as server:
        try:
            wait_for(port, server, log)
            yield f"http://127.0.0.1:{port}/predict"
        finally:
            server.terminate()
            server.wait(SECONDS)


def wait_for(port, server, log):
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and server.poll() is None:
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    pytest.fail(f"the server did not start: {log.read_text()}")


def expected(model, images):
    with torch.no_grad():
        return model((images.view(-1, 1, 8, 8) - digits_mlp.MEAN) / digits_mlp.DEVIATION).softmax(1)


@pytest.mark.parametrize("batch", [1, 7])
def test_it_answers_as_the_network_does(address, model, batch):
    images = torch.rand(batch, 64) * 16
    response = httpx.post(address, json={"images": images.tolist()})
    assert response.status_code == 200
    answer = torch.tensor(response.json()["probabilities"])
    assert answer.shape == (batch, 10)
    torch.testing.assert_close(answer, expected(model, images), rtol=1e-4, atol=1e-6)


def test_many_clients_at_once(address, model):
    requests = [torch.rand(1 + number % 5, 64) * 16 for number in range(60)]

    with httpx.Client() as client, ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(lambda images: client.post(address, json={"images": images.tolist()}).json(), requests))
    for images, answer in zip(requests, answers, strict=True):
        torch.testing.assert_close(torch.tensor(answer["probabilities"]), expected(model, images), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "not JSON",
        '{"images": []}',
        '{"images": [[1, 2, 3]]}',
        '{"images": "0"}',
        f'{{"images": [[{", ".join(["17"] * 64)}]]}}',
        f'{{"images": [[{", ".join(["-1"] * 64)}]]}}',
        f'{{"images": [[{", ".join(["null"] * 64)}]]}}',
        f'{{"images": [[{", ".join(["NaN"] * 64)}]]}}',
        f'{{"images": [[{", ".join(["Infinity"] * 64)}]]}}',
        f'{{"images": [{", ".join(["[]"] * 300)}]}}',
    ],
    ids=lambda content: content[:24] or "nothing",
)
def test_what_is_no_image_is_refused(address, content):
    response = httpx.post(address, content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == 422, response.text
    assert response.json()["detail"]


def test_other_addresses(address):
    assert httpx.get(address).status_code == 405
    assert httpx.get(address.replace("predict", "nothing")).status_code == 404


def test_the_example_is_short():
    assert len((EXAMPLES / "serve.py").read_text().splitlines()) <= 40
