"""distill(): Hinton's formula in float64, the modules that are matched, the teacher in a file, and the outputs of transformers."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import truesparse as ts
from truesparse.pruning import Logits, teacher_logits


def network(seed, hidden=7, dtype=torch.float32):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, hidden), nn.ReLU(), nn.Dropout(0.5), nn.Linear(hidden, 3))
    return model.to(dtype)


def softmax(row, temperature):
    exponentials = [math.exp(one / temperature) for one in row]
    return [one / sum(exponentials) for one in exponentials]


def by_hand(ours, theirs, target, temperature, alpha):
    """The formula of the paper, sample by sample."""
    total = 0.0
    for mine, wanted, right in zip(ours, theirs, target, strict=True):
        q, p = softmax(mine, temperature), softmax(wanted, temperature)
        soft = sum(one * math.log(one / other) for one, other in zip(p, q, strict=True))
        total += (1 - alpha) * -math.log(softmax(mine, 1)[right]) + alpha * temperature**2 * soft
    return total / len(ours)


@pytest.mark.parametrize(("temperature", "alpha"), [(1.0, 0.5), (4.0, 0.9), (0.5, 0.0), (2.5, 1.0)])
def test_is_the_formula(temperature, alpha):
    student, teacher = network(0, dtype=torch.float64).eval(), network(1, dtype=torch.float64)
    x, y = torch.randn(6, 5, dtype=torch.float64), torch.randint(3, (6,))
    found = ts.distill(student, teacher, temperature, alpha)(student(x), x, y)
    expected = by_hand(student(x).tolist(), teacher.eval()(x).tolist(), y.tolist(), temperature, alpha)
    assert found.dtype == torch.float64
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_at_a_high_temperature_the_gradient_is_the_difference_of_the_centred_logits():
    """Equation 4 of the paper, which T^2 keeps from vanishing."""
    ours, theirs = torch.randn(1, 4, dtype=torch.float64, requires_grad=True), torch.randn(1, 4, dtype=torch.float64)
    ts.distill(nn.Identity(), Logits(theirs), 1e4, 1.0)(ours, None, index=torch.tensor([0])).backward()
    centred = (ours.detach() - ours.detach().mean()) - (theirs - theirs.mean())
    assert torch.allclose(ours.grad, centred / 4, atol=1e-3)


def test_the_teacher_is_left_as_it_is():
    student, teacher = network(0), network(1)
    teacher[3].eval()
    loss_of = ts.distill(student, teacher)
    x, y = torch.randn(64, 5), torch.randint(3, (64,))
    output = student(x)
    losses = [loss_of(output, x, y) for _ in range(2)]
    losses[0].backward()
    assert losses[0] == losses[1], "dropout of the teacher is off"
    assert [module.training for module in teacher] == [True, True, True, False]
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad is not None for parameter in student.parameters())


def test_a_sparse_student_comes_nearer():
    teacher, student = network(1), ts.prune(network(1), 0.7)
    loss_of, optimizer = ts.distill(student, teacher, alpha=1.0), torch.optim.Adam(student.parameters(), lr=0.01)
    x = torch.randn(64, 5)
    losses = []
    for _ in range(40):
        losses.append(loss_of(student(x), x))
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] / 2


def test_positions_that_do_not_count_are_left_out():
    ours, theirs = torch.randn(2, 4, 3, dtype=torch.float64), torch.randn(2, 4, 3, dtype=torch.float64)
    target = torch.tensor([[0, 1, 2, -100], [2, -100, -100, -100]])
    given = [(0, 0), (0, 1), (0, 2), (1, 0)]
    expected = by_hand(*([array[at].tolist() for at in given] for array in (ours, theirs)), [0, 1, 2, 2], 3.0, 0.25)
    teacher = Logits(theirs)
    assert ts.distill(nn.Identity(), teacher, 3.0, 0.25)(ours, None, target, torch.arange(2)).item() == pytest.approx(expected, rel=1e-12)
    batch = {"attention_mask": (target >= 0).long()}
    own = SimpleNamespace(logits=ours, loss=torch.tensor(0.0, dtype=torch.float64))
    soft = by_hand(*([array[at].tolist() for at in given] for array in (ours, theirs)), [0, 1, 2, 2], 3.0, 1.0)
    assert ts.distill(nn.Identity(), teacher, 3.0, 0.25)(own, batch, index=torch.arange(2)).item() == pytest.approx(soft / 4, rel=1e-12)


class Pair(nn.Module):
    """A layer whose output is a tuple."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return (self.inner(x), None)


class Paired(nn.Module):
    def __init__(self, seed):
        super().__init__()
        first, *self_rest = network(seed, dtype=torch.float64).eval()
        self.first, self.rest = Pair(first), nn.Sequential(*self_rest)

    def forward(self, x):
        return self.rest(self.first(x)[0])


def test_outputs_inside_are_matched_by_name():
    student, teacher = network(0, dtype=torch.float64).eval(), Paired(1)
    x, y = torch.randn(6, 5, dtype=torch.float64), torch.randint(3, (6,))
    alone = ts.distill(student, teacher)(student(x), x, y)
    loss_of = ts.distill(student, teacher, match={"0": "first", "3": "rest.2"}, match_weight=0.3)
    found = loss_of(student(x), x, y)
    hidden = (student[0](x) - teacher.first(x)[0]).square().mean() + (student(x) - teacher(x)).square().mean()
    assert torch.allclose(found, alone + 0.3 * hidden)
    loss_of.detach()
    assert not student[0]._forward_hooks
    assert not teacher.first._forward_hooks


def test_what_does_not_match_is_told():
    student, teacher = network(0), network(1, hidden=9)
    x, y = torch.randn(6, 5), torch.randint(3, (6,))
    with pytest.raises(ValueError, match="match names 'body', which the teacher has not; it has 0, 1, 2, 3"):
        ts.distill(student, teacher, match={"0": "body"})
    assert not student[0]._forward_hooks, "nothing is left of it"
    loss_of = ts.distill(student, teacher, match={"0": "0"})
    with pytest.raises(ValueError, match=r"output of '0' in the student is of shape \(6, 7\), that of '0' in the teacher of \(6, 9\)"):
        loss_of(student(x), x, y)
    with pytest.raises(ValueError, match="'0' of the student was not run since the last loss"):
        loss_of(torch.randn(6, 3), x, y)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"temperature": 0.0}, "temperature must be greater than 0, got 0.0"),
        ({"alpha": 1.5}, r"alpha is the teacher's share of the loss and lies in \[0, 1\], got 1.5"),
    ],
)
def test_bad_settings_are_told(settings, said):
    with pytest.raises(ValueError, match=said):
        ts.distill(network(0), network(1), **settings)


def test_bad_input_is_told():
    student, x, y = network(0), torch.randn(6, 5), torch.randint(3, (6,))
    with pytest.raises(ValueError, match=r"teacher's logits are of shape \(6, 7\), the student's of \(6, 3\)"):
        ts.distill(student, nn.Linear(5, 7))(student(x), x, y)
    loss_of = ts.distill(student, network(1))
    with pytest.raises(ValueError, match=r"a target of shape \(6,\), got \(6, 1\); for another loss pass loss="):
        loss_of(student(x), x, y[:, None])
    with pytest.raises(ValueError, match="needs them: pass target=, or alpha=1"):
        loss_of(student(x), x)
    with pytest.raises(ValueError, match="expected logits, or an output that has logits, got tuple"):
        loss_of((student(x),), x, y)


def test_under_autocast_the_softmax_is_wide():
    student, teacher = network(0).eval(), network(1)
    x, y = torch.randn(6, 5), torch.randint(3, (6,))
    exact = ts.distill(student, teacher, 3.0, 0.9)(student(x), x, y)
    with torch.autocast("cpu", torch.bfloat16):
        output = student(x)
        found = ts.distill(student, teacher, 3.0, 0.9)(output, x, y)
    assert output.dtype == torch.bfloat16
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(exact.item(), rel=0.05)
    found.backward()


def test_the_teacher_in_a_file_answers_as_the_teacher(tmp_path):
    student, teacher, path = network(0).eval(), network(1), tmp_path / "teacher.safetensors"
    x, y = torch.randn(20, 5), torch.randint(3, (20,))
    calls = []
    teacher.register_forward_hook(lambda *_: calls.append(1))
    known = teacher_logits(teacher, x.split(8), path)
    assert len(known) == 20
    assert len(calls) == 3
    assert teacher.training
    index = torch.randperm(20)[:9]
    assert torch.allclose(
        ts.distill(student, known)(student(x[index]), x[index], y[index], index),
        ts.distill(student, teacher)(student(x[index]), x[index], y[index]),
    )
    assert torch.equal(teacher_logits(teacher, x.split(8), path)[index], known[index])
    assert len(calls) == 5, "one batch, to see whether it is this teacher"
    with pytest.raises(ValueError, match="knows samples by their number: pass index="):
        ts.distill(student, known)(student(x), x, y)
    with pytest.raises(ValueError, match=r"teacher\.safetensors are of samples 0 to 19, asked for 3 to 20"):
        known[torch.tensor([3, 20])]
    with pytest.raises(ValueError, match="a file of logits knows nothing: pass the teacher itself"):
        ts.distill(student, known, match={"0": "0"})


def test_a_file_that_is_not_the_teachers_is_told(tmp_path):
    teacher, path, x = network(1), tmp_path / "teacher.safetensors", torch.randn(20, 5)
    teacher_logits(teacher, [x], path)
    content = path.read_bytes()
    with pytest.raises(ValueError, match="holds the logits of another teacher or of other data: remove it"):
        teacher_logits(network(2), [x], path)
    for damaged in (content[:-7], content[:5], b""):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"teacher\.safetensors is truncated, or no file of logits"):
            teacher_logits(teacher, [x], path)
    with pytest.raises(ValueError, match="no data to ask the teacher about"):
        teacher_logits(teacher, [], tmp_path / "other.safetensors")
    assert [file.name for file in tmp_path.iterdir()] == ["teacher.safetensors"]


def test_outputs_of_transformers():
    transformers = pytest.importorskip("transformers")
    sizes = {"n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 11}
    student, teacher = (transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)) for _ in range(2))
    ids = torch.randint(11, (2, 6))
    batch = {"input_ids": ids, "attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2]), "labels": ids}
    output = student.eval()(**batch)
    found = ts.distill(student, teacher, 2.0, 0.5, match={"transformer.h.0": "transformer.h.0"}, match_weight=0.0)(student(**batch), batch)
    teacher.eval()
    at = batch["attention_mask"].bool()
    soft = by_hand(output.logits[at].double().tolist(), teacher(**batch).logits[at].double().tolist(), ids[at].tolist(), 2.0, 1.0)
    assert found.item() == pytest.approx(0.5 * output.loss.item() + 0.5 * soft, rel=1e-4)
