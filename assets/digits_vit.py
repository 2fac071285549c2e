"""The training recipe of the shipped LayerNorm network: a small vision transformer on scikit-learn's digits.

    python assets/digits_vit.py --out assets --seed 0

Writes ``digits-vit.safetensors`` and the model card ``digits-vit.json``. Training uses the training split only and keeps
the network after the last epoch; the test split is used once, at the end.
"""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

import torch
from torch import nn

# Run as a script, Python looks for modules next to the file; the package is one folder up.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from assets.digits_resnet20 import INPUT, augment
from assets.training import command, tensors, write
from modhifi.data import Data
from modhifi.data._digits import digits
from modhifi.models.digits_vit import digits_vit

EPOCHS = 200
BATCH = 64
RATE = 2e-3
DECAY = 0.05
SMOOTHING = 0.1


def train(data: Data, seed: int, epochs: int) -> nn.Module:
    """AdamW with a one-cycle schedule; returns the network after the last epoch, in evaluation mode."""
    images, labels = tensors(data, INPUT)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = digits_vit()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    steps = math.ceil(len(images) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=RATE, total_steps=epochs * steps)
    criterion = nn.CrossEntropyLoss(label_smoothing=SMOOTHING)
    for epoch in range(epochs):
        total = 0.0
        for part in torch.randperm(len(images), generator=generator).chunk(steps):
            loss = criterion(model(augment(images[part], generator)), labels[part])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
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
        "name": "digits-vit",
        "architecture": "a vision transformer of 4 blocks, 64 channels and 4 heads on patches of 8x8 pixels (timm's "
        "VisionTransformer)",
        "data": "scikit-learn load_digits: 1,797 handwritten digits of 8x8 pixels (UCI Optical Recognition of "
        "Handwritten Digits, CC BY 4.0), upsampled to 32x32",
        "splits": {name: len(part) for name, part in splits.items()},
        "seed": seed,
        "recipe": f"{epochs} epochs of AdamW, batches of {BATCH}, one cycle up to a rate of {RATE}, weight decay {DECAY}, "
        f"label smoothing {SMOOTHING}, gradients clipped at 1, random affine maps; the last epoch is the model",
        "training_seconds": round(seconds),
    }
    return write(out, model, model.state_dict(), splits["test"], INPUT, card)


if __name__ == "__main__":
    command("Train digits-vit and write its checkpoint and model card.", make, EPOCHS)
