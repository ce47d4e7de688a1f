"""On the pretended device all is as on the CPU: one seed, one topology, the same values. Nothing is on two devices on the way.

Most runs are of the reference kernels, which are fast enough; the Triton kernels have tests of their own, and some runs here.
"""

import copy
import io
import os
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import truesparse as ts
from truesparse import NM, Block, FanIn, Neurons, Rewirer, RigL, Unstructured, ops, sparsify
from truesparse.algorithms import ALGORITHMS
from truesparse.nn import topology_layers
from truesparse.pruning import CRITERIA, History
from truesparse.stability.activations import hidden_layers
from truesparse.testing import OPTIMIZERS, default_pattern, pruning_data, pruning_model, reason_against

pytest.importorskip("triton", reason="the extra gpu is not installed")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("make test runs these in a process of its own, with TRITON_INTERPRET=1", allow_module_level=True)

from pretended import NAME, PretendedDevice

pytestmark = pytest.mark.filterwarnings("ignore:layer .* is nearly pruned away", "ignore:.*samples")


def drawn(*shape, seed=5):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, device="cpu")


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8)).double()


def state(model):
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def same_on_both(run, family="reference"):
    """What `run(device)` gives, a nest of tensors and plain values, is the same on the CPU and on the device, default or not."""
    torch.manual_seed(0)
    with ops.use(family):
        expected = run("cpu")
    defaults = [("cpu", NAME), (NAME, NAME), (NAME, "cpu")] if family == "reference" else [("cpu", NAME)]  # the interpreter is slow
    for default, device in defaults:
        torch.manual_seed(0)
        with PretendedDevice(), ops.use(family), torch.device(default):
            found = run(device)
        assert found.keys() == expected.keys()
        for name, one in expected.items():
            if isinstance(one, str):
                assert found[name] == one
            else:
                torch.testing.assert_close(found[name], one, rtol=1e-9, atol=1e-12, msg=lambda said, name=name: f"{name}: {said}")


def step(model, optimizer, rewirer, x):
    loss = model(x).square().mean()
    loss.backward()
    if rewirer.step():
        optimizer.step()
    optimizer.zero_grad()
    return loss.detach().cpu()


def trained(model, device, algorithm, optimizer="AdamW", steps=6):
    made = OPTIMIZERS[optimizer](list(model.parameters()))
    rewirer = Rewirer(model, made, algorithm, every=2, until=steps, generator=seeded(4))
    losses = [step(model, made, rewirer, drawn(4, 16, seed=number).to(device)) for number in range(steps)]
    assert rewirer.rewirings >= 2
    return {"loss": torch.stack(losses), **state(model)}


def sparse(algorithm, device, pattern=None, masked=False):
    sparsity = getattr(algorithm, "start_sparsity", 0.75)
    options = {"pattern": pattern or default_pattern(algorithm), "masked": masked, "generator": seeded(3)}
    return sparsify(mlp(), sparsity, **options).to(device)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_one_seed_gives_one_topology(name):
    same_on_both(lambda device: trained(sparse(ALGORITHMS[name](), device), device, ALGORITHMS[name]()))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizer_state_follows(optimizer):
    same_on_both(lambda device: trained(sparse(RigL(), device), device, RigL(), optimizer))


@pytest.mark.parametrize("pattern", [Unstructured(), FanIn(), NM(2, 8), Block(2), Neurons()], ids=repr)
@pytest.mark.parametrize("algorithm", [RigL(), ts.SET(grown_std=0.1), ts.MEST()], ids=repr)
def test_patterns(algorithm, pattern):
    same_on_both(lambda device: trained(sparse(algorithm, device, pattern), device, algorithm))


@pytest.mark.parametrize("algorithm", [RigL(), ts.SRigL(), ts.SET()], ids=repr)
def test_masked_twins(algorithm):
    same_on_both(lambda device: trained(sparse(algorithm, device, masked=True), device, algorithm))


@pytest.mark.parametrize("algorithm", [RigL(), ts.SRigL(), ts.SET()], ids=repr)
def test_with_the_kernels_of_triton(algorithm):
    """Sparsified on the CPU and moved, or where it is: the same network."""

    def run(device):
        there = sparsify(mlp().to(device), 0.75, pattern=default_pattern(algorithm), generator=seeded(3))
        moved = sparse(algorithm, device)
        assert all(torch.equal(one, other) for one, other in zip(state(there).values(), state(moved).values(), strict=True))
        return trained(there, device, algorithm, steps=5)

    same_on_both(run, "triton")


def of_one_layer(make, call):
    """Sparse layers made of it train and are rewired."""

    def run(device):
        torch.manual_seed(0)
        model = nn.ModuleList([make()]).double().to(device)
        sparsify(model, 0.5, include=[nn.Embedding] if "Embedding" in repr(model) else [], generator=seeded(1))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        rewirer = Rewirer(model, optimizer, RigL(), every=2, until=4, generator=seeded(2))
        for _ in range(4):
            call(model[0], lambda *shape: drawn(*shape).to(device)).square().mean().backward()
            if rewirer.step():
                optimizer.step()
            optimizer.zero_grad()
        return state(model)

    return run


def packed(model, x):
    return model(nn.utils.rnn.pack_padded_sequence(x(2, 3, 6), [3, 2], batch_first=True))[0].data


LAYERS = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 4, padding="same"), lambda model, x: model(x(2, 4, 7))),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), lambda model, x: model(x(2, 4, 4, 5))),
    "conv3d": (lambda: nn.Conv3d(2, 3, (2, 1, 2)), lambda model, x: model(x(2, 2, 3, 3, 3))),
    "circular": (lambda: nn.Conv2d(4, 3, 3, padding=1, padding_mode="circular"), lambda model, x: model(x(2, 4, 3, 3))),
    "transposed": (lambda: nn.ConvTranspose2d(4, 3, 3, stride=2, output_padding=1), lambda model, x: model(x(2, 4, 3, 3))),
    "attention": (lambda: nn.MultiheadAttention(8, 2, batch_first=True), lambda model, x: model(*[x(2, 3, 8)] * 3)[0]),
    "encoder": (lambda: nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), lambda model, x: model(x(2, 3, 8))),
    "LSTM": (lambda: nn.LSTM(6, 5, 2, batch_first=True, bidirectional=True), lambda model, x: model(x(2, 3, 6))[0]),
    "packed LSTM": (lambda: nn.LSTM(6, 5, batch_first=True), packed),
    "GRUCell": (lambda: nn.GRUCell(6, 5), lambda model, x: model(x(2, 6))),
    "embedding": (
        lambda: nn.Sequential(nn.Embedding(11, 6), nn.Linear(6, 6)),
        lambda model, x: model((x(2, 3).abs() * 4).long().clamp(max=10)),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name):
    same_on_both(of_one_layer(*LAYERS[name]))


@pytest.mark.parametrize("name", CRITERIA)
def test_criteria_of_pruning(name):
    def run(device):
        model = pruning_model().to(device)
        data = [(x.to(device), target.to(device)) for x, target in pruning_data()]
        criterion = ts.criteria.SynFlow(rounds=4) if name == "synflow" else None if name == "movement" else CRITERIA[name]()
        if criterion is None:
            history = History(model)
            for x, target in data:
                F.cross_entropy(model(x), target).backward()
            model.zero_grad()
            criterion = ts.criteria.Movement(history)
        pattern = next(pattern for pattern in (Unstructured(), Neurons()) if reason_against(criterion, pattern) is None)
        for sparsity in (0.5, 0.75) if name != "movement" else (0.75,):  # a history is of layers that are there when it begins
            ts.prune(model, sparsity, criterion, pattern=pattern, data=data, loss=F.cross_entropy, generator=seeded(2))
        return state(model)

    same_on_both(run)


def test_structured_pruning():
    def run(device):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        model = model.append(nn.Linear(8, 4)).double().to(device)
        example = drawn(2, 3, 5, 5).to(device)
        ts.prune(model, 0.5, pattern="neurons", example=example)
        small = ts.shrink(model, example).eval()
        return {"y": small(example).detach().cpu(), **state(small)}

    same_on_both(run)


def regularised(make, dense=False):
    def run(device):
        model = mlp().to(device) if dense else sparse(None, device)
        rule = make(model, None)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        rule = rule or make(model, optimizer)
        for _ in range(3):
            loss = model(drawn(4, 16).to(device)).square().mean()
            (loss + rule.loss() if hasattr(rule, "loss") else loss).backward()
            optimizer.step()
            optimizer.zero_grad()
        if not dense:
            ts.regularizers.drop_zeros(model, optimizer)
        return state(model)

    return run


REGULARIZERS = {
    "L1": regularised(lambda model, optimizer: optimizer and ts.regularizers.L1(model, optimizer, strength=0.1)),
    "rows": regularised(lambda model, optimizer: optimizer and ts.regularizers.GroupLasso(model, optimizer, 0.1, "rows", ["2"])),
    "columns": regularised(lambda model, optimizer: optimizer and ts.regularizers.GroupLasso(model, optimizer, 0.1, "columns", ["2"])),
    "L0": regularised(lambda model, optimizer: None if optimizer else ts.regularizers.L0(model, strength=1e-3, generator=seeded(3)), True),
    "variational": regularised(
        lambda model, optimizer: None if optimizer else ts.regularizers.VariationalDropout(model, strength=1e-3, generator=seeded(3)), True
    ),
}


@pytest.mark.parametrize("name", REGULARIZERS)
def test_regularizers(name):
    same_on_both(REGULARIZERS[name])


def test_stability_and_measures():
    def run(device):
        model = sparse(None, device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
        rewirer = Rewirer(model, optimizer, RigL(), every=2, until=8, generator=seeded(4), grown_state="warm")
        penalty = ts.stability.ActivationPenalty(hidden_layers(model), l1=1e-3, l2=1e-3, hoyer=1e-3)
        ts.stability.DecayGrace(rewirer, steps=3)
        average = ts.stability.Average(model, rewirer, decay=0.9)
        tracker = ts.metrics.Tracker(model, rewirer, example=drawn(1, 16).to(device), every=3)
        for number in range(6):
            for part in range(2):
                loss = model(drawn(4, 16, seed=2 * number + part).to(device)).square().mean() + penalty.loss()
                loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            if rewirer.step():
                optimizer.step()
                average.update()
            optimizer.zero_grad()
            tracker.step(4)
        for location in ("cpu", device):  # a checkpoint goes where it is mapped to
            file = io.BytesIO()
            torch.save((tracker.state_dict(), average.state_dict()), file)
            file.seek(0)
            states = torch.load(file, map_location=location, weights_only=False)
            tracker.load_state_dict(states[0])
            average.load_state_dict(states[1])
        report = tracker.report(ts.metrics.tracker.gradient_norms(model))
        with average.applied():
            return {"report": str(report["layers"]), **state(model)}

    same_on_both(run)


@pytest.mark.parametrize("by", ["row", "codebook"])
def test_quantisation(by):
    def run(device):
        model = sparse(None, device).float()
        ts.quantize(model, bits=4, by=by, data=[drawn(4, 16).float().to(device)] if by == "row" else None)
        y = model(drawn(4, 16).float().to(device)).detach().cpu()
        return {"y": y, **state(model), **state(ts.dequantize(model))}

    same_on_both(run)


@pytest.mark.parametrize("algorithm", [RigL(), ts.SNFS()], ids=repr)
@pytest.mark.parametrize(("saved_on", "loaded_on"), [("cpu", NAME), (NAME, "cpu"), (NAME, NAME)])
def test_checkpoints_between_devices(algorithm, saved_on, loaded_on):
    """The next steps are those of a run that was never stopped, wherever it goes on, and wherever the file was mapped to."""

    def begun(sparsity, device):
        model = sparsify(mlp(), sparsity, generator=seeded(3)).to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        return model, optimizer, Rewirer(model, optimizer, algorithm, every=4, until=40, generator=seeded(4))

    with PretendedDevice(), ops.use("reference"):
        run = begun(0.75, saved_on)
        for number in range(6):
            step(*run, drawn(4, 16, seed=number).to(saved_on))
        file = io.BytesIO()
        torch.save([one.state_dict() for one in run], file)
        expected = [step(*run, drawn(4, 16, seed=number).to(saved_on)) for number in range(6, 10)]
        for mapped in ("cpu", NAME):
            file.seek(0)
            other = begun(0.5, loaded_on)
            for one, held in zip(other, torch.load(file, map_location=mapped), strict=True):
                one.load_state_dict(held)
            assert all(tensor.device.type == loaded_on for tensor in other[0].state_dict().values())
            found = [step(*other, drawn(4, 16, seed=number).to(loaded_on)) for number in range(6, 10)]
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_files_copies_and_pictures(tmp_path):
    def run(device):
        model = sparse(None, device)
        ts.save(model, tmp_path / "net.safetensors")
        loaded = ts.load(tmp_path / "net.safetensors", sparsify(mlp(), 0.5).to(device))
        assert loaded[0].values.device.type == device
        torch.save(model, tmp_path / "whole.pt")
        whole = torch.load(tmp_path / "whole.pt", weights_only=False)
        copied, dense = copy.deepcopy(model), ts.densify(copy.deepcopy(model))
        assert dense[0].weight.device.type == device
        topology = model[0].topology
        again = ts.Topology.from_keys(topology.shape, topology.keys.flip(0))
        assert again.equal(topology)
        assert again.equal(ts.Topology.from_mask(topology.mask()))
        ts.compress(model, tmp_path / "net.tsz")
        x = drawn(3, 16).to(device)
        outputs = [one(x).detach().cpu() for one in (model, loaded, whole, copied, dense)]
        assert all(torch.allclose(one, outputs[0]) for one in outputs)
        return {"y": outputs[0], "html": topology._repr_html_(), "norm": model[0].weight.norm().detach().cpu(), **state(loaded)}

    same_on_both(run)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_and_a_gradient_scaler(dtype):
    """Whose first scale overflows: that step is left out, and its rewiring is made later."""

    def run(device):
        model = sparse(None, device).float()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        rewirer = Rewirer(model, optimizer, RigL(), every=2, until=8, generator=seeded(4))
        scaler = torch.amp.GradScaler(device, init_scale=2.0**120, backoff_factor=2.0**-100, enabled=dtype == torch.float16)
        for number in range(6):
            with torch.autocast(device, dtype=dtype):
                y = model(drawn(4, 16, seed=number).float().to(device))
            assert y.dtype == dtype
            scaler.scale(y.float().square().mean() * 100).backward()
            if rewirer.step():
                scaler.step(optimizer)
                scaler.update()
            optimizer.zero_grad()
        assert rewirer.rewirings
        return state(model)

    same_on_both(run)


def test_an_optimizer_made_before_the_model_moves():
    def run(device):
        model = sparsify(mlp(), 0.75, generator=seeded(3))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        rewirer = Rewirer(model, optimizer, ts.SET(), every=2, until=9, generator=seeded(4))
        rewirer.attach()
        model.to(device)
        for number in range(6):
            model(drawn(4, 16, seed=number).to(device)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        return {"devices": str({layer.topology.device.type == device for layer in topology_layers(model).values()}), **state(model)}

    same_on_both(run)


def test_what_is_for_the_cpu_says_so(tmp_path):
    with PretendedDevice():
        model, example = sparse(None, NAME).float(), torch.ones(1, 16, device=NAME)
        here = sparse(None, "cpu").float()
        for call, said in (
            (
                lambda: ts.export_c(model, example, tmp_path / "net.h"),
                "export_c reads networks on the CPU, and '0.values' is on gpu:0: move",
            ),
            (lambda: ts.export_c(here, example, tmp_path / "net.h"), "export_c reads networks on the CPU, and 'example' is on gpu:0: move"),
            (
                lambda: here(example),
                "on the CPU; got values torch.float32 on cpu, bias torch.float32 on cpu, x torch.float32 on gpu:0; move",
            ),
            (lambda: model(torch.ones(1, 16)), "all on gpu:0 as the topology; got x torch.float32 on cpu, .*; move"),
        ):
            with pytest.raises(TypeError, match=said):
                call()


def test_onnx_is_written_of_a_network_on_the_device(tmp_path):
    with PretendedDevice(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of exporting
        model = sparse(None, NAME).float()
        ts.export_onnx(model, tmp_path / "net.onnx", torch.ones(1, 16, device=NAME))
    assert (tmp_path / "net.onnx").stat().st_size
