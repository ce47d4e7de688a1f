"""What DistributedDataParallel is told of sparse layers when it is made."""

import pytest
from torch import distributed, nn

import truesparse as ts

pytestmark = pytest.mark.skipif(not distributed.is_gloo_available(), reason="this torch has no gloo")


@pytest.fixture
def group():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def tied():
    model = nn.Sequential(nn.Embedding(9, 6), nn.BatchNorm1d(6), nn.Linear(6, 9, bias=False))
    model[2].weight = model[0].weight
    return ts.sparsify(model, 0.5)


@pytest.mark.parametrize(
    ("make", "buffers"),
    [(tied, 3), (lambda: ts.SparseLinear(4, 3), 0), (lambda: ts.MaskedLinear(4, 3), 0)],
    ids=["tied", "sparse", "masked"],
)
def test_no_topology_is_broadcast_under_any_of_its_names(group, make, buffers):
    """Three buffers are those of the norm."""
    model = make()
    wrapper = nn.parallel.DistributedDataParallel(model)
    own = {id(array) for layer in model.modules() if isinstance(layer, ts.nn.TopologyLayer) for array in layer.buffers()}
    assert own
    assert not own & {id(array) for array in wrapper.modules_buffers}
    assert len(wrapper.modules_buffers) == buffers
