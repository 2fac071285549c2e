"""The network as a map: what the figure shows of each group, read from the study."""

from __future__ import annotations

import re
from typing import Literal

import modhifi

from . import components as ui
from .figures import Block

__all__ = ["COLOURS", "Block", "Colour", "in_words", "map_colour", "read_map"]

Colour = Literal["fidelity", "cost", "constant"]
COLOURS: dict[Colour, str] = {"fidelity": "HiFi share", "cost": "FLOPs", "constant": "Constant"}
ETA = 0.8


def read_map(study: modhifi.Study) -> list[Block]:
    """Every group of the study, in forward order."""
    place = {layer.name: position for position, layer in enumerate(study.structure.layers)}
    whole = study.dense.flops
    blocks = []
    for group in study.groups:
        readers = [consumer.layer for consumer in group.consumers]
        writers = [producer.layer for producer in group.producers]
        start = min((place[name] for name in writers if name in place), default=0)
        without = study.cost({group.name: 0}).flops
        blocks.append(
            Block(
                name=group.name,
                kind=group.kind,
                size=group.size,
                start=start,
                end=max((place[name] for name in readers), default=start),
                stage=stage_of(group.name),
                fidelity=study.hifi_size(group.name, ETA) / group.size,
                cost=(whole - without) / whole,
                constant=max(study.constant(name) for name in readers),
            )
        )
    return blocks


def stage_of(layer: str) -> str:
    """The part of a layer's name that says its stage: up to the first number, the layer's own name left out."""
    parts = layer.split(".")
    for position, part in enumerate(parts[:-1]):
        if re.search(r"\d", part):
            return ".".join(parts[: position + 1])
    return parts[0]


def map_colour() -> Colour:
    """Draws the choice of what the colours mean."""
    text = (
        f"**HiFi share**: how much of the group its smallest set of fidelity {ETA:.0%} is; little means that much can go. "
        f"**FLOPs**: the share of the network's that the group takes part in. **Constant**: {ui.FORMULAS['gain']}"
    )
    words = {str(name): title for name, title in COLOURS.items()}
    chosen: Colour = ui.choice("Colour", words, "map-colour", "fidelity", text, hide_label=True)
    return chosen


def in_words(blocks: list[Block]) -> str:
    """What the map shows, one sentence."""
    streams = sum(block.kind == "stream" for block in blocks)
    widest = max(blocks, key=lambda block: block.size)
    dearest = max(blocks, key=lambda block: block.cost)
    carried = f", {streams} of them residual streams" if streams else ""
    return (
        f"{len(blocks)} groups{carried}; the widest is {widest.name} with {widest.size} components, and {dearest.name} takes "
        f"part in {dearest.cost:.0%} of the FLOPs."
    )
