"""The knife. A plan is applied in two steps that can be compared: first *masked*, the network in its old shape with the new
weights and zeros where components are gone; then *removed*, those zeros taken out through torch-pruning's dependency graph.
Both give the same answers, and a plan whose removal does not is refused.

Names in a plan's tensors, all in the coordinates of the unchanged network:
``L.weight`` (O, columns that stay) new flat weight of consumer L; ``L.shift`` (O,) a constant for the output of layer L;
any other entry of the network's state, such as ``B.running_mean`` of a BatchNorm, by its own name and size.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from .._operators import get_operator
from ..components import Structure, structure_of
from ..errors import UserError
from ..models import Model, Step, fingerprint
from ..plan import Plan
from ._remove import add_bias, remaining_columns, remove
from ._verify import answer, distance, tolerance

__all__ = ["apply"]


@torch.inference_mode(False)
def apply(plan: Plan, model: Model, *, masked: bool = False) -> Model:
    """The model changed as the plan says; ``model`` itself stays as it is.

    Args:
        plan: what stays, and the new weights.
        model: the network that the plan was made for.
        masked: leave the network in its old shape, zeros where components are gone (the removed one's twin).

    Raises:
        UserError: if the plan was made for other weights, or does not fit the network.
            Weights that accelerate keeps elsewhere cannot be changed.
        RuntimeError: if the removed network does not answer as the masked one does (an operation that the tracer misreads).
    """
    if model.fingerprint != plan.model.fingerprint:
        raise UserError(
            f"the plan was made for other weights ({plan.model.spec}, fingerprint {plan.model.fingerprint[:12]}) than these"
            f" ({model.spec}, {model.fingerprint[:12]}); load the weights it names"
        )
    if any(value.is_meta for value in model.module.parameters()):
        raise UserError(
            f"weights of {model.spec} lie outside this memory; load it on one device (--device cpu) to change it"
        )
    structure = structure_of(model)
    _check(plan, structure)
    net = copy.deepcopy(model.module)
    added = _mask(net, plan, structure)
    keep = (
        {}
        if masked
        else {name: tuple(group.keep) for name, group in plan.groups.items() if len(group.keep) < group.total}
    )
    if keep:
        example = model.example(2)
        before = answer(net, example)
        remove(net, structure, keep)
        off = distance(before, answer(net, example))
        if off > tolerance(net):
            raise RuntimeError(
                f"the network with its components removed differs from the masked one by {off:.3g}: the tracer misread how"
                " they are connected; please report this network"
            )
    return Model(
        spec=model.spec,
        module=net.eval().requires_grad_(False),
        input=model.input,
        classes=model.classes,
        weights=model.weights,
        fingerprint=fingerprint(net),
        plan=plan,
        architecture=model.architecture,
        steps=(*model.steps, Step(keep=keep, added_biases=tuple(added))),
        tokenizer=model.tokenizer,
    )


def _check(plan: Plan, structure: Structure) -> None:
    sizes = {group.name: group.size for group in structure.groups}
    for name, group in plan.groups.items():
        if name not in sizes:
            raise UserError(f"the plan names group {name}, which this network does not have")
        if sizes[name] != group.total or not all(0 <= i < group.total for i in group.keep):
            raise UserError(f"the plan's group {name} has {group.total} components, the network's has {sizes[name]}")


@torch.no_grad()
def _mask(net: nn.Module, plan: Plan, structure: Structure) -> list[str]:
    """Writes the plan's weights into ``net``, zero where components are gone; returns the layers that got a bias."""
    added = []
    touched = set()
    keep = {name: group.keep for name, group in plan.groups.items()}
    for name, read in structure.readers.items():
        layer = get_operator(net, name)
        flat = layer.weight.flatten(1)
        stays = remaining_columns(structure, name, flat, keep)
        new = torch.zeros_like(flat)
        new[:, stays] = _tensor(plan, f"{name}.weight", flat[:, stays])
        layer.weight.copy_(new.reshape(layer.weight.shape))
        touched.add(f"{name}.weight")
        if f"{name}.shift" in plan.tensors:
            touched.add(f"{name}.shift")
            shift = _tensor(plan, f"{name}.shift", flat[:, 0])
            takes = read[0][1].shift
            if takes is None:
                add_bias(layer)
                added.append(name)
                assert layer.bias is not None
                layer.bias.copy_(shift)
            elif takes.endswith(".bias"):
                assert layer.bias is not None
                layer.bias.add_(shift)
            else:
                # BatchNorm subtracts its running mean: what is added to its input is taken off there.
                net.get_buffer(takes).sub_(shift)
    state = net.state_dict(keep_vars=True)
    for key in sorted(set(plan.tensors) - touched):
        name, _, what = key.rpartition(".")
        if what == "shift":
            try:
                layer = get_operator(net, name)
            except (TypeError, AttributeError) as error:
                raise UserError(f"the plan changes {key}, but {name} is no layer of this network that could") from error
            shift = _tensor(plan, key, layer.weight.flatten(1)[:, 0])
            if layer.bias is None:
                add_bias(layer)
                added.append(name)
            assert layer.bias is not None
            # A new bias of the plan's stands already: the state's own names come first in the alphabet.
            layer.bias.add_(shift)
        elif key in state and state[key].is_floating_point() and state[key].numel() == plan.tensors[key].numel():
            state[key].data.copy_(plan.tensors[key].reshape(state[key].shape))
        elif key in state:
            shapes = tuple(plan.tensors[key].shape), tuple(state[key].shape)
            raise UserError(f"the plan's {key} has shape {shapes[0]}, the network needs {shapes[1]}")
        else:
            raise UserError(f"the plan changes {key}, which this network does not have")
    return added


def _tensor(plan: Plan, name: str, like: Tensor) -> Tensor:
    """The plan's tensor in the dtype and place of ``like``, or ``like`` itself where the plan has none."""
    value = plan.tensors.get(name)
    if value is None:
        return like
    if value.shape != like.shape:
        raise UserError(f"the plan's {name} has shape {tuple(value.shape)}, the network needs {tuple(like.shape)}")
    return value.to(like)
