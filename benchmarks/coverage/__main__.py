"""Which networks open, how much of each lies in groups that can be pruned, and what does not and why.

    python benchmarks/coverage [--families timm torchvision segmentation transformers] [--limit 120] [--only PATTERN]
        [--results FILE.json]

A small member of every family of timm and torchvision that has a classifier, torchvision's segmentation networks and twelve
architectures of transformers, all with random weights and at the smallest input that they take. Each runs in a process of its own
on one core, which ends after *limit* seconds of enumerating and verifying. Prints a table; with *results*, what is known
already is not run again.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import fnmatch
import json
import re
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import modhifi
from modhifi import Model
from modhifi.components import structure_of
from modhifi.files import atomic_file
from modhifi.specs import InputSpec
from modhifi.surgery import verified

SIZES = (64, 96, 128, 160, 192, 224, 256, 384)
SEGMENTERS = ("lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large", "deeplabv3_resnet50", "fcn_resnet50")
TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("AutoModelForImageClassification", {}),
    "deit": ("AutoModelForImageClassification", {}),
    "beit": ("AutoModelForImageClassification", {}),
    "dinov2": ("AutoModelForImageClassification", {}),
    "swin": ("AutoModelForImageClassification", {"image_size": 64, "depths": [1, 1, 1, 1]}),
    "convnext": ("AutoModelForImageClassification", {"depths": [1, 1, 1, 1]}),
    "resnet": ("AutoModelForImageClassification", {"depths": [1, 1, 1, 1]}),
    "mobilevit": ("AutoModelForImageClassification", {}),
    "segformer": ("AutoModelForSemanticSegmentation", {}),
    "bert": ("AutoModelForSequenceClassification", {}),
    "distilbert": ("AutoModelForSequenceClassification", {"n_layers": 2}),
    "roberta": ("AutoModelForSequenceClassification", {}),
}
SMALL: dict[str, Any] = {"num_hidden_layers": 2, "num_labels": 10, "image_size": 64}
# In the names of small members of a family, from the smallest on.
# fmt: off
SMALLEST = [
    "zepto", "atto", "femto", "pico", "nano", "xxtiny", "xtiny", "xxs", "tiny",
    "xs", "mini", "small", "s0", "b0", "m0", "t0", "a0", "18",
    "050", "050d", "8m", "s", "11", "26", "32",
]
# fmt: on


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    families = ("timm", "torchvision", "segmentation", "transformers")
    parser.add_argument("--families", nargs="+", choices=families, default=families)
    parser.add_argument("--limit", type=int, default=120)
    parser.add_argument("--only", default="*")
    parser.add_argument("--results", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measured(args.one)))
        return
    known = json.loads(args.results.read_text()) if args.results and args.results.exists() else {}
    names = [name for family in args.families for name in members(family) if fnmatch.fnmatch(name, args.only)]
    for name in names:
        if name not in known:
            known[name] = alone(name, args.limit)
            print(name, known[name], file=sys.stderr, flush=True)
            if args.results:
                with atomic_file(args.results) as path:
                    path.write_text(json.dumps(known, indent=1))
    table({name: known[name] for name in names})


def members(family: str) -> list[str]:
    """One network of each family: a small one by its name."""
    if family == "transformers":
        return [f"transformers:{name}" for name in TRANSFORMERS]
    if family == "segmentation":
        return [f"segmentation:{name}" for name in SEGMENTERS]
    if family == "torchvision":
        from torchvision import models

        by_family = collections.defaultdict(list)
        for name in models.list_models(module=models):
            by_family[models.get_model_builder(name).__module__].append(name)
        return sorted(f"torchvision:{smallest(each)}" for each in by_family.values())
    import timm

    found = []
    for module in timm.list_modules():
        names = [name for name in timm.list_models(module=module) if _classifies(name)]
        if names:
            found.append(f"timm:{smallest(names)}")
    return sorted(set(found))


def _classifies(name: str) -> bool:
    import timm

    given = timm.get_pretrained_cfg(name)
    return given is None or given.num_classes > 0


def smallest(names: list[str]) -> str:
    def rank(name: str) -> tuple[int, int, str]:
        parts = re.split(r"[_.]|(?<=\D)(?=\d)", name)
        found = [SMALLEST.index(part) for part in parts if part in SMALLEST]
        return min(found, default=len(SMALLEST)), len(name), name

    return min(names, key=rank)


def alone(name: str, limit: int) -> dict[str, Any]:
    """The result of `measured` in a process of its own, or what ended that."""
    call = [sys.executable, str(Path(__file__).parent), "--one", name]
    try:
        # Building the network is not what is measured.
        done = subprocess.run(call, capture_output=True, text=True, timeout=limit + 60, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"takes more than {limit} s"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or [f"ended by {-done.returncode}"])[-1][:200]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found if found["seconds"] <= limit else {"error": f"takes more than {limit} s"}


def measured(name: str) -> dict[str, Any]:
    torch.set_num_threads(1)
    model = opened(name)
    started = time.perf_counter()
    structure = verified(structure_of(model), model.module, model.example())
    seconds = time.perf_counter() - started
    dense = structure.cost()
    reasons = collections.Counter(skipped.reason for skipped in structure.skipped)
    return {
        "input": list(model.input.shape),
        "params": 1 - structure.other.params / dense.params,
        "flops": 1 - structure.other.flops / max(dense.flops, 1),
        "groups": len(structure.groups),
        "seconds": seconds,
        "gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "reasons": dict(reasons.most_common(3)),
    }


def opened(name: str) -> Model:
    kind, _, architecture = name.partition(":")
    if kind == "segmentation":
        from torchvision.models import get_model

        net = get_model(architecture, weights=None, weights_backbone=None).eval()
        return modhifi.wrap(net, torch.randn(2, 3, 64, 64), output="out")
    if kind == "transformers":
        return transformer(architecture)
    model = modhifi.load_model(name)
    assert isinstance(model.input, InputSpec)
    sizes = [model.input.size[0]] if fixed(model.module) else [*SIZES, model.input.size[0]]
    for size in sizes:
        given = model.input.model_copy(update={"size": (size, size)})
        try:
            with torch.inference_mode():
                model.module(given.example(2))
        except Exception:  # networks say in many ways that an input is too small
            continue
        return dataclasses.replace(model, input=given)
    raise RuntimeError("no size of the input works")


def fixed(net: nn.Module) -> bool:
    return bool(getattr(net, "default_cfg", {}).get("fixed_input_size", False))


def transformer(architecture: str) -> Model:
    import transformers

    kind, extra = TRANSFORMERS[architecture]
    config = transformers.AutoConfig.for_model(architecture)
    for key, value in (SMALL | extra).items():
        setattr(config, key, value)
    torch.manual_seed(0)
    net = getattr(transformers, kind).from_config(config).eval()
    if "Sequence" in kind:
        given: Any = {"input_ids": torch.randint(5, 1000, (2, 16)), "attention_mask": torch.ones(2, 16).long()}
    else:
        given = {"pixel_values": torch.randn(2, 3, 64, 64)}
    return modhifi.wrap(net, given, output="logits")


def table(found: dict[str, dict[str, Any]]) -> None:
    print("| network | input | parameters in groups | FLOPs in groups | groups | seconds | what is left whole |")
    print("|---|---|---|---|---|---|---|")
    for name, one in found.items():
        if "error" in one:
            print(f"| `{name}` | – | – | – | – | – | {one['error']} |".replace("\n", " "))
            continue
        given = "×".join(map(str, one["input"]))
        reasons = "; ".join(f"{reason} ({count})" for reason, count in one["reasons"].items())
        shares = f"{one['params']:.0%} | {one['flops']:.0%}"
        print(f"| `{name}` | {given} | {shares} | {one['groups']} | {one['seconds']:.1f} | {reasons} |")
    good = [one for one in found.values() if "error" not in one]
    if good:
        most = sum(one["flops"] >= 0.75 for one in good)
        print(
            f"\n{len(good)} of {len(found)} open ({len(good) / len(found):.0%}); three quarters of the FLOPs are in groups in"
            f" {most} ({most / len(found):.0%}); the median takes {statistics.median(one['seconds'] for one in good):.1f} s,"
            f" the slowest {max(one['seconds'] for one in good):.0f} s."
        )


if __name__ == "__main__":
    main()
