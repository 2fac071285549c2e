"""Class-specific components: those with high fidelity for a class and low fidelity for the others, from the study alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..study import Study

__all__ = ["Living", "where_it_lives"]


@dataclass(frozen=True)
class Living:
    """The M most class-specific components. ``table`` (K, M): fidelity of each component alone for each of the K ``classes``;
    ``components``: (group, index) of each; ``apart`` (M,): mean fidelity for the chosen classes minus that for the others.
    """

    table: np.ndarray
    classes: list[str]
    components: list[tuple[str, int]]
    apart: np.ndarray


def where_it_lives(study: Study, chosen: Sequence[str], at_most: int = 40) -> Living:
    """The ``at_most`` components, over all groups, whose class fidelity (`Study.class_fidelity`) for the ``chosen`` classes
    exceeds that for the others by most; with no class chosen, the components most specific to any single class. Classes
    without a class table are omitted.
    """
    names: list[str] = []
    tables, components = [], []
    for group in study.groups:
        seen, table = study.class_fidelity(group.name)
        names = [study.model.classes[number] for number in seen]
        tables.append(table)
        components += [(group.name, index) for index in range(group.size)]
    whole = np.concatenate(tables, axis=1).astype(np.float64) if tables else np.zeros((0, 0))
    if len(names) < 2:
        return Living(np.zeros((len(names), 0)), names, [], np.zeros(0))
    mine = np.array([name in chosen for name in names])
    if mine.any() and not mine.all():
        apart = whole[mine].mean(0) - whole[~mine].mean(0)
    else:
        apart = whole.max(0) - (whole.sum(0) - whole.max(0)) / (len(names) - 1)
    best = np.argsort(-apart, kind="stable")[:at_most]
    return Living(whole[:, best], names, [components[i] for i in best], apart[best])
