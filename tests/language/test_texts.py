"""On which tokens a language model is measured and scored."""

import pytest
from tiny import text, tokenizer

from truesparse.data import DataError
from truesparse.language import windows
from truesparse.language.texts import CALIBRATING, LENGTH, SCORED, brown, training


def test_a_text_file_is_cut_into_pieces_of_which_every_tenth_is_test(tmp_path):
    path = tmp_path / "own.txt"
    path.write_text(text(LENGTH * 22 + 100))
    found, tokens = windows(path, tokenizer()), tokenizer()(text(LENGTH * 22 + 100), return_tensors="pt").input_ids
    assert [one.tolist() for one in found.test] == [tokens[:, LENGTH * place : LENGTH * (place + 1)].tolist() for place in (0, 10, 20)]
    others = [tokens[:, LENGTH * place : LENGTH * (place + 1)].tolist() for place in range(22) if place % 10]
    assert [one.tolist() for one in found.calibration] == others[:CALIBRATING]


def test_of_brown_texts_their_beginnings_count(monkeypatch):
    def long(number):
        return " ".join([f"w{number % 60}"] * (LENGTH + 3 if number % 7 else LENGTH - 1))

    monkeypatch.setattr("truesparse.language.texts.brown", lambda: [long(number) for number in range(500)])
    found, words = windows("brown", tokenizer()), tokenizer()
    assert len(found.test) == SCORED
    assert len(found.calibration) == CALIBRATING
    assert {one.shape for one in (*found.test, *found.calibration)} == {(1, LENGTH)}
    kept = [number for number in range(500) if number % 10 == 0 and number % 7]
    assert [words.decode(one[0, :1]) for one in found.test] == [f"w{number % 60}" for number in kept[:SCORED]]


def test_tags_of_brown_are_taken_off(monkeypatch):
    tagged = {
        "corpus/ca02": b"``/`` So/rb ,/, he/pps said/vbd ''/'' ./.",
        "corpus/ca01": b"One/cd (/( two/cd )/) !/.",
        "corpus/README": b"no text",
    }

    def fetched(name, checksums, sources):
        return sources[0].arrange(tagged)

    monkeypatch.setattr("truesparse.language.texts.fetch", fetched)
    assert brown() == ["One ( two)!", '" So, he said".']


def test_what_is_not_test_trains():
    assert training(list(range(12))) == [1, 2, 3, 4, 5, 6, 7, 8, 9, 11]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"expected 'brown' or a text file in UTF-8, and .*own.txt cannot be read"),
        (b"\xff\xfe\x00", r"cannot be read"),
        (b"w1 w2 w3", r"has 3 tokens, and at least 1024 are needed: 512 to measure and as many to score"),
    ],
)
def test_a_text_that_is_none_or_too_short_is_refused(tmp_path, content, said):
    path = tmp_path / "own.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=said):
        windows(path, tokenizer())
