"""Applies a plan in two steps that are checked against each other: *masked*, the original shape with the new weights and zeros
for removed components, then *removed*, with the zeros cut out by torch-pruning's functions. Both must give the same output in
single precision, whatever precision the weights are stored in.

Names of a plan's tensors, all in the coordinates of the original network: ``L.weight`` (O, columns kept) is the new flat weight
of consumer L; ``L.shift`` (O,) a constant added to the output of layer L; any other entry of the network's state, such as
``B.running_mean`` of a BatchNorm, has its own name and size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..components import Structure, structure_of
from ..errors import UserError
from ..layers import copied, flat_weight, get_operator, shaped_weight, width_of
from ..models import Model, fingerprint
from ..plan import Plan
from ..specs import Step
from ._remove import add_bias, remaining_columns, remove
from ._verify import TOLERANCE, answer, distance

__all__ = ["apply"]


@torch.inference_mode(False)
def apply(plan: Plan, model: Model, *, masked: bool = False) -> Model:
    """A copy of ``model`` modified by the plan; ``model`` itself does not change.

    Args:
        plan: the components to keep and the new weights.
        model: the network that the plan was made for.
        masked: keep the original shape, with zeros in place of removed components.

    Raises:
        UserError: if the plan was made for other weights or does not fit the network, or if accelerate has offloaded weights.
        RuntimeError: if the outputs of the removed and the masked network differ, because the tracer misread an operation.
    """
    if model.fingerprint != plan.model.fingerprint:
        raise UserError(
            f"the plan was made for other weights ({plan.model.spec}, fingerprint {plan.model.fingerprint[:12]}) than"
            f" these ({model.spec}, {model.fingerprint[:12]}); load the weights it was made for"
        )
    if any(value.is_meta for value in model.module.parameters()):
        raise UserError(
            f"weights of {model.spec} are offloaded; load the model on one device (--device cpu) to modify it"
        )
    structure = structure_of(model)
    _check(plan, structure)
    net = copied(model.module)
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
        if off > TOLERANCE:
            raise RuntimeError(
                f"the pruned network differs from the masked one by {off:.3g}: the tracer misread its structure; please"
                " report this network"
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
        source=model.source,
    )


def _check(plan: Plan, structure: Structure) -> None:
    sizes = {group.name: group.size for group in structure.groups}
    for name, group in plan.groups.items():
        if name not in sizes:
            raise UserError(
                f"the plan prunes group {name}, which this network does not have; load the network it was made for"
            )
        if sizes[name] != group.total:
            raise UserError(
                f"group {name} has {group.total} components in the plan but {sizes[name]} in the network; load the network"
                " it was made for"
            )
        outside = next((i for i in group.keep if not 0 <= i < group.total), None)
        if outside is not None:
            raise UserError(
                f"the plan keeps component {outside} of group {name}, which has {group.total}; make it again"
            )
    for name, value in plan.tensors.items():
        if not value.is_floating_point() or not bool(value.isfinite().all()):
            raise UserError(f"the plan's {name} has values that are no finite real numbers; make the plan again")


@torch.no_grad()
def _mask(net: nn.Module, plan: Plan, structure: Structure) -> list[str]:
    """Writes the plan's weights into ``net``, zero for removed components; returns the layers that gained a bias."""
    added = []
    touched = set()
    keep = {name: group.keep for name, group in plan.groups.items()}
    for name, read in structure.readers.items():
        layer = get_operator(net, name)
        flat = flat_weight(layer)
        kept = remaining_columns(structure, name, flat, keep)
        new = torch.zeros_like(flat)
        new[:, kept] = _tensor(plan, f"{name}.weight", flat[:, kept])
        layer.weight.copy_(shaped_weight(layer, new))
        touched.add(f"{name}.weight")
        if f"{name}.shift" in plan.tensors:
            touched.add(f"{name}.shift")
            shift = _shift(plan, f"{name}.shift", len(flat))
            takes = read[0][1].shift
            if takes is None:
                add_bias(layer)
                added.append(name)
                assert layer.bias is not None
                _add(layer.bias, shift)
            elif takes.endswith(".bias"):
                assert layer.bias is not None
                _add(layer.bias, shift)
            else:
                # BatchNorm subtracts its running mean, so lowering the mean adds the shift.
                _add(net.get_buffer(takes), -shift)
    state = net.state_dict(keep_vars=True)
    for key in sorted(set(plan.tensors) - touched):
        name, _, what = key.rpartition(".")
        if what == "shift":
            try:
                layer = get_operator(net, name)
            except (TypeError, AttributeError) as error:
                raise UserError(
                    f"the plan sets {key}, but {name} is not a convolution or linear layer of this network; make it again"
                ) from error
            shift = _shift(plan, key, width_of(layer))
            if layer.bias is None:
                add_bias(layer)
                added.append(name)
            assert layer.bias is not None
            # A bias that the plan itself sets is already in place: ``.bias`` sorts before ``.shift``.
            _add(layer.bias, shift)
        elif key in state and state[key].is_floating_point() and _fits(plan.tensors[key], state[key]):
            state[key].data.copy_(plan.tensors[key].reshape(state[key].shape))
        elif key in state:
            if not state[key].is_floating_point():
                raise UserError(f"the plan sets {key}, which is no weight of this network; make the plan again")
            shapes = tuple(plan.tensors[key].shape), tuple(state[key].shape)
            raise UserError(f"the plan's {key} has shape {shapes[0]}, but the network needs {shapes[1]}; make it again")
        else:
            raise UserError(f"the plan sets {key}, which this network does not have; make it again")
    return added


def _fits(value: Tensor, own: Tensor) -> bool:
    """Whether the value has the weight's shape, or that of the weight flattened to (outputs, inputs)."""
    return value.shape == own.shape or (own.ndim > 2 and value.shape == own.flatten(1).shape)


def _tensor(plan: Plan, name: str, like: Tensor) -> Tensor:
    """The plan's tensor with the dtype and device of ``like``, or ``like`` itself if the plan has none."""
    value = plan.tensors.get(name)
    return like if value is None else _checked(value, name, like.shape).to(like)


def _shift(plan: Plan, name: str, outputs: int) -> Tensor:
    """The plan's shift (outputs,), as the plan has it."""
    return _checked(plan.tensors[name], name, torch.Size([outputs]))


def _checked(value: Tensor, name: str, shape: torch.Size) -> Tensor:
    if value.shape != shape:
        shapes = tuple(value.shape), tuple(shape)
        raise UserError(f"the plan's {name} has shape {shapes[0]}, but the network needs {shapes[1]}; make it again")
    return value


def _add(target: Tensor, value: Tensor) -> None:
    """Adds in place and rounds only the sum to the dtype of ``target``. On the CPU: MPS has no float64."""
    target.copy_((target.cpu().double() + value.cpu().double()).to(target.dtype))
