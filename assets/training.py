"""Code shared by the training recipes."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from modhifi.data import Data
from modhifi.files import atomic_file, write_json
from modhifi.models._model import fingerprint
from modhifi.specs import InputSpec

__all__ = ["command", "correct", "tensors", "write"]


def tensors(data: Data, spec: InputSpec) -> tuple[Tensor, Tensor]:
    """All of the labelled ``data`` at once: (N, 3, H, W) float32, normalised according to ``spec``, and (N,) int64."""
    parts = [(images, labels) for images, labels in data.batches(spec) if labels is not None]
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


@torch.no_grad()
def correct(model: nn.Module, data: Data, spec: InputSpec) -> int:
    """The number of images of ``data`` that are classified correctly."""
    images, labels = tensors(data, spec)
    predicted = torch.cat([model(images[i : i + 128]).argmax(1) for i in range(0, len(images), 128)])
    return int((predicted == labels).sum())


def write(
    out: Path, model: nn.Module, state: dict[str, Tensor], test: Data, spec: InputSpec, card: dict[str, object]
) -> dict[str, object]:
    """Measures ``model`` on ``test``, writes ``state`` to NAME.safetensors and the card to NAME.json; returns the full card."""
    right = correct(model, test, spec)
    full = card | {
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "test_accuracy": right / len(test),
        "test_correct": right,
        "test_samples": len(test),
        "params": sum(p.numel() for p in model.parameters()),
        "input": spec.model_dump(mode="json"),
        "classes": list(test.classes or ()),
        "fingerprint": fingerprint(model),
    }
    with atomic_file(out / f"{card['name']}.safetensors") as temporary:
        temporary.write_bytes(safetensors.torch.save(state))
    write_json(out / f"{card['name']}.json", full)
    return full


def command(description: str, make: Callable[[Path, int, int], dict[str, object]], epochs: int) -> None:
    """The command line of a recipe: ``make(out, seed, epochs)`` trains and returns the card."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent, help="folder to write to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (the number affects rounding)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    card = make(arguments.out, arguments.seed, arguments.epochs)
    print(f"test accuracy {card['test_accuracy']:.2%} ({card['test_correct']} of {card['test_samples']})")
