"""The training recipe of ``cifar10-vgg8``: a plain CNN trained from scratch on CIFAR-10.

    python assets/cifar10_vgg8.py --data-root CIFAR10 --out assets --seed 0

Writes ``cifar10-vgg8.safetensors`` (convolutions in half precision, 4.6 MB) and the model card ``cifar10-vgg8.json``.
Training uses the training split only and keeps the network after the last epoch; the test split is used once, at the end, with
the weights as written. Takes about an hour on 2 CPU cores with bfloat16 support.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Run as a script, Python looks for modules next to the file; the package is one folder up.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from assets.training import tensors, write
from modhifi import load_data
from modhifi.data import Data
from modhifi.models.cifar_vgg import CifarVGG
from modhifi.specs import InputSpec

EPOCHS = 24
BATCH = 256
RATE = 0.2
DECAY = 5e-4
SMOOTHING = 0.1
PADDING = 4
# Mean and standard deviation of the training split's pixels, per channel.
INPUT = InputSpec(size=(32, 32), mean=(0.491, 0.482, 0.447), std=(0.247, 0.243, 0.262))


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each of (B, 3, H, W) shifted by up to `PADDING` pixels (mirrored at the border) and flipped with probability 1/2."""
    count, _, height, width = images.shape
    padded = F.pad(images, (PADDING,) * 4, mode="reflect")
    top, left = torch.randint(0, 2 * PADDING + 1, (2, count, 1), generator=generator)
    rows = top + torch.arange(height)  # (B, H)
    columns = left + torch.arange(width)  # (B, W)
    flip = torch.rand(count, generator=generator) < 0.5
    columns = torch.where(flip[:, None], columns.flip(1), columns)
    each = torch.arange(count)[:, None, None]
    return padded.permute(0, 2, 3, 1)[each, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def train(data: Data, seed: int, epochs: int) -> CifarVGG:
    """SGD with Nesterov momentum and a one-cycle schedule; returns the network after the last epoch, in evaluation mode."""
    images, labels = tensors(data, INPUT)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CifarVGG().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, weight_decay=DECAY, nesterov=True)
    steps = math.ceil(len(images) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=RATE, total_steps=epochs * steps)
    criterion = nn.CrossEntropyLoss(label_smoothing=SMOOTHING)
    for epoch in range(epochs):
        total, start = 0.0, time.perf_counter()
        for part in torch.randperm(len(images), generator=generator).chunk(steps):
            batch = augment(images[part], generator).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                loss = criterion(model(batch), labels[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(part)
        print(
            f"epoch {epoch + 1:3d} of {epochs}: training loss {total / len(images):.4f}, "
            f"{time.perf_counter() - start:.0f} s",
            file=sys.stderr,
            flush=True,
        )
    return model.to(memory_format=torch.contiguous_format).eval()


def make(root: Path, out: Path, seed: int, epochs: int, samples: int | None = None) -> dict[str, object]:
    """Trains (on only ``samples`` images, if given), writes the checkpoint and the card to ``out`` and returns the card."""
    splits = {name: load_data("cifar10", root, name, samples, seed) for name in ("train", "test")}
    start = time.perf_counter()
    model = train(splits["train"], seed, epochs)
    seconds = time.perf_counter() - start
    # Half precision for the convolutions, which have most of the weights; the accuracy is that of the weights in the file.
    state = {name: value.half() if value.ndim == 4 else value for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    card: dict[str, object] = {
        "name": "cifar10-vgg8",
        "architecture": "seven 3x3 convolutions of 64, 128, 128, 256, 256, 256, 256 channels with BatchNorm and ReLU, "
        "maximum pooling after the first, third and fifth, global average pooling, one linear layer",
        "data": "CIFAR-10 (A. Krizhevsky, 2009)",
        "splits": {name: len(part) for name, part in splits.items()},
        "seed": seed,
        "recipe": f"{epochs} epochs of SGD with Nesterov momentum, batches of {BATCH}, one cycle up to a rate of "
        f"{RATE}, weight decay {DECAY}, label smoothing {SMOOTHING}, flips and moves of up to {PADDING} pixels, "
        "bfloat16 autocast; the last epoch is the model",
        "training_seconds": round(seconds),
    }
    return write(out, model, state, splits["test"], INPUT, card)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train cifar10-vgg8 and write its checkpoint and model card.")
    parser.add_argument("--data-root", type=Path, required=True, help="folder of CIFAR-10")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent, help="folder to write to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (the number affects rounding)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    card = make(arguments.data_root, arguments.out, arguments.seed, arguments.epochs)
    print(f"test accuracy {card['test_accuracy']:.2%} ({card['test_correct']} of {card['test_samples']})")


if __name__ == "__main__":
    main()
