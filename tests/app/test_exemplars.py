"""Top-activating images against a search over all images; attributions against a network that sees one corner."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import modhifi
from app.exemplars import COUNT, exemplars
from modhifi import Data, Model, Study
from modhifi.models import fingerprint
from modhifi.progress import silent
from modhifi.specs import InputSpec


def test_the_strongest_images_come_first(digits_study: Study, digits_model: Model) -> None:
    data = modhifi.load_data("digits")
    found = exemplars(digits_study, digits_model, data, "layer2.1.conv1", 5, silent)
    seen: list[torch.Tensor] = []
    handle = digits_model.module.layer2[1].conv2.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    images = torch.cat([batch for batch, _ in data.batches(digits_model.input)])
    with torch.no_grad():
        answers = digits_model.module(images).argmax(1)
    handle.remove()
    energy = seen[0][:, 5].square().mean((1, 2))
    best = torch.argsort(energy, descending=True)[:COUNT]
    assert [one.energy for one in found] == pytest.approx((energy[best] / energy.mean()).tolist(), rel=1e-4)
    assert [one.predicted for one in found] == [str(int(answer)) for answer in answers[best]]
    assert found[0].energy > 1
    first = np.asarray(Image.open(io.BytesIO(found[0].image)).resize((32, 32), Image.Resampling.NEAREST))
    own = data.read(data.order[int(best[0])]).convert("L").resize((32, 32))
    assert np.corrcoef(first.mean(2).ravel(), np.asarray(own, dtype=float).ravel())[0, 1] > 0.9
    assert not digits_model.module.layer2[1].conv2._forward_pre_hooks


class Corner(nn.Module):
    """Its second channel looks at the upper left quarter alone."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 2, 8, stride=8), nn.Conv2d(2, 2, 1)
        self.head = nn.Linear(2, 2)
        mask = torch.zeros(1, 8, 8)
        mask[:, :4, :4] = 1
        self.a.weight.data[1] = mask

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3)))


def test_where_it_looks_is_marked(pictures: Data) -> None:
    torch.manual_seed(0)
    net = Corner().eval().requires_grad_(False)
    spec = InputSpec(size=(8, 8), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    model = Model("corner", net, spec, ("x", "y"), None, fingerprint(net))
    study = modhifi.analyze(model, pictures)
    for one in exemplars(study, model, pictures, "a", 1, silent):
        marked = np.asarray(Image.open(io.BytesIO(one.marked)).resize((8, 8), Image.Resampling.NEAREST), dtype=float)
        orange = marked[:, :, 0] - marked[:, :, 2]  # grey has as much red as blue
        assert (np.abs(orange[4:]) < 2).all()
        assert (np.abs(orange[:, 4:]) < 2).all()
        assert orange[:4, :4].max() > 100
