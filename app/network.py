"""Data of the network map: position, size and values of each group, from the study."""

from __future__ import annotations

import re
from typing import Literal

import modhifi

from . import components as ui
from .figures import Block

__all__ = ["COLOURS", "Block", "Colour", "map_colour", "map_summary", "read_map", "stage_of"]

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
    """The stage in a layer's name: everything up to the first part with a number, without the last part."""
    parts = layer.split(".")
    for position, part in enumerate(parts[:-1]):
        if re.search(r"\d", part):
            return ".".join(parts[: position + 1])
    return parts[0]


def map_colour() -> Colour:
    """Draws the choice of the value that colours the map."""
    text = (
        f"**HiFi share**: size of the smallest set of components with fidelity {ETA:.0%}, over that of the group; "
        "lower: more can be removed. **FLOPs**: share of all FLOPs that involve the group; higher: more to save. "
        f"**Constant**: {ui.FORMULAS['gain']}"
    )
    options = {str(name): title for name, title in COLOURS.items()}
    chosen: Colour = ui.choice("Colour", options, "map-colour", "fidelity", text, hide_label=True)
    return chosen


def map_summary(blocks: list[Block]) -> str:
    """The map in one sentence."""
    streams = sum(block.kind == "stream" for block in blocks)
    widest = max(blocks, key=lambda block: block.size)
    costliest = max(blocks, key=lambda block: block.cost)
    head = f"{len(blocks)} groups{f', {streams} of them residual streams' if streams else ''}; the widest"
    cost = f"involved in {costliest.cost:.0%} of the FLOPs."
    if widest is costliest:
        return f"{head}, {widest.name}, has {widest.size} components and is {cost}"
    return f"{head} is {widest.name} with {widest.size} components, and {costliest.name} is {cost}"
