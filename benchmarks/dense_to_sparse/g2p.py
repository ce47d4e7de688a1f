"""g2p-en, from letters to phonemes: two GRUs, 0.8 M weights, whose arrays its package holds. Score: phonemes wrong, in percent of those of
2,000 words of CMUdict; fine-tuned on 20,000 others, letters to the dictionary's phonemes."""

from __future__ import annotations

import io
import re

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from truesparse.data import PypiPackage, fetch

from .network import Batch, Network, fitted

WEIGHTS = {"checkpoint20.npz": "814abc5bb006f6e2a486226007fd2022"}  # MD5
WORDS = {"cmudict.dict": "5837aa6e49fd070d482b8ca0525f28ef"}
LETTERS = {letter: 3 + place for place, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}  # before them: padding, unknown, end
VOWELS = ("AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW")
CONSONANTS = (
    "B",
    "CH",
    "D",
    "DH",
    "F",
    "G",
    "HH",
    "JH",
    "K",
    "L",
    "M",
    "N",
    "NG",
    "P",
    "R",
    "S",
    "SH",
    "T",
    "TH",
    "V",
    "W",
    "Y",
    "Z",
    "ZH",
)
# In the order of the network: sorted, with UW without a stress as one of them. Before them: padding, unknown, begin, end.
PHONEMES = sorted([*(f"{vowel}{stress}" for vowel in VOWELS for stress in "012"), *CONSONANTS, "UW"])
NUMBERS = {phoneme: 4 + place for place, phoneme in enumerate(PHONEMES)}
LETTERS_END, BEGIN, END, LONGEST = 2, 2, 3, 20
TEST, TRAINING, BATCH, RATE = 2000, 20000, 64, 5e-4

Word = tuple[list[int], list[list[int]]]  # letters, and each way to say them


class Speller(nn.Module):
    """Letters and, for training, phonemes in; scores of the phonemes that follow each out."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        super().__init__()
        self.letters, self.phonemes = (
            nn.Embedding.from_pretrained(torch.from_numpy(arrays[name]), freeze=False) for name in ("enc_emb", "dec_emb")
        )
        self.encoder, self.decoder = (_gru(arrays, part) for part in ("enc", "dec"))
        self.answer = nn.Linear(*reversed(arrays["fc_w"].shape))
        self.answer.load_state_dict({"weight": torch.from_numpy(arrays["fc_w"]), "bias": torch.from_numpy(arrays["fc_b"])})

    def forward(self, words: tuple[Tensor, Tensor]) -> Tensor:
        """
        Args:
            words: letters [words, length], all of one length, and the phonemes before those that are asked for [words, steps].
        """
        letters, before = words
        return self.answer(self.decoder(self.phonemes(before), self.encoder(self.letters(letters))[1])[0])

    @torch.no_grad()
    def said(self, letters: Tensor) -> list[list[int]]:
        """The phonemes of words of one length, each the likeliest after those before it."""
        state = self.encoder(self.letters(letters))[1]
        last, found = torch.full((len(letters), 1), BEGIN), []
        for _ in range(LONGEST):
            output, state = self.decoder(self.phonemes(last), state)
            last = self.answer(output).argmax(-1)
            found.append(last)
        return [row[: row.index(END)] if END in row else row for row in torch.cat(found, 1).tolist()]


def _gru(arrays: dict[str, np.ndarray], part: str) -> nn.GRU:
    rows, columns = arrays[f"{part}_w_ih"].shape
    gru = nn.GRU(columns, rows // 3, batch_first=True)
    names = {"weight_ih_l0": "w_ih", "weight_hh_l0": "w_hh", "bias_ih_l0": "b_ih", "bias_hh_l0": "b_hh"}
    gru.load_state_dict({name: torch.from_numpy(arrays[f"{part}_{short}"]) for name, short in names.items()})
    return gru


def dictionary() -> list[Word]:
    """Words of letters alone with every way to say them, shuffled once and for all."""
    (content,) = fetch("cmudict", WORDS, [PypiPackage("cmudict", "1.1.3", 0.9, "cmudict/data/")]).values()
    said: dict[str, list[list[int]]] = {}
    for line in content.decode().splitlines():
        word, *phonemes = line.partition(" #")[0].split()
        name = re.sub(r"\(\d+\)$", "", word)
        if re.fullmatch("[a-z]+", name):
            said.setdefault(name, []).append([NUMBERS[phoneme] for phoneme in phonemes])
    words = [([LETTERS[letter] for letter in word] + [LETTERS_END], ways) for word, ways in said.items()]
    return [words[place] for place in torch.randperm(len(words), generator=torch.Generator().manual_seed(0))]


def batches(words: list[Word], size: int) -> list[Batch]:
    """((letters, phonemes before), phonemes) of words that are as long as one another; the first way to say each."""
    found = []
    for group in _of_one_length(words):
        for start in range(0, len(group), size):
            part = group[start : start + size]
            steps = max(len(ways[0]) for _, ways in part) + 1
            after = torch.tensor([ways[0] + [END] + [0] * (steps - 1 - len(ways[0])) for _, ways in part])
            before = torch.cat([torch.full((len(part), 1), BEGIN), after[:, :-1]], 1)
            found.append(((torch.tensor([letters for letters, _ in part]), before), after))
    return found


def network() -> Network:
    (content,) = fetch("g2p-en", WEIGHTS, [PypiPackage("g2p-en", "2.1.0", 3.1, "g2p_en/")]).values()
    model = Speller(dict(np.load(io.BytesIO(content)))).eval()
    words = dictionary()
    test, training = words[:TEST], words[TEST : TEST + TRAINING]

    def score(model: nn.Module) -> float:
        model.eval()
        wrong = asked = 0
        for group in _of_one_length(test):
            for (_, ways), found in zip(group, model.said(torch.tensor([letters for letters, _ in group])), strict=True):
                nearest = min(ways, key=lambda way: _edits(found, way) / len(way))
                wrong, asked = wrong + _edits(found, nearest), asked + len(nearest)
        return 100 * wrong / asked

    def tune(model: nn.Module) -> None:
        parts = batches(training, BATCH)
        order = torch.randperm(len(parts), generator=torch.Generator().manual_seed(0)).tolist()
        model.train()
        fitted(model, order, len(order), lambda place: _lost(model(parts[place][0]), parts[place][1]), RATE)

    calibration = batches(training[:1024], BATCH)
    return Network(
        title="g2p-en",
        measure="phonemes wrong",
        model=model,
        score=score,
        calibration=calibration,
        samples=calibration[::4],
        loss=_lost,
        tune=tune,
    )


def _lost(scores: Tensor, phonemes: Tensor) -> Tensor:
    return F.cross_entropy(scores.flatten(0, 1), phonemes.flatten(), ignore_index=0)


def _of_one_length(words: list[Word]) -> list[list[Word]]:
    return [[word for word in words if len(word[0]) == length] for length in sorted({len(letters) for letters, _ in words})]


def _edits(found: list[int], wanted: list[int]) -> int:
    """Insertions, deletions and replacements from one to the other (Levenshtein)."""
    row = list(range(len(wanted) + 1))
    for place, one in enumerate(found, 1):
        before, row[0] = row[0], place
        for at, other in enumerate(wanted, 1):
            before, row[at] = row[at], min(before + (one != other), row[at] + 1, row[at - 1] + 1)
    return row[-1]
