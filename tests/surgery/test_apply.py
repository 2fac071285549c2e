"""The removed network equals the masked one, and both equal what the plan says."""

import copy

import pytest
import torch
from torch import nn

import modhifi
from modhifi import Data, Model, Plan, Study, UserError
from modhifi.evaluation import count_cost
from modhifi.models import fingerprint
from modhifi.plan import GroupPlan, Settings
from modhifi.surgery import recalibrate


def agree(plan: Plan, model: Model, tolerance: float = 1e-4) -> tuple[Model, Model]:
    masked, removed = modhifi.apply(plan, model, masked=True), modhifi.apply(plan, model)
    example = model.example(4)
    with torch.inference_mode():
        torch.testing.assert_close(removed.module(example), masked.module(example), atol=tolerance, rtol=tolerance)
    return masked, removed


@pytest.mark.parametrize("compensate", ["none", "scalar", "full"])
@pytest.mark.parametrize("centred", [True, False])
def test_removed_equals_masked_and_costs_what_was_predicted(
    digits_study: Study, digits_model: Model, compensate: str, centred: bool
) -> None:
    plan = modhifi.prune(digits_study, flops=0.5, compensate=compensate, centred=centred)
    _, removed = agree(plan, digits_model)
    cost = count_cost(removed)
    assert (cost.params, cost.flops) == (plan.predicted["params"], plan.predicted["flops"])


@pytest.mark.parametrize("compensate", ["none", "scalar", "full"])
def test_a_chain_in_which_consumers_are_producers_and_a_bias_is_added(
    chain: Model, pictures: Data, compensate: str
) -> None:
    study = modhifi.analyze(chain, pictures)
    plan = modhifi.prune(study, overrides={"a": 3, "b": 2, "c": 4}, compensate=compensate)
    masked, removed = agree(plan, chain)
    assert removed.module.b.weight.shape == (2, 3, 3, 3)
    assert (removed.module.b.bias is not None) == (compensate != "none")
    if compensate == "none":
        return
    # The masked network, built by hand from the study.
    net = copy.deepcopy(chain.module).double()
    for layer, group in (("b", "a"), ("c", "b"), ("d", "c")):
        edit = study.edit(layer, {group: plan.groups[group].keep}, compensate)
        target = net.get_submodule(layer)
        target.weight.copy_(edit.weight.reshape(target.weight.shape))
        if target.bias is None:
            target.bias = nn.Parameter(edit.shift)
        else:
            target.bias.add_(edit.shift)
    with torch.inference_mode():
        example = chain.example(4)
        torch.testing.assert_close(masked.module(example), net(example.double()).float(), atol=1e-4, rtol=1e-4)


def test_the_model_itself_is_left_as_it_was(digits_study: Study, digits_model: Model) -> None:
    before = fingerprint(digits_model.module)
    modhifi.apply(modhifi.prune(digits_study, flops=0.6, compensate="full"), digits_model)
    assert fingerprint(digits_model.module) == before


def test_a_plan_for_other_weights_is_refused(digits_study: Study, digits_model: Model) -> None:
    plan = modhifi.prune(digits_study, flops=0.6, compensate="full")
    other = copy.deepcopy(digits_model.module)
    other.linear.bias.add_(1.0)
    changed = Model("x", other, digits_model.input, digits_model.classes, None, fingerprint(other))
    with pytest.raises(UserError, match="other weights"):
        modhifi.apply(plan, changed)


def test_a_plan_that_does_not_fit_is_refused(digits_study: Study, digits_model: Model) -> None:
    plan = modhifi.prune(digits_study, flops=0.6, overrides={"layer3.0.conv2": 30}, compensate="full")
    odd = plan.model_copy(deep=True).with_tensors(plan.tensors | {"linear.weight": torch.zeros(10, 64)})
    with pytest.raises(UserError, match=r"linear\.weight"):
        modhifi.apply(odd, digits_model)
    odd = plan.model_copy(deep=True)
    odd.groups["nothing"] = GroupPlan(total=4, keep=[0])
    with pytest.raises(UserError, match="nothing"):
        modhifi.apply(odd, digits_model)
    name = "layer1.0.conv2.weight"
    odd = plan.model_copy(deep=True).with_tensors(plan.tensors | {name: torch.zeros(2, 2)})
    with pytest.raises(UserError, match="shape"):
        modhifi.apply(odd, digits_model)


def test_a_plan_may_change_any_entry_of_the_state(chain: Model, pictures: Data) -> None:
    """Also of layers that read no components, such as the first one, and the constants of any layer."""
    study = modhifi.analyze(chain, pictures)
    plan = Plan(kind="unlearn", model=study.model, calibration=study.data, settings=Settings())
    tensors = {
        "a.weight": torch.ones(6, 27),
        "a.shift": torch.full((6,), 2.0),
        "norm.weight": torch.arange(6.0),
        "norm.running_var": torch.full((6,), 9.0),
        "d.shift": torch.tensor([1.0, 2.0, 3.0, 4.0]),
    }
    changed = modhifi.apply(plan.with_tensors(tensors), chain).module
    assert torch.equal(changed.a.weight, torch.ones(6, 3, 3, 3))
    torch.testing.assert_close(changed.a.bias, chain.module.a.bias + 2)
    assert torch.equal(changed.norm.weight, torch.arange(6.0))
    assert torch.equal(changed.norm.running_var, torch.full((6,), 9.0))
    torch.testing.assert_close(changed.d.bias, chain.module.d.bias + torch.arange(1.0, 5))
    for name, message in [
        ("nothing.weight", "does not have"),
        ("norm.shift", "norm is not a convolution or linear layer"),
        ("norm.num_batches_tracked", "is no weight of this network"),
    ]:
        with pytest.raises(UserError, match=message):
            modhifi.apply(plan.with_tensors({name: torch.zeros(6)}), chain)
    for odd in (torch.full((6,), torch.nan), torch.zeros(6, dtype=torch.complex64), torch.zeros(6, dtype=torch.int64)):
        with pytest.raises(UserError, match=r"norm\.weight has values that are no finite real numbers"):
            modhifi.apply(plan.with_tensors({"norm.weight": odd}), chain)
    wide = plan.model_copy(update={"groups": {"a": GroupPlan(total=7, keep=[0])}})
    with pytest.raises(UserError, match="group a has 7 components in the plan but 6 in the network"):
        modhifi.apply(wide, chain)
    outside = GroupPlan.model_construct(total=6, keep=[0, 6])
    with pytest.raises(UserError, match="keeps component 6 of group a, which has 6"):
        modhifi.apply(plan.model_copy(update={"groups": {"a": outside}}), chain)
    with pytest.raises(UserError, match=r"norm\.weight has shape \(5,\)"):
        modhifi.apply(plan.with_tensors({"norm.weight": torch.zeros(5)}), chain)


def test_a_misread_network_is_noticed(chain: Model, pictures: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """If removal took out another channel than the one masked, apply must not return."""
    from modhifi.surgery import _apply

    right = _apply.remove

    def wrong(module, structure, keep):
        right(module, structure, {name: [i for i in range(6) if i != stays[0]] for name, stays in keep.items()})

    plan = modhifi.prune(modhifi.analyze(chain, pictures), overrides={"a": 5}, compensate="full")
    monkeypatch.setattr(_apply, "remove", wrong)
    with pytest.raises(RuntimeError, match="differs from the masked one"):
        modhifi.apply(plan, chain)


def test_recalibration_is_the_average_over_batches(chain: Model) -> None:
    net = copy.deepcopy(chain.module)
    batches = [torch.randn(8, 3, 8, 8), torch.randn(8, 3, 8, 8) + 1]
    found = recalibrate(net, batches)
    with torch.no_grad():
        inputs = [net.a(batch).transpose(0, 1).flatten(1) for batch in batches]
    torch.testing.assert_close(found["norm.running_mean"], torch.stack([x.mean(1) for x in inputs]).mean(0))
    torch.testing.assert_close(found["norm.running_var"], torch.stack([x.var(1) for x in inputs]).mean(0))
    assert not net.training
    assert not net.norm.training
    assert net.norm.momentum == 0.1


def test_recalibrated_statistics_travel_with_the_plan(digits_study: Study, digits_model: Model, tmp_path) -> None:
    plan = modhifi.prune(digits_study, flops=0.5, compensate="full", recalibrate_bn=True)
    masked, removed = agree(plan, digits_model)
    assert not torch.equal(masked.module.bn1.running_var, digits_model.module.bn1.running_var) or not torch.equal(
        masked.module.layer1[0].bn2.running_mean, digits_model.module.layer1[0].bn2.running_mean
    )
    again = modhifi.apply(Plan.load(plan.save(tmp_path / "plan.json")), digits_model)
    assert again.fingerprint == removed.fingerprint
