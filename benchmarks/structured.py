"""What does pruning of whole neurons remove, here and by Torch-Pruning? Of the same networks, half of each set of neurons, by magnitude.

    pip install torch-pruning==1.6.* --no-deps --target /some/folder
    python benchmarks/structured.py --torch-pruning /some/folder

Parameters, and multiplications of convolutions and linear layers for one input, before and after; and how far the outputs of the smaller
network are from those of the pruned one, in float64 (Torch-Pruning has no pruned network before it is smaller: nothing to compare with).
Weights are random: counted is what is removed. Llama needs transformers. Torch-Pruning is called as its examples/LLMs/prune_llm.py does
(the heads of queries, keys and values given, head_pruning_ratio), and stopped when it is not done after --limit seconds.
"""

import argparse
import signal
import sys
import warnings
from contextlib import contextmanager
from copy import deepcopy
from fnmatch import fnmatchcase
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

import truesparse as ts


class Basic(nn.Module):
    """The block of ResNet-18."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        same = inputs == outputs and stride == 1
        self.down = nn.Identity() if same else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.down(x))


def resnet18():
    widths = [(64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2), (512, 512, 1)]
    stem = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
    return nn.Sequential(*stem, *(Basic(*one) for one in widths), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))


class Inverted(nn.Module):
    """The block of MobileNetV2."""

    def __init__(self, inputs, outputs, stride, expand):
        super().__init__()
        hidden, self.same = inputs * expand, inputs == outputs and stride == 1
        self.block = nn.Sequential(
            *(nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6()),
            *(nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6()),
            *(nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)),
        )

    def forward(self, x):
        return x + self.block(x) if self.same else self.block(x)


def mobile():
    widths = [(32, 16, 1), (16, 24, 2), (24, 24, 1), (24, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 96, 1), (96, 160, 2)]
    stem = nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6()
    last = nn.Conv2d(160, 640, 1, bias=False), nn.BatchNorm2d(640), nn.ReLU6()
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(640, 1000)
    return nn.Sequential(*stem, *(Inverted(*one, 6) for one in widths), *last, *head)


class Attention(nn.Module):
    """Queries, keys and values of one matrix."""

    def __init__(self, width, heads):
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        batch, places, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, places, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, places, -1))


class Encoder(nn.Module):
    """A block of ViT."""

    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(width), Attention(width, heads), nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    """ViT-Tiny with patches of 16, of the mean of its places."""

    def __init__(self, width=192, heads=4, depth=12):
        super().__init__()
        self.patches, self.blocks = nn.Conv2d(3, width, 16, 16), nn.Sequential(*(Encoder(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 1000)

    def forward(self, x):
        return self.head(self.norm(self.blocks(self.patches(x).flatten(2).transpose(1, 2))).mean(1))


def llama(keys):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": keys}
    return LlamaForCausalLM(LlamaConfig(vocab_size=128, use_cache=False, **sizes))


# What writes the stream of a Transformer stays in both: LayerNorm looks at all of it.
NETWORKS = {
    "ResNet-18": (resnet18, torch.randn(1, 3, 224, 224), ()),
    "MobileNetV2-like": (mobile, torch.randn(1, 3, 224, 224), ()),
    "ViT-Tiny, 4 heads": (ViT, torch.randn(1, 3, 224, 224), ("patches", "*.proj", "*.fc2")),
    "Llama, 8 heads on 8 keys": (partial(llama, 8), {"input_ids": torch.arange(8)[None]}, ("*.o_proj", "*.down_proj")),
    "Llama, 8 heads on 4 keys": (partial(llama, 4), {"input_ids": torch.arange(8)[None]}, ("*.o_proj", "*.down_proj")),
}


def run(model, x):
    y = model(**x) if isinstance(x, dict) else model(x)
    return y if isinstance(y, torch.Tensor) else y.logits


def size(model, x):
    """(parameters, multiplications of convolutions and linear layers)"""
    count = 0

    def hear(layer, given, y):
        nonlocal count
        count += layer.weight.numel() * (y.numel() // y.shape[1] if isinstance(layer, nn.Conv2d) else y.numel() // y.shape[-1])

    handles = [one.register_forward_hook(hear) for one in model.modules() if isinstance(one, (nn.Conv2d, nn.Linear))]
    with torch.no_grad():
        run(model, x)
    for handle in handles:
        handle.remove()
    return sum(one.numel() for one in model.parameters()), count


def ours(model, x, exclude):
    """(the smaller network, the largest difference of its outputs from those of the pruned one, in float64)"""
    double = {name: one.double() if one.is_floating_point() else one for name, one in x.items()} if isinstance(x, dict) else x.double()
    pruned = ts.prune(deepcopy(model).double(), 0.5, pattern="neurons", example=double, exclude=exclude)
    small = ts.shrink(pruned, double)
    with torch.no_grad():
        return small.float(), float((run(small.double(), double) - run(pruned, double)).abs().max())


def theirs(tp, model, x, exclude):
    model = deepcopy(model)
    names = dict(model.named_modules())
    ignored = [one for name, one in names.items() if any(fnmatchcase(name, glob) for glob in exclude)]
    ignored += [one for one in names.values() if isinstance(one, nn.Linear) and one.out_features in (1000, 128) and one not in ignored][-1:]
    heads = {one.qkv: one.num_heads for one in names.values() if isinstance(one, Attention)}
    for one in names.values():
        if hasattr(one, "q_proj"):
            keys = model.config.num_key_value_heads
            heads |= {one.q_proj: model.config.num_attention_heads, one.k_proj: keys, one.v_proj: keys}
    settings = {"num_heads": heads, "prune_num_heads": True, "prune_head_dims": False, "head_pruning_ratio": 0.5} if heads else {}
    pruner = tp.pruner.BasePruner(
        model, x, importance=tp.importance.MagnitudeImportance(p=1), pruning_ratio=0.5, ignored_layers=ignored, **settings
    )
    pruner.step()
    for one in names.values():
        if isinstance(one, Attention):
            one.num_heads = pruner.num_heads[one.qkv]
    return model


@contextmanager
def stopped_after(seconds):
    def stop(*_):
        raise TimeoutError(f"not done after {seconds} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-pruning", help="the folder that it was installed into")
    parser.add_argument("--limit", type=int, default=300, help="seconds for each network of Torch-Pruning")
    parser.add_argument("--network", action="append", choices=NETWORKS, help="only these")
    options = parser.parse_args()
    tp = None
    if options.torch_pruning:
        sys.path.append(options.torch_pruning)
        import torch_pruning as tp
    torch.manual_seed(0)
    print("| network | | parameters | multiplications | difference |")
    print("|---|---|---:|---:|---:|")
    for name in options.network or NETWORKS:
        make, x, exclude = NETWORKS[name]
        model = make().eval()
        dense = size(model, x)
        print(f"| {name} | dense | {dense[0]:,} | {dense[1]:,} | |", flush=True)
        small, difference = ours(model, x, exclude)
        counts = size(small.float(), x)
        print(f"| | truesparse | {counts[0]:,} | {counts[1]:,} | {difference:.0e} |", flush=True)
        if tp:
            try:
                with warnings.catch_warnings(), stopped_after(options.limit):
                    warnings.simplefilter("ignore")
                    counts = size(theirs(tp, model, x, exclude), x)
                print(f"| | Torch-Pruning {tp.__version__} | {counts[0]:,} | {counts[1]:,} | |", flush=True)
            except Exception as error:  # of any kind: what it says is the result
                print(f"| | Torch-Pruning {tp.__version__} | {type(error).__name__}: {str(error).splitlines()[0]} | | |", flush=True)


if __name__ == "__main__":
    main()
