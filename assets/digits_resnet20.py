"""The training recipe of the default network: a ResNet-20 on scikit-learn's digits, trained from scratch in minutes.

    python assets/digits_resnet20.py --out assets --seed 0

Writes ``digits-resnet20.safetensors`` and the model card ``digits-resnet20.json``. Training uses the training
split only and keeps the network after the last epoch; the test split is used once, at the end. Training is seeded; another
number of threads or version of torch rounds differently and gives different weights.
"""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Run as a script, Python looks for modules next to the file; the package is one folder up.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from assets.training import command, tensors, write
from modhifi.data import Data
from modhifi.data._digits import digits
from modhifi.models.cifar_resnet import CifarResNet, cifar_resnet
from modhifi.specs import InputSpec

EPOCHS = 80
BATCH = 64
RATE = 0.1
DECAY = 5e-4
SMOOTHING = 0.1
# Mean and standard deviation of the training split's pixels, over all three (equal) channels.
INPUT = InputSpec(size=(32, 32), mean=(0.308,) * 3, std=(0.348,) * 3, interpolation="bicubic")


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """A small random affine map for each of (B, 3, H, W): up to 15° rotation, 15% scaling and shear, 2 pixels shift."""
    count = len(images)

    def uniform(limit: float) -> Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * limit

    angle, shear = uniform(math.radians(15)), uniform(0.15)
    scale_x, scale_y = 1 + uniform(0.15), 1 + uniform(0.15)
    theta = torch.stack(
        [
            torch.stack([scale_x * angle.cos(), -angle.sin() + shear, uniform(2 / 16)], dim=1),
            torch.stack([angle.sin(), scale_y * angle.cos(), uniform(2 / 16)], dim=1),
        ],
        dim=1,
    )  # (B, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    # Pixels from outside the image are background: black, which is not zero after normalisation.
    black = -INPUT.mean[0] / INPUT.std[0]
    return F.grid_sample(images - black, grid, align_corners=False) + black


def train(data: Data, seed: int, epochs: int) -> CifarResNet:
    """SGD with Nesterov momentum and a one-cycle schedule; returns the network after the last epoch, in evaluation mode."""
    images, labels = tensors(data, INPUT)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = cifar_resnet(20)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, weight_decay=DECAY, nesterov=True)
    steps = math.ceil(len(images) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=RATE, total_steps=epochs * steps)
    criterion = nn.CrossEntropyLoss(label_smoothing=SMOOTHING)
    for epoch in range(epochs):
        total = 0.0
        for part in torch.randperm(len(images), generator=generator).chunk(steps):
            loss = criterion(model(augment(images[part], generator)), labels[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(part)
        print(f"epoch {epoch + 1:3d} of {epochs}: training loss {total / len(images):.4f}", file=sys.stderr, flush=True)
    return model.eval()


def make(out: Path, seed: int, epochs: int, samples: int | None = None) -> dict[str, object]:
    """Trains (on only ``samples`` images, if given), writes the checkpoint and the card to ``out`` and returns the card."""
    splits = {name: digits(name) for name in ("train", "calibration", "test")}
    if samples is not None:
        splits["train"] = splits["train"].take(samples, seed)
    start = time.perf_counter()
    model = train(splits["train"], seed, epochs)
    seconds = time.perf_counter() - start
    card: dict[str, object] = {
        "name": "digits-resnet20",
        "architecture": "ResNet-20 for 32x32 images, shortcuts of option A (He et al. 2015, section 4.2)",
        "data": "scikit-learn load_digits: 1,797 handwritten digits of 8x8 pixels (UCI Optical Recognition of "
        "Handwritten Digits, CC BY 4.0), upsampled to 32x32",
        "splits": {name: len(part) for name, part in splits.items()},
        "seed": seed,
        "recipe": f"{epochs} epochs of SGD with Nesterov momentum, batches of {BATCH}, one cycle up to a rate of "
        f"{RATE}, weight decay {DECAY}, label smoothing {SMOOTHING}, random affine maps; the last epoch is the model",
        "training_seconds": round(seconds),
    }
    return write(out, model, model.state_dict(), splits["test"], INPUT, card)


if __name__ == "__main__":
    command("Train the default network and write its checkpoint and model card.", make, EPOCHS)
