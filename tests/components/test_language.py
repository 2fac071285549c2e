"""The groups of language models: what each costs, and that removing components is masking them, with the key-value cache and
without.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modhifi import Model
from modhifi.components import flop_counter, structure_of
from modhifi.layers import get_operator
from modhifi.models.language import FAMILIES
from modhifi.surgery import remaining_columns, remove
from modhifi.surgery._verify import answer, distance

Make = Callable[..., Model]


@pytest.mark.parametrize("family", FAMILIES)
def test_cost_is_what_a_count_gives(family: str, language: Make) -> None:
    model = language(family, attn_implementation="eager")  # which the counter knows
    structure = structure_of(model)
    assert [group.kind for group in structure.groups] == ["heads", "neurons"] * 2
    assert {group.size for group in structure.groups if group.kind == "heads"} == {
        4 if family in ("gpt2", "opt") else 2
    }

    def counted() -> tuple[int, int]:
        with flop_counter() as counter:
            model.module(model.example())
        return sum(value.numel() for value in model.module.parameters()), counter.get_total_flops() // 2

    assert (structure.cost().params, structure.cost().flops) == counted()
    keep = {group.name: list(range(1, group.size, 2)) for group in structure.groups[1:]}
    remove(model.module, structure, keep)
    cost = structure.cost({name: len(kept) for name, kept in keep.items()})
    assert (cost.params, cost.flops) == counted()


def test_a_single_key_value_head_stays(language: Make) -> None:
    structure = structure_of(language(num_key_value_heads=1))
    assert [group.kind for group in structure.groups] == ["neurons", "neurons"]
    assert {one.reason for one in structure.skipped} >= {"a single component"}
    params = sum(value.numel() for value in language(num_key_value_heads=1).module.parameters())
    assert structure.cost().params == params


def tokens(lm: Any, prompt: torch.Tensor, cache: bool) -> torch.Tensor:
    return lm.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=8,
        min_new_tokens=8,
        do_sample=False,
        pad_token_id=0,
        use_cache=cache,
    )


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 1 << 16))
def test_removed_is_masked_with_and_without_cache(family: str, language: Make, seed: int) -> None:
    masked, removed = language(family), language(family)
    structure = structure_of(masked)
    generator = torch.Generator().manual_seed(seed)

    def some(size: int) -> list[int]:
        count = int(torch.randint(1, size + 1, (1,), generator=generator))
        return sorted(torch.randperm(size, generator=generator)[:count].tolist())

    keep = {group.name: some(group.size) for group in structure.groups}
    for name in structure.readers:
        flat = get_operator(masked.module, name).weight.data
        flat[:, ~remaining_columns(structure, name, flat, keep)] = 0.0
    remove(removed.module, structure, keep)
    example = masked.example(3)
    assert distance(answer(masked.module, example), answer(removed.module, example)) < 1e-5
    expected = tokens(masked.module.lm, example[:, :5], cache=False)
    for cache in (True, False):
        assert torch.equal(tokens(removed.module.lm, example[:, :5], cache), expected)
    sizes = {name: len(kept) for name, kept in keep.items()}
    assert {group.name: group.size for group in structure_of(removed).groups if group.size > 1} == {
        name: size for name, size in sizes.items() if size > 1
    }
