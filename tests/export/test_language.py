"""A changed language model is written so that transformers alone opens it, or else so that only this project does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import modhifi
from modhifi import Data, Model, Study, UserError
from modhifi.models.language import FAMILIES

Make = Callable[..., Model]


def changed(model: Model, prose: Data, allocation: str) -> tuple[Study, Model]:
    study = modhifi.analyze(model, prose, 24, constant_samples=2)
    groups = study.groups
    uneven = {groups[1].name: 5, groups[3].name: 9} if allocation == "global" else {}
    ratio = None if uneven else 0.93
    plan = modhifi.prune(study, params=ratio, overrides=uneven, compensate="full")
    return study, modhifi.apply(plan, model)


def written(small: Model) -> torch.Tensor:
    ids = small.example()[:, :6]
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    return small.module.lm.generate(ids, attention_mask=torch.ones_like(ids), **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_widths_open_with_transformers_alone(family: str, language: Make, prose: Data, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, small = changed(language(family), prose, "width")
    out = modhifi.export(small, tmp_path / "out")
    theirs = AutoModelForCausalLM.from_pretrained(out).eval()
    ids = small.example(2)
    with torch.no_grad():
        assert torch.allclose(theirs(input_ids=ids).logits, small.module(ids), atol=1e-5)
    prompt = ids[:1, :6]
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(theirs.generate(prompt, attention_mask=torch.ones_like(prompt), **options), written(small))
    assert AutoTokenizer.from_pretrained(out)("ab")["input_ids"] == [97, 98]
    own = modhifi.load_model(str(out), device="cpu")
    assert own.fingerprint == small.fingerprint
    assert own.plan is not None
    assert own.plan.groups == small.plan.groups


def test_heads_that_the_configuration_cannot_say_are_written_as_free_widths(
    language: Make, prose: Data, tmp_path: Path
) -> None:
    """Six query heads do not divide Llama's 32 channels; transformers refuses such a configuration, when it is written too."""
    from transformers import AutoModelForCausalLM

    for family, alone in (("llama", False), ("mistral", True)):
        model = language(family, num_attention_heads=8, num_key_value_heads=4)
        study = modhifi.analyze(model, prose, 24, constants=["none"])
        three = {group.name: 3 for group in study.groups if group.kind == "heads"}
        small = modhifi.apply(modhifi.prune(study, overrides=three, compensate="none", constants="none"), model)
        out = modhifi.export(small, tmp_path / family)
        assert (out / "config.json").exists() == alone
        if alone:
            AutoModelForCausalLM.from_pretrained(out)
        ids = small.example(2)
        assert torch.equal(modhifi.load_model(str(out), device="cpu").module(ids), small.module(ids))


@pytest.mark.parametrize("allocation", ["width", "global"])
def test_how_it_generates_goes_with_it(allocation: str, language: Make, prose: Data, tmp_path: Path) -> None:
    model = language()
    model.module.lm.generation_config.eos_token_id = [7, 9]
    _, small = changed(model, prose, allocation)
    own = modhifi.load_model(str(modhifi.export(small, tmp_path / "out")), device="cpu")
    assert own.module.lm.generation_config.eos_token_id == [7, 9]


@pytest.mark.parametrize("family", FAMILIES)
def test_free_widths_open_here(family: str, language: Make, prose: Data, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    _, small = changed(language(family), prose, "global")
    out = modhifi.export(small, tmp_path / "out")
    with pytest.raises(Exception, match=r"config\.json|model_type|Unrecognized"):
        AutoModelForCausalLM.from_pretrained(out)
    for spec in (str(out), f"hf:{out}"):
        own = modhifi.load_model(spec, device="cpu")
        assert own.fingerprint == small.fingerprint
        assert own.tokenizer is not None
        ids = small.example(2)
        assert torch.equal(own.module(ids), small.module(ids))
    assert torch.equal(written(own), written(small))
    # And it can be studied and cut again.
    again = modhifi.analyze(own, prose, 24, constant_samples=2)
    assert [group.size for group in again.groups if group.kind == "neurons"] == [5, 9]
    less = modhifi.apply(modhifi.prune(again, params=0.98, compensate="none"), own)
    assert sum(v.numel() for v in less.module.parameters()) < sum(v.numel() for v in own.module.parameters())


def test_damage_and_other_formats_are_told(language: Make, prose: Data, tmp_path: Path) -> None:
    _, small = changed(language(), prose, "global")
    with pytest.raises(UserError, match="cannot be spread over devices"):
        modhifi.load_model(f"hf:{modhifi.export(small, tmp_path / 'free')}", device="map")
    for context in (0, 1, 49):
        with pytest.raises(UserError, match=f"the context must be 2 to 48 tokens for this model, not {context}"):
            modhifi.load_model(str(tmp_path / "free"), device="cpu", context=context)
    with pytest.raises(UserError, match="written as safetensors only"):
        modhifi.export(small, tmp_path / "no", ["safetensors", "onnx"])
    out = modhifi.export(small, tmp_path / "out")
    for mode in ("width", "global"):
        _, other = changed(language(num_hidden_layers=3), prose, mode)
        modhifi.export(other, tmp_path / mode)
    (out / "model.safetensors").write_bytes((tmp_path / "global" / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match="damaged"):
        modhifi.load_model(str(out), device="cpu")
    (tmp_path / "width" / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"weight files have .* bytes; download it again"):
        modhifi.load_model(str(tmp_path / "width"), device="cpu")
