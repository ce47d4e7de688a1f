"""What every model must hold when it is made sparse: equality with its masked twin through training, files, packing, and back to dense."""

import copy

import torch
from torch.utils._pytree import tree_leaves

import truesparse as ts
from truesparse.nn import topology_layers


def seeded(seed=1):
    return torch.Generator().manual_seed(seed)


def outputs(model, example):
    given = model(**example) if isinstance(example, dict) else model(*example)
    return [one for one in tree_leaves(dict(given) if hasattr(given, "keys") else given) if isinstance(one, torch.Tensor)]


def loss_of(model, example):
    return sum(one.square().mean() for one in outputs(model, example) if one.is_floating_point())


def in_double(example):
    def widened(one):
        return one.double() if one.is_floating_point() else one

    if isinstance(example, dict):
        return {name: widened(one) for name, one in example.items()}
    return tuple(map(widened, example))


def trained(model, example, masked, optimizer, steps=5, **settings):
    """(losses, topologies after each rewiring) of a few steps with RigL, in float64."""
    model, example = copy.deepcopy(model).double().train(), in_double(example)
    ts.sparsify(model, 0.8, masked=masked, generator=seeded(), **settings)
    optimizer = optimizer(model)
    rewirer = ts.Rewirer(model, optimizer, ts.RigL(), every=2)
    losses, lived = [], []
    for _ in range(steps):
        loss = loss_of(model, example)
        loss.backward()
        if rewirer.step():
            optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        lived.append({name: layer.topology for name, layer in topology_layers(model).items()})
    return torch.stack(losses), lived


def check_twins(model, example, optimizer, **settings):
    """A sparse model and its masked twin, which is dense arithmetic, train the same."""
    losses, lived = trained(model, example, False, optimizer, **settings)
    of_twin, of_twins = trained(model, example, True, optimizer, **settings)
    torch.testing.assert_close(losses, of_twin)
    assert any(not lived[0][name].equal(topology) for name, topology in lived[-1].items()), "nothing was rewired"
    for ours, theirs in zip(lived, of_twins, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(ours[name].equal(theirs[name]) for name in ours)


def check_files(model, example, folder, sparsity=0.8, **settings):
    """One sparse model in other forms: dense with zeros from its file, sparse from its file, made dense. Returns it, and its outputs."""
    dense, other = copy.deepcopy(model).eval(), copy.deepcopy(model).eval()
    ts.sparsify(model.eval(), sparsity, generator=seeded(), **settings)
    with torch.no_grad():
        expected = outputs(model, example)
        ts.save(model, folder / "sparse.safetensors")
        names = list(dense.state_dict())
        ts.load(folder / "sparse.safetensors", dense)  # of modules that know nothing of connections
        torch.testing.assert_close(outputs(dense, example), expected)
        assert list(dense.state_dict()) == names
        again = ts.load(folder / "sparse.safetensors", ts.sparsify(other, sparsity, generator=seeded(2), **settings))
        torch.testing.assert_close(outputs(again, example), expected, rtol=0, atol=0)
        closed = ts.densify(copy.deepcopy(model))
        torch.testing.assert_close(outputs(closed, example), expected)
        assert [type(one) for one in closed.modules()] == [type(one) for one in dense.modules()]
        assert list(closed.state_dict()) == names
        torch.testing.assert_close(closed.state_dict(), dense.state_dict())
    return model, expected


def check_packing(model, example, expected):
    with torch.no_grad():
        packed = ts.pack(model, example, tune=False)
        torch.testing.assert_close(outputs(packed, example), expected)
    return packed
