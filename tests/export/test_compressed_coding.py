"""What is coded comes back, in about as many bytes as the entropy says; streams that are none are refused."""

import math
from collections import Counter

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from oracles import connections, made

from truesparse import Topology

pytest.importorskip("constriction", reason="the extra compress is not installed")

from truesparse.export.compressed.positions import ESCAPE, decode_positions, encode_positions
from truesparse.export.compressed.streams import SYMBOLS_A_BYTE, decode, encode
from truesparse.export.compressed.tensors import DTYPES, encode_tensor

SYMBOLS = st.one_of(
    st.lists(st.integers(0, 255), max_size=300),
    st.lists(st.sampled_from([0, 0, 0, 0, 0, 0, 7, 255]), max_size=600),
    st.builds(lambda symbol, count: [symbol] * count, st.integers(0, 255), st.integers(0, 3000)),
)


def entropy(symbols):
    """In bits, all together."""
    counts = Counter(symbols)
    return sum(count * math.log2(len(symbols) / count) for count in counts.values())


@given(symbols=SYMBOLS, entries=st.integers(0, 5000))
def test_symbols_come_back(symbols, entries):
    coded = encode(np.array(symbols, dtype=np.uint8), entries)
    assert decode(coded.content, len(symbols), entries).tolist() == symbols
    assert coded.symbols == len(symbols)
    assert coded.entropy == pytest.approx(entropy(symbols), abs=1e-6)
    assert max(entries, len(symbols)) <= SYMBOLS_A_BYTE * len(coded.content)
    assert len(coded.content) <= max(len(symbols) + 5, -(-entries // SYMBOLS_A_BYTE)), "never much more than they are"


@pytest.mark.parametrize("count", [20_000, 200_000])
@pytest.mark.parametrize("skew", [0.0, 0.5, 2.0, 6.0])
@pytest.mark.parametrize("alphabet", [2, 16, 255])
def test_within_three_per_cent_of_the_entropy(count, skew, alphabet):
    generator = np.random.default_rng(0)
    shares = np.arange(1, alphabet + 1.0) ** -skew
    symbols = generator.choice(alphabet, count, p=shares / shares.sum()).astype(np.uint8)
    expected, found = entropy(symbols.tolist()) / 8, len(encode(symbols).content)
    assert expected <= found <= 1.03 * expected + 100, "100 bytes are for the table"
    assert count < 200_000 or skew > 2 or found <= 1.01 * expected + 300


@given(symbols=st.binary(min_size=1, max_size=200), junk=st.binary(max_size=40), count=st.integers(0, 400))
def test_streams_that_are_none(symbols, junk, count):
    content = encode(np.frombuffer(symbols, dtype=np.uint8)).content
    for damaged in (junk, content[: len(content) // 2], content + junk, junk + content):
        try:
            found = decode(damaged, count)
        except ValueError:
            continue
        assert len(found) == count


SAID = {
    "too many": (b"\0\0\0\0\0", 5000, "5 bytes cannot hold 5000 entries"),
    "no table": (b"", 0, "its table ends too early"),
    "a long table": (b"\x90\x03", 3, "a table has at most 256 shares, got 400"),
    "half a number": (b"\x02\x80", 3, "its table ends too early"),
    "a long number": (b"\x80\x80\x80\x01", 3, "numbers of more than three bytes"),
    "odd shares": (b"\x02\x01\x02\0\0\0\0", 3, "the shares of a table add up to a power of two up to 16384, got 3"),
    "no shares": (b"\x02\x00\x01\0\0\0\0", 3, "add up to a power of two up to 16384, got 0"),
    "too few": (b"\0\0\0\0\0\1\2", 3, "expected 3 symbols, got 2"),
    "others": (b"\0\1\2\3\4\1\2\3", 3, "its symbols are not those that were written"),
}


@pytest.mark.parametrize(("content", "count", "says"), SAID.values(), ids=SAID)
def test_what_is_said_of_them(content, count, says):
    with pytest.raises(ValueError, match=says):
        decode(content, count)


def back(topology):
    coded = encode_positions(topology)
    nbytes = len(coded.lowest) + len(coded.gaps.content)
    return coded, decode_positions(topology.shape, topology.nnz, coded.low, coded.lowest, coded.gaps.content, coded.gaps.symbols), nbytes


@given(drawn=connections())
def test_connections_come_back(drawn):
    topology = made(*drawn)
    assert back(topology)[1].equal(topology)


@given(
    columns=st.integers(1, 10**6),
    gaps=st.lists(st.one_of(st.integers(0, 5), st.sampled_from([ESCAPE - 1, ESCAPE, ESCAPE + 1, 2 * ESCAPE, 10**6])), max_size=30),
)
def test_gaps_of_every_size(columns, gaps):
    keys, at = [], -1
    for gap in gaps:
        at += gap + 1
        keys.append(at)
    topology = Topology.from_keys(((at + columns) // columns + 2, columns), torch.tensor(keys, dtype=torch.int64))
    assert back(topology)[1].equal(topology)


@pytest.mark.parametrize("density", [0.002, 0.02, 0.1, 0.5, 0.9, 1.0])
def test_random_connections_take_what_chance_says(density):
    """H(p) / p bits a connection: no code can be shorter on average."""
    shape = 400, 1000
    present = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < density
    topology = Topology.from_mask(present)
    _, found, nbytes = back(topology)
    assert found.equal(topology)
    share = topology.nnz / topology.size
    bits = 0.0 if share == 1 else -(share * math.log2(share) + (1 - share) * math.log2(1 - share)) * topology.size
    assert nbytes <= 1.03 * bits / 8 + 60 + topology.nnz / SYMBOLS_A_BYTE


def test_positions_that_are_none():
    topology = Topology.from_keys((3, 400), torch.tensor([1, 500, 501, 1100]))
    coded = encode_positions(topology)
    gaps, symbols = coded.gaps.content, coded.gaps.symbols
    assert coded.low > 0

    def decoded(shape=(3, 400), connections=4, low=coded.low, lowest=coded.lowest, content=gaps, count=symbols):
        return decode_positions(shape, connections, low, lowest, content, count)

    assert decoded().equal(topology)
    for says, change in (
        ("bytes are not 30 bits for each of 4 connections", {"low": 30}),
        ("bytes are not", {"lowest": coded.lowest[:-1]}),
        (r"its gaps lead to position 1100; positions lie in \[0, 900\)", {"shape": (3, 300)}),
        ("bytes cannot hold 1000000 entries", {"shape": (10**6, 400)}),
        (
            "must end in a connection and have 1, got 2",
            _two(3, 4),
        ),
        (
            "must end in a connection and have 1, got 1",
            _two(3, 63),
        ),
    ):
        with pytest.raises(ValueError, match=says):
            decoded(**change)


def _two(*symbols):
    """Two symbols where one connection is said to be."""
    content = encode(np.array(symbols, dtype=np.uint8)).content
    return {"connections": 1, "low": 0, "lowest": b"", "content": content, "count": 2}


@pytest.mark.parametrize("name", DTYPES)
def test_tensors_of_every_kind(name):
    dtype = DTYPES[name]
    tensor = (torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * 20).to(dtype)
    for one in (tensor, tensor.t(), tensor[0, 0], tensor[:0]):
        coded = encode_tensor(one)
        planes = [decode(plane.content, one.numel()) for plane in coded.planes]
        assert np.stack(planes, 1).tobytes() == one.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    with pytest.raises(TypeError, match=r"a compressed file holds tensors of bool, uint8, .*, got complex64"):
        encode_tensor(torch.zeros(2, dtype=torch.complex64))
