"""What a step holds for absent connections: the passes that its gradients are made of, and no other."""

import gc

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from training import Spy, two_layers

from truesparse import Rewirer


def batches(count):
    for _ in range(count):
        yield torch.randn(3, 8, dtype=torch.float64)


def memory_of(x):
    """A detached tensor is another tensor, in the same memory."""
    return StorageWeakRef(x.untyped_storage())


def alive(references):
    gc.collect()
    return sum(not reference.expired() for reference in references)


def training(every=1):
    model = two_layers()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return model, optimizer, Rewirer(model, optimizer, Spy(), every)


@pytest.mark.parametrize("elsewhere", ["input", "backward into it", "weights", "a sum", "error"])
def test_a_pass_whose_gradients_go_elsewhere_is_not_kept(elsewhere):
    model, optimizer, rewirer = training()
    references = []
    for x in batches(5):
        references.append(memory_of(x))
        loss = model(x.requires_grad_()).sum()
        weights = list(model.parameters())
        if elsewhere == "input":
            torch.autograd.grad(loss, x)
        elif elsewhere == "backward into it":
            loss.backward(inputs=[x])
        elif elsewhere == "weights":
            torch.autograd.grad(loss, weights)
        elif elsewhere == "a sum":
            gradients = torch.autograd.grad(loss, weights, create_graph=True)
            torch.autograd.grad(sum(one.pow(2).sum() for one in gradients), weights, allow_unused=True)
            del gradients
        else:
            x.register_hook(lambda dx: dx.no_such_thing)
            with pytest.raises(AttributeError):
                torch.autograd.grad(loss, [x, *weights])
        del x, loss
    assert alive(references) == 0
    assert rewirer.steps == 0
    assert optimizer is rewirer.optimizer


def test_a_pass_whose_gradients_are_discarded_is_not_kept_for_long():
    model, optimizer, rewirer = training()
    references = []
    for x in batches(5):
        references.append(memory_of(x))
        model(x).sum().backward()
        optimizer.zero_grad()
        del x
    assert alive(references) <= 1, "until the next pass looks"
    model(next(batches(1))).sum().backward()
    assert alive(references) == 0
    rewirer.step()


@pytest.mark.parametrize("every", [1, 3])
def test_a_step_that_is_over_holds_nothing(every):
    model, optimizer, rewirer = training(every)
    references = []
    for x in batches(4):
        references.append(memory_of(x))
        model(x).sum().backward()
        if rewirer.step():
            optimizer.step()
        optimizer.zero_grad()
        del x
        assert alive(references) == 0
