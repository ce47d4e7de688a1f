"""What training scripts do to a network between two rewirings, each as one event that is played on a network and its dense twin."""

from __future__ import annotations

import copy
import threading
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint
from twins import LAYERS, Side, Trial, loss_of


@dataclass(frozen=True)
class Event:
    """Plain torch, the same on both sides."""

    def play(self, trial: Trial) -> None:
        for side in trial.sides:
            self.on(side)

    def on(self, side: Side) -> None:
        raise NotImplementedError

    @property
    def excuses(self) -> tuple[str, ...]:
        """Layers of whose absent gradient nothing need be known after this, so that an error is right."""
        return ()

    @property
    def lasting(self) -> tuple[str, ...]:
        """Likewise, until hooks are removed."""
        return ()


@dataclass(frozen=True)
class Backward(Event):
    """Forward and backward; the hidden layer runs so many times, 0 leaves it out."""

    hidden: int = 1
    size: int = 3
    how: str = "loss"

    def on(self, side: Side) -> None:
        x = side.batch(self.size)
        if self.how == "gradient":
            y = side.model(x, self.hidden)
            y.backward(torch.ones_like(y) * 0.5)
        elif self.how == "thread":
            thread = threading.Thread(target=side.loss(x, self.hidden).backward)
            thread.start()
            thread.join()
        elif self.how == "anomaly":
            with warnings.catch_warnings(action="ignore"), torch.autograd.detect_anomaly(check_nan=False):
                side.loss(x, self.hidden).backward()
        elif self.how == "offloaded":
            with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.clone(), lambda tensor: tensor.clone()):
                loss = side.loss(x, self.hidden)
            loss.backward()
        elif self.how == "zeroed between":
            loss = side.loss(x, self.hidden)
            side.optimizer.zero_grad()
            loss.backward()
        elif self.how == "input too":
            side.loss(x.requires_grad_(), self.hidden).backward()
        elif self.how == "amp":
            scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
            scaler.scale(side.loss(x, self.hidden)).backward()
            scaler.unscale_(side.optimizer)
        else:
            side.loss(x, self.hidden).backward()


@dataclass(frozen=True)
class Elsewhere(Event):
    """A backward pass whose gradients go elsewhere."""

    to: str

    def on(self, side: Side) -> None:
        x = side.batch().requires_grad_()
        loss = side.loss(x)
        weights = list(side.trained().values())
        if self.to == "attack":
            torch.autograd.grad(loss, x)
        elif self.to == "input":
            loss.backward(inputs=[x])
        elif self.to == "grad of weights":
            torch.autograd.grad(loss, [*weights, x])
        elif self.to == "biases":
            loss.backward(inputs=[side.model.get_submodule(name).bias for name in LAYERS])  # type: ignore[misc]
        elif self.to == "copy":
            loss_of(copy.deepcopy(side.model)(x.detach())).backward()
        elif self.to == "functional":
            values = {name: parameter.detach().clone().requires_grad_() for name, parameter in side.model.named_parameters()}
            loss_of(functional_call(side.model, values, x.detach())).backward()  # type: ignore[arg-type]
        elif self.to == "nowhere":
            del loss
        else:
            named = side.weights[self.to]
            if named.requires_grad:
                loss.backward(inputs=[named])


@dataclass(frozen=True)
class NoGradient(Event):
    how: str

    def on(self, side: Side) -> None:
        context = {"no_grad": torch.no_grad, "inference": torch.inference_mode, "eval": torch.no_grad}[self.how]
        if self.how == "eval":
            side.model.eval()
        with context():
            side.loss()
        side.model.train()


@dataclass(frozen=True)
class Zero(Event):
    """Gradients are discarded: all, or those of one layer."""

    how: str = "optimizer"
    layer: str = "hidden"

    def on(self, side: Side) -> None:
        if self.how in ("optimizer", "model"):
            getattr(side, self.how).zero_grad()
        elif self.how in ("optimizer to zero", "model to zero"):
            getattr(side, self.how.split()[0]).zero_grad(set_to_none=False)
        elif self.how == "None":
            side.weights[self.layer].grad = None
        elif (gradient := side.weights[self.layer].grad) is not None:
            gradient.detach_().zero_()


@dataclass(frozen=True)
class Scale(Event):
    """All gradients, or those of one layer, times a number."""

    factor: float = 0.5
    how: str = "foreach"

    def on(self, side: Side) -> None:
        if not side.gradients():
            return
        if self.how == "foreach":
            torch._foreach_mul_(side.gradients(), self.factor)
        elif self.how == "division":
            for gradient in side.gradients():
                gradient.div_(self.factor)
        elif self.how == "data":
            for gradient in side.gradients():
                gradient.data.mul_(self.factor)
        elif (gradient := side.weights["enter"].grad) is not None:
            gradient.mul_(self.factor)


@dataclass(frozen=True)
class Clip(Event):
    max_norm: float = 0.1

    def play(self, trial: Trial) -> None:
        norm = torch.nn.utils.clip_grad_norm_(trial.sparse.model.parameters(), self.max_norm)
        # The twin's own norm would count absent connections, which the sparse network has not.
        for gradient in trial.dense.gradients():
            gradient.mul_(min(1.0, float(self.max_norm / (norm + 1e-6))))


@dataclass(frozen=True)
class Freeze(Event):
    layer: str
    frozen: bool

    def on(self, side: Side) -> None:
        side.weights[self.layer].requires_grad_(not self.frozen)


@dataclass(frozen=True)
class Twice(Event):
    """More than one backward pass through graphs that live together."""

    how: str

    def on(self, side: Side) -> None:
        if self.how == "two losses":
            y = side.model(side.batch())
            loss_of(y).backward(retain_graph=True)
            y.pow(3).sum().backward()
        elif self.how == "one loss":
            loss = side.loss()
            loss.backward(retain_graph=True)
            loss.backward()
        elif self.how == "at once":
            y = side.model(side.batch())
            torch.autograd.backward([loss_of(y), y.pow(3).sum()])
        elif self.how == "crossed":
            first, second = side.loss(), side.loss(2 * side.batch(), hidden=2)
            first.backward()
            second.backward()
        elif self.how == "grad, then backward":
            loss = side.loss()
            torch.autograd.grad(loss, list(side.trained().values()) or side.gradients() or [side.model.full.bias], retain_graph=True)
            loss.backward()


@dataclass(frozen=True)
class Forward(Event):
    """Its backward pass comes later."""

    def on(self, side: Side) -> None:
        side.pending.append(side.loss())


@dataclass(frozen=True)
class Late(Event):
    """The backward passes that are still to come."""

    def on(self, side: Side) -> None:
        for loss in side.pending:
            if loss.requires_grad:
                loss.backward()
        side.pending = []


@dataclass(frozen=True)
class SecondDerivative(Event):
    of: str

    def on(self, side: Side) -> None:
        x = side.batch().requires_grad_()
        loss = side.loss(x, hidden=2 if self.of == "input, hidden twice" else 1)
        if self.of.startswith("input"):
            (gx,) = torch.autograd.grad(loss, x, create_graph=True)
            (0.1 * gx.pow(2).sum() + (0.0 if self.of == "input alone" else loss)).backward()
        elif self.of == "weights":
            trained = side.trained()
            if trained:
                gradients = torch.autograd.grad(loss, list(trained.values()), create_graph=True)
                # A penalty on what the sparse network calls its gradient: at the connections alone.
                penalty = sum((g * side.mask(name)).pow(2).sum() for name, g in zip(trained, gradients, strict=True))
                (0.01 * penalty).backward()  # type: ignore[union-attr]
        elif self.of == "third":
            (gx,) = torch.autograd.grad(loss, x, create_graph=True)
            (ggx,) = torch.autograd.grad(gx.pow(2).sum(), x, create_graph=True)
            (0.001 * ggx.pow(2).sum()).backward()


@dataclass(frozen=True)
class Checkpointed(Event):
    reentrant: bool

    def on(self, side: Side) -> None:
        x = side.batch().requires_grad_()
        loss_of(checkpoint(side.model, x, 2, use_reentrant=self.reentrant)).backward()  # type: ignore[arg-type]


@dataclass(frozen=True)
class Hook(Event):
    """A hook that changes activations or their gradients, from now on."""

    how: str
    layer: str = "enter"

    def on(self, side: Side) -> None:
        module = side.model.get_submodule(self.layer)
        if self.how == "gradient of output":

            def hook(module: Any, args: Any, output: Tensor) -> None:
                if output.requires_grad:
                    output.register_hook(lambda dy: dy.clamp(-0.5, 0.5))

            side.hooks.append(module.register_forward_hook(hook))
        elif self.how == "another output":
            side.hooks.append(module.register_forward_hook(lambda module, args, output: output.sin()))
        elif self.how == "another input":
            side.hooks.append(module.register_forward_pre_hook(lambda module, args: (args[0] * 0.5,)))
        elif self.how == "full backward":
            side.hooks.append(module.register_full_backward_hook(lambda module, dx, dy: tuple(g if g is None else g * 2 for g in dx)))
        elif self.how == "full backward pre":
            side.hooks.append(module.register_full_backward_pre_hook(lambda module, dy: tuple(g * 2 for g in dy)))
        elif self.how == "written in place":
            side.hooks.append(module.register_forward_hook(lambda module, args, output: output.mul_(0.5)))


@dataclass(frozen=True)
class HookOfValues(Event):
    """A hook on the parameter itself, from now on."""

    how: str
    layer: str = "enter"

    @property
    def lasting(self) -> tuple[str, ...]:
        return (self.layer,) if self.how == "halves what has accumulated" else ()

    def on(self, side: Side) -> None:
        weight = side.weights[self.layer]
        if not weight.requires_grad:
            return
        if self.how == "twice":
            side.hooks.append(weight.register_hook(lambda g: g * 2))
        elif self.how == "twice in place":
            side.hooks.append(weight.register_hook(lambda g: g.mul_(2)))
        elif self.how == "looks":
            side.hooks.append(weight.register_hook(lambda g: None))
        elif self.how == "halves what has accumulated":
            side.hooks.append(weight.register_post_accumulate_grad_hook(_halve))
        elif self.how == "step in backward":
            side.hooks.append(weight.register_post_accumulate_grad_hook(_discard))


def _halve(parameter: Tensor) -> None:
    parameter.grad.mul_(0.5)  # type: ignore[union-attr]


def _discard(parameter: Tensor) -> None:
    parameter.grad = None


@dataclass(frozen=True)
class Unhook(Event):
    def play(self, trial: Trial) -> None:
        super().play(trial)
        trial.lasting = set()

    def on(self, side: Side) -> None:
        for hook in side.hooks:
            hook.remove()
        side.hooks = []


@dataclass(frozen=True)
class ReusedBuffer(Event):
    """Memory that took part in a backward pass is written for another purpose before the step."""

    what: str

    @property
    def excuses(self) -> tuple[str, ...]:
        return LAYERS

    def on(self, side: Side) -> None:
        x = side.batch()
        y = side.model(x)
        if self.what == "input":
            loss_of(y).backward()
            x.fill_(7.0)
        elif self.what == "gradient of output":
            dy = torch.ones_like(y)
            y.backward(dy)
            dy.fill_(7.0)
        elif self.what == "kept gradient":
            y.retain_grad()
            loss_of(y).backward()
            y.grad.fill_(7.0)  # type: ignore[union-attr]


@dataclass(frozen=True)
class Regularised(Event):
    """A penalty on the weights is part of the loss."""

    how: str

    def on(self, side: Side) -> None:
        weights = side.trained()
        if not weights:
            return
        penalty = {
            "l2": lambda: sum(weight.pow(2).sum() for weight in weights.values()),
            "l1": lambda: sum(weight.abs().sum() for weight in weights.values()),
            "nothing": lambda: 0.0 * sum(weight.sum() for weight in weights.values()),
            "l2 alone": lambda: sum(weight.pow(2).sum() for weight in weights.values()),
        }[self.how]()
        (penalty if self.how == "l2 alone" else side.loss() + 0.3 * penalty).backward()


@dataclass(frozen=True)
class SharpnessAware(Event):
    """SAM: the gradient is that at weights a little further up; the first one is discarded."""

    def play(self, trial: Trial) -> None:
        side = trial.sparse
        for one in trial.sides:
            one.model.zero_grad()
            one.loss().backward()
        steps = [(p, 0.1 * p.grad.clone()) for p in side.model.parameters() if p.grad is not None]
        with torch.no_grad():
            for parameter, step in steps:
                parameter.add_(step)
        trial.synchronise()
        for one in trial.sides:
            one.model.zero_grad()
            one.loss().backward()
        with torch.no_grad():
            for parameter, step in steps:
                parameter.sub_(step)
        trial.synchronise()


@dataclass(frozen=True)
class SkippedBatch(Event):
    """The loss was not finite: its gradients are discarded."""

    set_to_none: bool = True

    def on(self, side: Side) -> None:
        side.loss(side.batch() * torch.inf).backward()
        side.optimizer.zero_grad(self.set_to_none)


@dataclass(frozen=True)
class Fails(Event):
    """A backward pass that ends half way, caught by the script."""

    def on(self, side: Side) -> None:
        class Stop(Exception):
            pass

        def stop(dy: Tensor) -> None:
            raise Stop

        handle = side.model.hidden.register_forward_pre_hook(lambda module, args: args[0].register_hook(stop) and None)
        try:
            side.loss().backward()
        except Stop:
            pass
        finally:
            handle.remove()


@dataclass(frozen=True)
class Step(Event):
    """One step of rewirer and optimizer. `keep`: gradients are discarded only where they must be, after a rewiring."""

    after: str = "none"

    def play(self, trial: Trial) -> None:
        rewirings = trial.rewirer.rewirings
        trial.step()
        if self.after == "keep" and trial.rewirer.rewirings == rewirings:
            return
        for side in trial.sides:
            side.optimizer.zero_grad(set_to_none=self.after != "zeros")

    @property
    def excuses(self) -> tuple[str, ...]:
        return LAYERS if self.after == "keep" else ()


@dataclass(frozen=True)
class StepWithClosure(Event):
    """The optimizer calls for the loss itself."""

    passes: int = 1

    def play(self, trial: Trial) -> None:
        def closure(side: Side) -> Tensor:
            side.optimizer.zero_grad()
            for _ in range(self.passes):
                loss = side.loss()
                loss.backward()
            return loss

        trial.step(closure)
        for side in trial.sides:
            side.optimizer.zero_grad()


@dataclass(frozen=True)
class BareStep(Event):
    """The optimizer's step alone: the rewirer is not asked (a warm-up without rewiring)."""

    def play(self, trial: Trial) -> None:
        if not trial.attached:
            trial.sparse.optimizer.step()
            trial.synchronise()
        for side in trial.sides:
            side.optimizer.zero_grad()


@dataclass(frozen=True)
class Restored(Event):
    """What a checkpoint holds of the rewirer, given back to it."""

    def play(self, trial: Trial) -> None:
        for side in trial.sides:
            side.optimizer.zero_grad()
        trial.rewirer.load_state_dict(copy.deepcopy(trial.rewirer.state_dict()))


@dataclass(frozen=True)
class Odd(Event):
    """What leaves the gradient of absent connections unknown, or nearly so: an error that names the layer is as good as the truth."""

    how: str
    layer: str = "enter"

    @property
    def excuses(self) -> tuple[str, ...]:
        return LAYERS

    def play(self, trial: Trial) -> None:
        mine, twins = trial.sparse.weights[self.layer], trial.dense.weights[self.layer]
        layer = trial.layers[self.layer]
        if self.how in ("a copy", "a multiple", "noise", "own numbers", "clamped", "signs"):
            for side in trial.sides:
                side.loss().backward()
            if not mine.requires_grad or mine.grad is None or twins.grad is None:
                return
        if self.how == "a copy":
            mine.grad = mine.grad.clone()
        elif self.how == "a multiple":
            mine.grad, twins.grad = mine.grad * 3, twins.grad * 3
        elif self.how == "noise":
            noise = torch.randn_like(mine)
            mine.grad.add_(noise)
            twins.grad.view(-1)[layer.topology.keys] += layer.of_connections(noise)
        elif self.how == "own numbers":
            mine.grad = torch.randn_like(mine)
            twins.grad = torch.full_like(twins, torch.nan)  # nothing equals them
            twins.grad.view(-1)[layer.topology.keys] = layer.of_connections(mine.grad)
        elif self.how == "clamped":
            torch.nn.utils.clip_grad_value_([mine, twins], 0.01)
        elif self.how == "signs":
            mine.grad.sign_()
            twins.grad.sign_()
        else:
            super().play(trial)

    def on(self, side: Side) -> None:
        weight = side.weights[self.layer]
        module: Any = side.model.get_submodule(self.layer)
        if self.how == "accumulates a graph":
            with warnings.catch_warnings(action="ignore"):  # of the cycle that zero_grad undoes
                side.loss().backward(create_graph=True)
        elif self.how == "through the dense weight":
            dense = module.weight if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)) else module.to_dense()
            flat = dense.flatten(1)
            (side.loss() + 0.1 * (flat.T @ flat).pow(2).sum()).backward()
        elif self.how == "another forward":
            name = next(name for name, parameter in side.model.named_parameters() if parameter is weight)
            y = functional_call(side.model, {name: weight * 2}, side.batch())
            loss_of(y).backward()
        elif self.how == "hook clamps":
            if weight.requires_grad:
                hook = weight.register_hook(lambda g: g.clamp(-0.01, 0.01))
                side.loss().backward()
                hook.remove()
        elif self.how == "inner step":
            if not weight.requires_grad:
                return
            name = next(name for name, parameter in side.model.named_parameters() if parameter is weight)
            (gradient,) = torch.autograd.grad(side.loss(), weight, create_graph=True)
            fast = weight - 0.01 * gradient * side.mask(self.layer)
            loss_of(functional_call(side.model, {name: fast}, side.batch())).backward()


PLAIN: dict[str, list[Event]] = {
    "backward": [Backward()],
    "no sample, one sample": [Backward(size=0), Backward(size=1)],
    "the layer is left out": [Backward(hidden=0)],
    "the layer runs twice": [Backward(hidden=2)],
    "a gradient is given": [Backward(how="gradient")],
    "in another thread": [Backward(how="thread")],
    "anomaly detection": [Backward(how="anomaly")],
    "saved tensors are packed": [Backward(how="offloaded")],
    "zero_grad between forward and backward": [Backward(how="zeroed between")],
    "the input too": [Backward(how="input too")],
    "GradScaler": [Backward(how="amp")],
    "attack": [Elsewhere("attack")],
    "backward into the input": [Elsewhere("input")],
    "autograd.grad of the weights": [Elsewhere("grad of weights")],
    "backward into biases": [Elsewhere("biases")],
    "backward into one layer": [Elsewhere("hidden"), Elsewhere("convolution"), Elsewhere("full")],
    "backward of a copy": [Elsewhere("copy")],
    "a functional call with other values": [Elsewhere("functional")],
    "forward without backward": [Elsewhere("nowhere")],
    "no gradient": [NoGradient("no_grad"), NoGradient("inference"), NoGradient("eval")],
    "zero_grad of the optimizer": [Zero("optimizer")],
    "zero_grad of the model": [Zero("model")],
    "zero_grad to zero": [Zero("optimizer to zero"), Zero("model to zero")],
    "grad = None": [Zero("None", "enter"), Zero("None", "convolution")],
    "grad.zero_()": [Zero("in place", "hidden"), Zero("in place", "full")],
    "all gradients scaled": [Scale(0.5), Scale(-3.0), Scale(8.0, "division")],
    "all gradients times 0": [Scale(0.0)],
    "one layer scaled": [Scale(0.25, "one")],
    "clipped": [Clip(0.1), Clip(1e6)],
    "frozen": [Freeze("enter", True), Freeze("hidden", True), Freeze("convolution", True)],
    "unfrozen": [Freeze("enter", False), Freeze("hidden", False), Freeze("convolution", False)],
    "two losses": [Twice("two losses")],
    "one loss twice": [Twice("one loss")],
    "two losses at once": [Twice("at once")],
    "crossed passes": [Twice("crossed")],
    "grad, then backward": [Twice("grad, then backward")],
    "forward, backward later": [Forward(), Late()],
    "gradient penalty": [SecondDerivative("input"), SecondDerivative("input alone"), SecondDerivative("input, hidden twice")],
    "penalty on gradients of weights": [SecondDerivative("weights")],
    "third derivative": [SecondDerivative("third")],
    "checkpointing": [Checkpointed(False)],
    "checkpointing, reentrant": [Checkpointed(True)],
    "hook on the output's gradient": [Hook("gradient of output"), Hook("gradient of output", "convolution")],
    "hook gives another output": [Hook("another output"), Hook("another output", "hidden")],
    "hook gives another input": [Hook("another input", "hidden")],
    "full backward hook": [Hook("full backward", "hidden"), Hook("full backward pre", "hidden")],
    "hook writes the output": [Hook("written in place", "enter")],
    "hook looks at values' gradient": [HookOfValues("looks")],
    "hook doubles values' gradient": [
        HookOfValues("twice"),
        HookOfValues("twice", "convolution"),
        HookOfValues("twice in place", "hidden"),
    ],
    "step in backward": [HookOfValues("step in backward")],
    "hooks removed": [Unhook()],
    "weight penalty in the loss": [Regularised("l2"), Regularised("l1"), Regularised("nothing"), Regularised("l2 alone")],
    "SAM": [SharpnessAware()],
    "skipped batch": [SkippedBatch(), SkippedBatch(False)],
    "backward fails half way": [Fails()],
    "step": [Step(), Step("zeros")],
    "step with a closure": [StepWithClosure(), StepWithClosure(2)],
    "optimizer steps alone": [BareStep()],
    "checkpoint of the rewirer": [Restored()],
}
"""Of these the dense gradient can be known: an error is wrong."""

ODD: dict[str, list[Event]] = {
    "hook halves what has accumulated": [
        HookOfValues("halves what has accumulated"),
        HookOfValues("halves what has accumulated", "hidden"),
    ],
    "input written after backward": [ReusedBuffer("input")],
    "gradient written after backward": [ReusedBuffer("gradient of output"), ReusedBuffer("kept gradient")],
    "gradients kept over a step": [Step("keep")],
    "gradient scaled through .data": [Scale(0.5, "data")],
    "grad = a copy": [Odd("a copy")],
    "grad = a multiple": [Odd("a multiple")],
    "noise added": [Odd("noise"), Odd("noise", "hidden")],
    "grad = own numbers": [Odd("own numbers"), Odd("own numbers", "convolution")],
    "clipped by value": [Odd("clamped")],
    "signs": [Odd("signs", "hidden")],
    "gradient with a graph": [Odd("accumulates a graph")],
    "penalty through the dense weight": [Odd("through the dense weight")],
    "values through a function": [Odd("another forward")],
    "hook clamps values' gradient": [Odd("hook clamps")],
    "inner step of meta-learning": [Odd("inner step")],
}
"""Of these an error that names the layer is an answer too."""
