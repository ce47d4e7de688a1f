"""Lightning's trainer with the callback does what a loop written by hand does, and goes on from a checkpoint as if it had never stopped."""

import copy
import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import truesparse as ts
from truesparse.nn import topology_layers

pl = pytest.importorskip("lightning.pytorch")
from truesparse.integrations.lightning import SparseTraining, load_from_checkpoint  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*is smaller than the logging interval"),
    pytest.mark.filterwarnings("ignore:.*dirpath.*exists and is not empty"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided"),
]
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

BATCHES = 8
ALGORITHMS = {
    "rigl": (ts.RigL(), 0.8),
    "gmp": (ts.GMP(sparsity=0.7), 0.0),
    "snfs": (ts.SNFS(window=2), 0.8),
}


class Net(pl.LightningModule):
    def __init__(self, width=24):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(12, width), nn.ReLU(), nn.Linear(width, 4))

    def training_step(self, batch, number):
        x, y = batch
        return F.cross_entropy(self.net(x).float(), y)

    def test_step(self, batch, number):
        self.log("loss", self.training_step(batch, number))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class Gan(pl.LightningModule):
    """Two optimizers, stepped by hand."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12))
        self.judge = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 1))

    def losses(self, x):
        yield self.judge(x).mean() - self.judge(self.generator(x[:, :6])).mean()
        yield -self.judge(self.generator(x[:, :6])).mean()

    def training_step(self, batch, number):
        losses = self.losses(batch[0])
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(next(losses))
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.Adam(part.parameters(), lr=1e-2) for part in (self.judge, self.generator)]


def data():
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(BATCHES * 4, 12, generator=generator), torch.randint(0, 4, (BATCHES * 4,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=4)


def trainer(*callbacks, epochs=2, kind=pl.Trainer, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return kind(accelerator="cpu", max_epochs=epochs, callbacks=list(callbacks), **{**quiet, **options})


def made(kind=Net):
    torch.manual_seed(3)
    return kind()


def same(one, other):
    one, other = one.state_dict(), other.state_dict()
    assert one.keys() == other.keys()
    return all(torch.equal(value, other[name]) for name, value in one.items())


def assert_equal(one, other):
    """Nested states are equal to the last bit."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            if name != "seconds":
                assert_equal(one[name], other[name])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_equal(*pair)
    else:
        assert one == other


def sparsified(model, sparsity):
    return ts.sparsify(model, sparsity, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("name", "precision"), [*((name, "32-true") for name in ALGORITHMS), ("rigl", "bf16-mixed")])
def test_it_is_the_loop_that_one_would_write(name, precision):
    algorithm, sparsity = ALGORITHMS[name]
    callback, module = SparseTraining(algorithm, sparsity, every=2), made()
    trainer(callback, epochs=3, accumulate_grad_batches=2, gradient_clip_val=0.05, precision=precision).fit(module, data())

    model = sparsified(made(), sparsity)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    ends = getattr(algorithm, "rewiring_ends", 0.75) * 3 * BATCHES // 2
    rewirer = ts.Rewirer(model, optimizer, algorithm, every=2, until=ends, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        for number, (x, y) in enumerate(data()):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
                loss = F.cross_entropy(model.net(x).float(), y)
            (loss / 2).backward()
            if number % 2:
                nn.utils.clip_grad_norm_(model.parameters(), 0.05)
                if rewirer.step():
                    optimizer.step()
                optimizer.zero_grad()
    assert rewirer.rewirings == callback.session.rewirings > 1
    assert same(module, model)


def test_each_optimizer_of_a_gan_rewires_its_own_layers(tmp_path):
    callback, module = SparseTraining(ts.SRigL(), 0.6, every=3), made(Gan)
    loop = trainer(callback, epochs=4)
    loop.fit(module, data())

    model = ts.sparsify(made(Gan), 0.6, pattern="fan-in", generator=torch.Generator().manual_seed(0))
    optimizers = [torch.optim.Adam(part.parameters(), lr=1e-2) for part in (model.judge, model.generator)]
    rewirers = [
        ts.Rewirer(part, optimizer, ts.SRigL(), every=3, until=24, generator=torch.Generator().manual_seed(number))
        for number, (part, optimizer) in enumerate(zip((model.judge, model.generator), optimizers, strict=True))
    ]
    for _ in range(4):
        for x, _ in data():
            losses = model.losses(x)
            for optimizer, rewirer in zip(optimizers, rewirers, strict=True):
                optimizer.zero_grad()
                next(losses).backward()
                if rewirer.step():
                    optimizer.step()
    assert [rewirer.rewirings for rewirer in callback.session.rewirers] == [7, 7]
    assert same(module, model)

    half = SparseTraining(ts.SRigL(), 0.6, every=3, total_steps=32)
    first = trainer(half, epochs=2)
    first.fit(made(Gan), data())
    first.save_checkpoint(tmp_path / "half.ckpt")
    again = made(Gan)
    trainer(SparseTraining(ts.SRigL(), 0.6, every=3), epochs=4).fit(again, data(), ckpt_path=tmp_path / "half.ckpt")
    assert same(module, again)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_run_goes_on_as_if_it_had_never_stopped(name, tmp_path):
    algorithm, sparsity = ALGORITHMS[name]

    def fit(epochs, path=None, *more):
        callback, module = SparseTraining(algorithm, sparsity, every=3), made()
        loop = trainer(callback, *more, epochs=epochs, enable_checkpointing=bool(more))
        loop.fit(module, data(), ckpt_path=path)
        return module, loop.optimizers[0], callback.session

    # Step 8 is between two rewirings, and in the middle of a window of recorded steps.
    saved = pl.callbacks.ModelCheckpoint(tmp_path, save_top_k=-1)
    whole = fit(3, None, saved)
    other = fit(3, tmp_path / "epoch=0-step=8.ckpt")
    assert same(whole[0], other[0])
    assert_equal(whole[1].state_dict(), other[1].state_dict())
    assert_equal(whole[2].state_dict(), other[2].state_dict())
    assert whole[2].measures() == other[2].measures()
    checkpoint = torch.load(tmp_path / "epoch=0-step=8.ckpt", weights_only=True)
    assert checkpoint["callbacks"]["SparseTraining"]["every"] == 3


def test_it_logs_what_lives(tmp_path):
    callback, module = SparseTraining(ts.SET(), 0.8, every=3), made()
    loop = trainer(callback, logger=pl.loggers.CSVLogger(tmp_path), log_every_n_steps=1)
    loop.fit(module, data())
    layers = topology_layers(module).values()
    found = sum(layer.topology.nnz for layer in layers)
    assert loop.callback_metrics["model/connections"] == found
    assert loop.callback_metrics["model/sparsity"] == pytest.approx(1 - found / sum(layer.topology.size for layer in layers))
    assert loop.callback_metrics["model/rewirings"] == callback.session.rewirings == 5
    assert 1 - callback.session.measures()["model/sparsity"] < loop.callback_metrics["model/itop_rate"] <= 1
    written = next(tmp_path.rglob("metrics.csv")).read_text()
    assert "model/itop_rate" in written
    assert len(written.splitlines()) == 1 + 5 + 2  # a head, the rewirings, the epochs

    quiet = SparseTraining(ts.SET(), 0.8, every=3, log=False)
    other = trainer(quiet)
    other.fit(made(), data())
    assert not other.callback_metrics


def test_a_sparse_module_is_read_back(tmp_path):
    callback = SparseTraining(ts.SRigL(), 0.8, every=3)
    loop, module = trainer(callback), made()
    loop.fit(module, data())
    loop.save_checkpoint(tmp_path / "net.ckpt")
    torch.manual_seed(11)
    read = load_from_checkpoint(Net, tmp_path / "net.ckpt")
    assert type(read) is Net
    assert same(module, read)
    assert all(layer.pattern == ts.FanIn() for layer in topology_layers(read).values())
    with pytest.raises(RuntimeError, match=r"net\.0\.weight"):
        Net.load_from_checkpoint(tmp_path / "net.ckpt")
    with pytest.raises(RuntimeError, match=r"layer 'net\.0' does not fit the stored one.*rows \+ 1 = 6"):
        load_from_checkpoint(Net, tmp_path / "net.ckpt", width=5)

    tested = loop.test(module, data(), ckpt_path=tmp_path / "net.ckpt", verbose=False)
    assert tested == trainer().test(read, data(), verbose=False)
    dense = made()
    trainer(SparseTraining(ts.RigL())).test(dense, data(), verbose=False)
    assert not topology_layers(dense), "testing alone makes nothing sparse"


def test_layers_of_configure_model_are_made_sparse():
    class Late(Net):
        def __init__(self):
            pl.LightningModule.__init__(self)
            self.net = None

        def configure_model(self):
            if self.net is None:
                self.net = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 4))

    module = made(Late)
    trainer(SparseTraining(ts.RigL(), 0.8, every=3)).fit(module, data())
    assert list(topology_layers(module)) == ["net.0", "net.2"]


def test_a_module_that_is_sparse_keeps_its_layers():
    module = sparsified(made(), 0.5)
    before = topology_layers(module)
    trainer(SparseTraining(ts.Static(), 0.9)).fit(module, data())
    assert topology_layers(module) == before


def test_the_other_lightning():
    other = pytest.importorskip("pytorch_lightning")

    class Own(other.LightningModule):
        __init__, training_step, configure_optimizers = Net.__init__, Net.training_step, Net.configure_optimizers

    Own.__init__ = lambda self: (other.LightningModule.__init__(self), setattr(self, "net", made().net))[0]
    module = Own()
    reference = made()
    trainer(SparseTraining(ts.RigL(), 0.8, every=3), kind=other.Trainer).fit(module, data())
    trainer(SparseTraining(ts.RigL(), 0.8, every=3)).fit(reference, data())
    assert same(module, reference)


class TestRefuses:
    def test_clipping_by_value(self):
        loop = trainer(SparseTraining(ts.RigL(), 0.8, every=3), gradient_clip_val=0.001, gradient_clip_algorithm="value")
        with pytest.raises(RuntimeError, match=r"layer 'net\.\d': its \.grad was changed after backward\(\)"):
            loop.fit(made(), data())
        module = made()
        trainer(SparseTraining(ts.SET(), 0.8, every=3), gradient_clip_val=0.001, gradient_clip_algorithm="value").fit(module, data())

    def test_layers_that_come_too_late(self):
        class Late(Net):
            def setup(self, stage):
                self.more = nn.Linear(4, 4)

        with pytest.raises(RuntimeError, match=r"layers 'more' were made after .* build layers in __init__ or configure_model"):
            trainer(SparseTraining(ts.RigL(), 0.8)).fit(made(Late), data())

    def test_a_checkpoint_of_another_training(self, tmp_path):
        path = tmp_path / "net.ckpt"
        loop = trainer(SparseTraining(ts.SET(), 0.8, every=3))
        loop.fit(made(), data())
        loop.save_checkpoint(path)
        with pytest.raises(ValueError, match=r"expected the checkpoint of a training with RigL\(.*every=3, got one with SET\("):
            trainer(SparseTraining(ts.RigL(), 0.8, every=3), epochs=4).fit(made(), data(), ckpt_path=path)
        with pytest.raises(ValueError, match="every=3: go on with the same"):
            trainer(SparseTraining(ts.SET(), 0.8, every=4), epochs=4).fit(made(), data(), ckpt_path=path)

        plain = trainer()
        plain.fit(sparsified(made(), 0.8), data())
        plain.save_checkpoint(path)
        with pytest.raises(ValueError, match="holds no state of SparseTraining"):
            trainer(SparseTraining(ts.SET(), 0.8, every=3), epochs=4).fit(made(), data(), ckpt_path=path)

    def test_a_training_without_an_end(self):
        with pytest.raises(ValueError, match=r"pass Trainer\(max_steps=\.\.\.\) or SparseTraining\(total_steps"):
            trainer(SparseTraining(ts.RigL(), 0.8), epochs=-1).fit(made(), data())

    def test_steps_that_were_estimated_wrong(self):
        class Rare(Gan):
            def training_step(self, batch, number):
                if number % 2 == 0:
                    super().training_step(batch, number)

        with pytest.warns(UserWarning, match=r"took 8 steps each and 16 were expected.*total_steps=8"):
            trainer(SparseTraining(ts.SET(), 0.6, every=3)).fit(made(Rare), data())
        trainer(SparseTraining(ts.SET(), 0.6, every=3, total_steps=8)).fit(made(Rare), data())

    @pytest.mark.parametrize(
        ("arguments", "error", "text"),
        [
            ({"algorithm": ts.RigL}, TypeError, "expected an algorithm"),
            ({"until": 75}, ValueError, r"until is a share of the training, in \(0, 1\], got 75"),
            ({"budgets": "er"}, TypeError, r"expected arguments of truesparse\.sparsify \(budget, .*got budgets"),
        ],
    )
    def test_arguments(self, arguments, error, text):
        with pytest.raises(error, match=text):
            SparseTraining(**arguments)


def test_a_callback_that_is_copied_or_used_twice():
    callback = SparseTraining(ts.RigL(), 0.8, every=3)
    copy.deepcopy(callback)
    modules = [made(), made()]
    for module in modules:
        trainer(callback).fit(module, data())
    assert same(*modules)
