"""Sparse models of timm train as their twins, are written, packed and made dense again, and decay as the dense ones do."""

import copy
import warnings

import pytest
import torch
from timm_alone import import_timm
from wholes import check_files, check_packing, check_twins

import truesparse as ts

MODELS = {
    "vit_tiny_patch16_224": {"img_size": 16, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 2},
    "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)},
    "convnext_femto": {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)},
}


@pytest.fixture(params=MODELS)
def made(request):
    timm = import_timm()
    torch.manual_seed(3)
    return timm.create_model(request.param, num_classes=4, **MODELS[request.param])


@pytest.fixture
def images():
    return (torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)),)


def shaped(model, images):
    return tuple(image[:, :, :16, :16] for image in images) if hasattr(model, "patch_embed") else images


@pytest.mark.parametrize(
    "arguments",
    [{"opt": "adamw"}, {"opt": "sgd"}, {"opt": "adamw", "layer_decay": 0.7}, {"opt": "lamb", "filter_bias_and_bn": False}],
    ids=lambda arguments: "-".join(map(str, arguments.values())),
)
def test_decay_and_learning_rates_are_those_of_the_dense_model(made, arguments):
    from timm.optim import create_optimizer_v2

    def groups(model):
        optimizer = create_optimizer_v2(model, lr=1e-3, weight_decay=0.05, **arguments)
        names = {id(parameter): name.replace(".values", ".weight") for name, parameter in model.named_parameters()}
        return {
            names[id(parameter)]: (group["weight_decay"], group["lr"], group.get("lr_scale"))
            for group in optimizer.param_groups
            for parameter in group["params"]
        }

    dense = groups(made)
    assert groups(ts.sparsify(copy.deepcopy(made), 0.8)) == dense
    assert "filter_bias_and_bn" in arguments or {decay for decay, *_ in dense.values()} == {0.0, 0.05}


def test_it_trains_as_its_twin(made, images):
    from timm.optim import create_optimizer_v2

    check_twins(made, shaped(made, images), lambda model: create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05))


def test_it_is_written_packed_and_made_dense_again(made, images, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        example = shaped(made, images)
        model, expected = check_files(made, example, tmp_path)
        check_packing(model, example, expected)
