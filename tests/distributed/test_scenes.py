"""DistributedDataParallel in people's ways, with two real processes: what is followed, beside one process, and what is refused."""

import warnings

import pytest
import scenes
import torch
from pairs import answers
from training import backward, two_layers

from truesparse import GMP, RigL

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")


@pytest.fixture(scope="module")
def found():
    def each(rank):
        warnings.simplefilter("ignore")
        return {scene.__name__: said(scene, rank) for scene in (*scenes.FOLLOWED, *scenes.REFUSED)}

    def said(scene, rank):
        try:
            return scene(rank)
        except (RuntimeError, TypeError, ValueError) as error:
            return f"{type(error).__name__}: {error}"

    one, other = answers(each)
    assert isinstance(one, dict), one
    assert isinstance(other, dict), other
    return {name: (one[name], other[name]) for name in one}


def alone(algorithm, passes=1, uses=None, clip=None, twice=True):
    """What one process comes to that makes the passes of both, each with half of the weight."""
    model = two_layers() if uses is None else scenes.Branches()
    rewirer = scenes.rewirer_of(model, algorithm)
    for step in range(scenes.STEPS):
        for number in range(passes):
            for rank in range(2):
                if uses is not None:
                    model.both = uses(rank, number)
                backward(lambda x: model(x) * 0.5**0.5, 100 * number + 10 * step + rank)
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        if rewirer.step():
            rewirer.optimizer.step()
        rewirer.optimizer.zero_grad()
    return scenes.state(model)


def assert_like(found, expected):
    one, other = found
    assert one == other
    assert one[0] == expected[0]
    for here, there in zip(one[1], expected[1], strict=True):
        torch.testing.assert_close(torch.tensor(here), torch.tensor(there))


@pytest.mark.parametrize("scene", ["plain", "averaged_by_hand", "inner_model", "attached"])
def test_as_one_process(found, scene):
    assert_like(found[scene], alone(RigL()))


def test_clipping_is_followed(found):
    assert_like(found["clipped"], alone(RigL(), clip=0.01))


def test_gradients_synchronised_in_every_pass(found):
    assert_like(found["synchronised_in_every_pass"], alone(RigL(), passes=3))


@pytest.mark.parametrize(("scene", "passes"), [("branches", 1), ("branches_three_times", 3)])
def test_a_layer_that_takes_part_in_one_process_only(found, scene, passes):
    assert_like(found[scene], alone(RigL(), passes, scenes.uses_both))


def test_a_masked_layer(found):
    one, other = found["masked"]
    assert one == other
    assert one[0] == found["plain"][0][0]


def test_a_reducer_for_each_count(found):
    """With hooks, static graphs and gradients that are views: all of it is there again."""
    expected = alone(GMP(0.9))
    sizes, trained = zip(*found["communication_hook"], strict=True)
    assert_like(trained, expected)
    assert sizes[0] == sizes[1] == sorted(sizes[0], reverse=True)
    assert len(set(sizes[0])) == 3
    names, trained = zip(*found["built_in_hook"], strict=True)
    assert_like(trained, expected)
    assert set(names) == {"BuiltinCommHookType.ALLREDUCE"}
    assert_like(found["falling_count"], expected)


def test_a_state_with_other_counts_is_loaded_after_wrapping(found):
    one, other = found["loaded_after_wrapping"]
    assert one == other


@pytest.mark.parametrize("scene", ["compressed_where_nothing_grows_by_gradients", "no_generator"])
def test_alike_in_all_processes(found, scene):
    one, other = found[scene]
    assert one == other
    assert one[0] != scenes.state(two_layers())[0], "nothing was rewired"


def test_a_window_goes_on_where_each_process_has_its_own_state_and_begins_anew_where_not(found):
    (whole, resumed, begun), other = found["window_resumed"]
    assert other == (whole, resumed, begun)
    assert resumed == whole
    assert begun != whole


def test_fsdp_trains_what_does_not_rewire(found):
    model = two_layers()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for step in range(scenes.STEPS):
        for rank in range(2):
            backward(lambda x: model(x) * 0.5**0.5, 10 * step + rank)
        optimizer.step()
        optimizer.zero_grad()
    one, other = found["sharded_without_rewirer"]
    assert one == other
    for here, there in zip(one, model.parameters(), strict=True):
        torch.testing.assert_close(torch.tensor(here, dtype=torch.float64), there.detach())


@pytest.mark.parametrize(
    ("scene", "said"),
    {
        "compressed": "RuntimeError: layer '0': its .grad is not the mean of what the processes' backward passes have made of it: call",
        "not_synchronised": "RuntimeError: layer '0': its .grad is not the mean",
        "other_topology": "RuntimeError: layer '0' has other connections in process 1 than in process 0: call the same torch.manual_seed",
        "other_topology_without_wrapper": "RuntimeError: layer '0' has other connections in process 1 than in process 0",
        "other_algorithm": "RuntimeError: process 1 has another algorithm or schedule than process 0: make the same in all 2 processes",
        "other_parameters": "RuntimeError: process 1 has an optimizer that holds the parameters of other layers than process 0",
        "other_seed": "RuntimeError: the 2 processes would draw other connections each: give generator= the same seed",
        "sparse_after_wrapping": "RuntimeError: '0' becomes sparse inside a DistributedDataParallel, which would not exchange",
        "sparse_inside_the_wrapper": "RuntimeError: '0' becomes sparse inside a DistributedDataParallel",
        "layer_put_into_the_wrapper": "RuntimeError: '0' becomes sparse inside a DistributedDataParallel",
        "drawn_from_alone": "RuntimeError: at rewiring 1 the processes come to different topologies, so nothing was rewired: layer '0'",
        "joined": "RuntimeError: a rewiring is due within DistributedDataParallel.join()",
        "dealt_out_optimizer": "TypeError: ZeroRedundancyOptimizer deals the parameters out to the processes",
        "sharded": "TypeError: layer '0' is sharded (fully_shard, FSDP), so that no process has all of its values",
    }.items(),
)
def test_refused_by_all_processes(found, scene, said):
    for one in found[scene]:
        assert isinstance(one, str), "nothing was said"
        assert one.startswith(said)


def test_processes_that_drift_apart_are_told_before_anything_changes(found):
    for said, unchanged in found["drifted"]:
        assert said.startswith("RuntimeError: at rewiring 1 the processes come to different topologies, so nothing was rewired: layer '2'")
        assert unchanged
