"""What TensorBoard itself reads of a log is what the run's files say."""

import io
import json

import numpy
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import truesparse as ts
from truesparse.metrics import Distribution


def read(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"images": 0, "histograms": 0, "scalars": 0})
    found.Reload()
    return found


def points(found, tag):
    return [(event.step, event.value) for event in found.Scalars(tag)]


@pytest.mark.parametrize("stop_at", [None, ("sparse", 2, 3)])
def test_a_run(logged_run, to, lines, tmp_path, stop_at):
    logged_run(to("tensorboard", ""), stop_at=stop_at)
    if stop_at:
        logged_run(to("tensorboard", ""), again=True)
    for variant in ("dense", "sparse"):
        found = read(tmp_path / "run" / "tensorboard" / variant)
        for tag, name in (("loss/train", "train_loss"), ("loss/test", "test_loss"), ("accuracy/test", "test_accuracy")):
            expected = [(epoch, pytest.approx(line[name], rel=1e-6)) for epoch, line in lines(variant).items()]
            assert points(found, tag) == expected
    assert points(found, "itop_rate/1")[-1] == (3, pytest.approx(lines()[3]["layers"]["1"]["itop_rate"], rel=1e-6))
    histograms = found.Histograms("fan_in/3")
    assert [event.step for event in histograms] == [1, 2, 3]
    expected = lines()[3]["layers"]["3"]["fan_in"]
    value = histograms[-1].histogram_value
    assert [count for count in value.bucket if count] == [count for count in expected["counts"] if count]
    assert (value.min, value.max, value.num) == (expected["quantiles"][0], expected["quantiles"][-1], 64)
    images = found.Images("mask/3")
    assert [event.step for event in images] == [0, 1, 2, 3]
    drawn = numpy.array(Image.open(io.BytesIO(images[0].encoded_image_string)))
    arrays = load_file(tmp_path / "run" / "sparse" / "topologies" / "epoch-0000.safetensors")
    mask = ts.Topology((64, 128), arrays["3.indptr"], arrays["3.indices"]).mask()
    assert torch.equal(torch.tensor(drawn == 255).all(-1), mask)
    result = json.loads((tmp_path / "run" / "results.json").read_text())["variants"][1]
    assert points(found, "results/test_accuracy") == [(0, pytest.approx(result["test_accuracy"], rel=1e-6))]
    (text,) = found.Tensors("settings/text_summary")
    assert "| sparsity | 0.8 |" in text.tensor_proto.string_val[0].decode()
    assert "_hparams_/session_start_info" in found.summary_metadata


def test_what_was_logged_but_not_noted_is_not_there_twice(logged_run, to, lines, tmp_path):
    """The process may die between the log and the note of it."""
    logged_run(to("tensorboard", ""), stop_at=("sparse", 3, 2), variants=("sparse",))
    path = tmp_path / "run" / "logs.json"
    state = json.loads(path.read_text())
    state["logs"]["tensorboard"]["logged"]["sparse"] -= 1
    path.write_text(json.dumps(state))
    logged_run(to("tensorboard", ""), again=True)
    found = read(tmp_path / "run" / "tensorboard" / "sparse")
    assert [step for step, _ in points(found, "loss/test")] == [1, 2, 3]
    assert [event.step for event in found.Images("mask/3")] == [0, 1, 2, 3]


def test_a_folder_of_ones_own(logged_run, to, tmp_path):
    logged_run(to("tensorboard", str(tmp_path / "logs")), epochs=1)
    assert [step for step, _ in points(read(tmp_path / "logs" / "run" / "sparse"), "loss/test")] == [1]
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_by_hand(tmp_path):
    logger = ts.loggers.TensorBoard(tmp_path / "logs")
    logger.settings({"learning rate": 0.1, "name": "a|b", "yes": True})
    logger.scalars({"loss": 2.5}, 7)
    logger.histogram("fan", Distribution((0, 1, 2, 3, 5), 2, (4, 3, 1)), 7)
    logger.image("picture", torch.full((2, 3, 3), 200, dtype=torch.uint8), 7)
    logger.close()
    found = read(tmp_path / "logs")
    assert points(found, "loss") == [(7, 2.5)]
    value = found.Histograms("fan")[0].histogram_value
    assert (value.bucket_limit, value.bucket) == ([1.5, 3.5, 5.5], [4.0, 3.0, 1.0])
    assert (found.Images("picture")[0].width, found.Images("picture")[0].height) == (3, 2)
