"""What an offline run of Weights & Biases has written is what the run's files say."""

import json
import struct

import pytest

pytest.importorskip("wandb", reason="wandb is not installed: the extra `wandb`")


def contents(file):
    """The records of a file: a header of 7 bytes, then LevelDB's log format, https://github.com/google/leveldb/blob/main/doc/log_format.md"""
    place, record = 7, b""
    while place + 7 <= len(file):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack("<IHB", file[place : place + 7])
        record += file[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def records(folder):
    """(configuration, lines of the history, summary) of each offline run below the folder, in the order of their beginning."""
    from wandb.proto.wandb_internal_pb2 import Record

    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        config, history, summary = {}, [], {}
        for data in contents(path.read_bytes()):
            record = Record()
            record.ParseFromString(data)
            config |= {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.config.update}
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            if record.HasField("history"):
                line = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
                history.append({**line, "_step": record.history.step.num})
            summary |= {item.key: json.loads(item.value_json) for item in record.summary.update}
        yield path.parent.name.split("-")[-1], config, history, summary


def test_a_run_stopped_and_gone_on_with(logged_run, to, lines, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logged_run(to("wandb", ""), stop_at=("sparse", 2, 3), variants=("sparse",))
    logged_run(to("wandb", ""), again=True)
    parts = list(records(tmp_path / "run"))
    assert [variant for variant, *_ in parts] == ["sparse", "sparse"]
    assert parts[0][1]["sparsity"] == 0.8
    history = [line for _, _, lines_, _ in parts for line in lines_ if "loss/test" in line]
    assert [line["_step"] for line in history] == [1, 2, 3]
    assert [line["loss/test"] for line in history] == [line["test_loss"] for line in lines().values()]
    assert history[-1]["itop_rate/1"] == lines()[3]["layers"]["1"]["itop_rate"]
    assert history[-1]["fan_in/3/values"] == lines()[3]["layers"]["3"]["fan_in"]["counts"]
    assert history[-1]["mask/3/_type"] == "image-file"
    assert parts[-1][3]["results/epochs"] == 3
