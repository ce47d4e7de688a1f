"""Scripts of others set torch's default device. Layers on the CPU do the same then, to the bit: no tensor of ours is elsewhere.

The default here is "meta", on which nothing can be computed. tests/gpu has the same with a pretended GPU.
"""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import truesparse as ts
from truesparse import NM, Block, FanIn, Neurons, Rewirer, SharedFanIn, Unstructured, sparsify
from truesparse.algorithms import ALGORITHMS
from truesparse.nn.activations import TopK
from truesparse.pruning import CRITERIA, History
from truesparse.stability.activations import hidden_layers
from truesparse.testing import default_pattern, pruning_data, pruning_model, reason_against

pytestmark = pytest.mark.filterwarnings("ignore:layer .* is nearly pruned away", "ignore:.*samples")


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def drawn(*shape, seed=5):
    return torch.randn(*shape, generator=seeded(seed), device="cpu")


def made(build):
    """A module as people make it, on the CPU."""
    torch.manual_seed(0)
    with torch.device("cpu"):
        return build()


def mlp():
    return made(lambda: nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8)))


def images():
    return made(
        lambda: nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, groups=2), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.Flatten(), nn.Linear(96, 5))
    )


def state(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same_without(run):
    """What `run()` gives, a dict, is the same with a default device and without."""
    expected = run()
    with torch.device("meta"):
        found = run()
    assert found.keys() == expected.keys()
    for name, one in expected.items():
        same = torch.equal(found[name], one) if isinstance(one, torch.Tensor) else found[name] == one
        assert same, name


def trained(model, algorithm, shape=(4, 16), steps=6):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    rewirer = Rewirer(model, optimizer, algorithm, every=2, until=steps, generator=seeded(4))
    for number in range(steps):
        model(drawn(*shape, seed=number)).square().mean().backward()
        if rewirer.step():
            optimizer.step()
        optimizer.zero_grad()
    assert rewirer.rewirings >= 2
    return state(model)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_algorithms(name):
    def run():
        algorithm = ALGORITHMS[name]()
        sparsity, pattern = getattr(algorithm, "start_sparsity", 0.75), default_pattern(algorithm)
        return trained(sparsify(mlp(), sparsity, pattern=pattern, generator=seeded(3)), algorithm)

    same_without(run)


@pytest.mark.parametrize("pattern", [Unstructured(), FanIn(), SharedFanIn(4), NM(2, 8), Block(2), Neurons()], ids=repr)
@pytest.mark.parametrize("algorithm", [ts.RigL(), ts.SET(grown_std=0.1), ts.MEST(), ts.GMP(criterion="random")], ids=repr)
def test_patterns(algorithm, pattern):
    if reason_against(algorithm, pattern) is not None:
        pytest.skip("refused")
    same_without(lambda: trained(sparsify(mlp(), 0.75, pattern=pattern, generator=seeded(3)), algorithm))


@pytest.mark.parametrize("options", [{"init": "he"}, {"from_weights": True}, {"masked": True}, {"budget": "erk"}], ids=str)
def test_convolutions_and_ways_to_begin(options):
    same_without(lambda: trained(sparsify(images(), 0.5, generator=seeded(3), **options), ts.RigL(), (3, 4, 4, 4)))


@pytest.mark.parametrize(
    ("kind", "settings", "shape"),
    [
        (ts.SparseLinear, (40, 24), (70, 40)),
        (ts.SparseConv1d, (4, 6, 3), (2, 4, 9)),
        (ts.SparseConv2d, (4, 6, 3), (2, 4, 5, 6)),
        (ts.SparseConv3d, (2, 3, 2), (2, 2, 3, 3, 3)),
        (ts.SparseConvTranspose2d, (4, 3, 3), (2, 4, 3, 3)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_layers(kind, settings, shape, dtype):
    def run():
        layer = kind(*settings, sparsity=0.5, generator=seeded(0), device="cpu", dtype=torch.float64 if dtype is torch.float64 else None)
        x = drawn(*shape).to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            y = layer(x)
        y.float().square().sum().backward()
        layer.reset_parameters(seeded(7))
        return {"y": y.detach(), "dx": x.grad, "dvalues": layer.values.grad, "dbias": layer.bias.grad, **state(layer)}

    same_without(run)


@pytest.mark.parametrize(
    ("build", "call"),
    [
        (lambda: nn.MultiheadAttention(8, 2, batch_first=True), lambda model: model(*[drawn(2, 3, 8)] * 3)[0]),
        (lambda: nn.LSTM(6, 5, 2, batch_first=True, bidirectional=True), lambda model: model(drawn(2, 3, 6), drawn_states())[0]),
        (lambda: nn.GRUCell(6, 5), lambda model: model(drawn(2, 6), drawn(2, 5))),
        (lambda: nn.Sequential(nn.Embedding(11, 6), nn.Linear(6, 6)), lambda model: model((drawn(2, 3).abs() * 4).long())),
    ],
    ids=["attention", "LSTM", "GRUCell", "embedding"],
)
def test_opened_modules(build, call):
    def run():
        model = nn.ModuleList([made(build)])
        sparsify(model, 0.5, include=[nn.Embedding] if "Embedding" in repr(model) else [], generator=seeded(1))
        y = call(model[0])
        y.square().sum().backward()
        return {"y": y.detach(), **{name: one.grad for name, one in model.named_parameters()}, **state(ts.densify(model))}

    same_without(run)


def drawn_states():
    return drawn(4, 2, 5, seed=1), drawn(4, 2, 5, seed=2)


@pytest.mark.parametrize("name", CRITERIA)
def test_pruning(name):
    def run():
        model = pruning_model()
        criterion = ts.criteria.SynFlow(rounds=4) if name == "synflow" else None if name == "movement" else CRITERIA[name]()
        if criterion is None:
            history = History(model)
            for x, target in pruning_data():
                F.cross_entropy(model(x), target).backward()
            model.zero_grad()
            criterion = ts.criteria.Movement(history)
        pattern = next(pattern for pattern in (Unstructured(), Neurons()) if reason_against(criterion, pattern) is None)
        ts.prune(model, 0.75, criterion, pattern=pattern, data=pruning_data(), loss=F.cross_entropy, generator=seeded(2))
        return state(model)

    same_without(run)


def test_neurons_are_removed():
    def run():
        model, example = pruning_model().float(), drawn(2, 8, 4, 4)
        ts.prune(model, 0.5, pattern="neurons", example=example)
        small = ts.shrink(model, example).eval()
        return {"y": small(example).detach(), **state(small)}

    same_without(run)


@pytest.mark.parametrize("values", [None, "bfloat16", "int8"])
@pytest.mark.parametrize(("build", "shape"), [(mlp, (5, 16)), (images, (3, 4, 4, 4)), (pruning_model, (2, 8, 4, 4))])
def test_packed_networks(build, shape, values):
    def run():
        model, example = build().float().eval(), drawn(*shape)
        sparsify(model, 0.9, generator=seeded(3))
        quantised = {} if values is None else {"values": values}
        fast = ts.pack(model, example, tune=False, **quantised)
        layers = copy.deepcopy(model)
        ts.pack_layers(layers, tune=False)
        with torch.inference_mode():
            return {"y": fast(example), "layers": layers(example)}

    same_without(run)


def test_measures_and_stability():
    def run():
        model = sparsify(mlp(), 0.75, generator=seeded(3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1)
        rewirer = Rewirer(model, optimizer, ts.RigL(), every=2, until=8, generator=seeded(4))
        penalty = ts.stability.ActivationPenalty(hidden_layers(model), l1=1e-3, l2=1e-3, hoyer=1e-3)
        ts.stability.DecayGrace(rewirer, steps=3)
        average = ts.stability.Average(model, rewirer, decay=0.9)
        tracker = ts.metrics.Tracker(model, rewirer, example=drawn(1, 16), every=3)
        for number in range(6):
            (model(drawn(4, 16, seed=number)).square().mean() + penalty.loss()).backward()
            if rewirer.step():
                optimizer.step()
                average.update()
            optimizer.zero_grad()
            tracker.step(4)
        report = tracker.report(ts.metrics.tracker.gradient_norms(model))
        with average.applied():
            return {"report": str(report["layers"]), "html": model[0].topology._repr_html_(), **state(model)}

    same_without(run)


def test_files(tmp_path):
    def run():
        model = sparsify(mlp(), 0.75, generator=seeded(3))
        ts.save(model, tmp_path / "net.safetensors")
        ts.compress(model, tmp_path / "net.tsz")
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        file.seek(0)
        whole = sparsify(mlp(), 0.5, generator=seeded(8))
        whole.load_state_dict(torch.load(file, map_location="cpu"))
        kept = [ts.load(tmp_path / name, sparsify(mlp(), 0.5, generator=seeded(8))) for name in ("net.safetensors", "net.tsz")]
        ts.export_c(model, drawn(1, 16), tmp_path / "net.h")
        outputs = {f"y{number}": one(drawn(3, 16)).detach() for number, one in enumerate([*kept, whole, copy.deepcopy(model)])}
        return {"c": (tmp_path / "net.h").read_text(), "tsz": (tmp_path / "net.tsz").read_bytes(), **outputs}

    same_without(run)


@pytest.mark.parametrize("by", ["row", "codebook"])
def test_quantisation(by):
    def run():
        model = sparsify(mlp(), 0.75, generator=seeded(3))
        ts.quantize(model, bits=4, by=by, data=[drawn(4, 16)] if by == "row" else None)
        return {"y": model(drawn(4, 16)).detach(), **state(model), **state(ts.dequantize(model))}

    same_without(run)


@pytest.mark.parametrize("kind", [ts.regularizers.L0, ts.regularizers.VariationalDropout])
def test_regularizers(kind):
    def run():
        model = mlp()
        rule = kind(model, strength=1e-3, generator=seeded(3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for _ in range(3):
            (model(drawn(4, 16)).square().mean() + rule.loss()).backward()
            optimizer.step()
        return state(model)

    same_without(run)


def test_constructors_of_layers_follow_torch():
    """As those of torch.nn: where nothing is said, on the default device; a topology has to be real."""
    with torch.device("meta"):
        with pytest.raises(ValueError, match="build it on a real device"):
            ts.SparseLinear(4, 3)
        assert ts.SparseLinear(4, 3, device="cpu").topology.device.type == "cpu"
        assert ts.Unstructured().random((3, 4), 5).device.type == "cpu"
        assert TopK(2, boost=1.0, units=4).duty.is_meta
