"""The folder of a language model is not trusted: its code does not run, its configuration cannot ask for more than it brings."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

import modhifi
from modhifi import Data, Model, UserError
from modhifi.models.language import as_transformers

Make = Callable[..., Model]


def saved(model: Model, folder: Path) -> Path:
    as_transformers(model.module).save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(spec: str) -> str:
    with pytest.raises(UserError) as caught:
        modhifi.load_model(spec, device="cpu")
    text = str(caught.value)
    assert "\n" not in text
    assert "trust_remote_code" not in text
    return text


@pytest.fixture
def folder(language: Make, tmp_path: Path) -> Path:
    return saved(language(), tmp_path / "it")


@pytest.fixture
def trap(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the folder's Python creates when it is run; whoever asks whether to run it is told yes."""
    trace = tmp_path / "ran"
    code = f"import pathlib\npathlib.Path({str(trace)!r}).touch()\n"
    for name in ("configuration_own", "modeling_own", "tokenization_own"):
        (folder / f"{name}.py").write_text(code + "class Own: ...\n")
    monkeypatch.setattr(sys, "stdin", io.StringIO("yes\n" * 9))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    return trace


_OWN = {
    "AutoConfig": "configuration_own.Own",
    "AutoModelForCausalLM": "modeling_own.Own",
    "AutoTokenizer": ["tokenization_own.Own", None],
}


def test_code_of_an_unknown_type_does_not_run(folder: Path, trap: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(folder / "config.json", model_type="own", auto_map=_OWN)
    assert "needs Python code of its own, which is never run; choose one of llama" in refusal(f"hf:{folder}")
    assert capsys.readouterr().out == ""
    assert not trap.exists()
    assert sys.stdin.read(3) == "yes"


def test_a_known_type_is_loaded_without_the_code_that_it_names(folder: Path, trap: Path, language: Make) -> None:
    edit(folder / "config.json", auto_map=_OWN)
    assert modhifi.load_model(f"hf:{folder}", device="cpu").fingerprint == language().fingerprint
    assert not trap.exists()


def test_code_of_a_tokenizer_does_not_run(folder: Path, trap: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(folder / "tokenizer_config.json", tokenizer_class="Own", auto_map={"AutoTokenizer": _OWN["AutoTokenizer"]})
    (folder / "tokenizer.json").unlink()
    assert "the tokenizer of" in refusal(f"hf:{folder}")
    assert capsys.readouterr().out == ""
    assert not trap.exists()
    assert sys.stdin.read(3) == "yes"


def test_code_in_an_export_does_not_run(language: Make, prose: Data, tmp_path: Path, trap: Path) -> None:
    model = language()
    study = modhifi.analyze(model, prose, 24, constants=["none"])
    wide = {study.groups[1].name: 5, study.groups[3].name: 9}
    small = modhifi.apply(modhifi.prune(study, overrides=wide, compensate="none", constants="none"), model)
    out = modhifi.export(small, tmp_path / "out")
    assert modhifi.load_model(str(out), device="cpu").fingerprint == small.fingerprint
    for path in trap.parent.joinpath("it").glob("*.py"):
        (out / path.name).write_text(path.read_text())
    edit(out / "architecture.json", model_type="own", auto_map=_OWN)
    assert "needs Python code of its own, which is never run" in refusal(str(out))
    edit(out / "architecture.json", model_type="llama", intermediate_size=10**8)
    assert "describes" in refusal(str(out))
    assert not trap.exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 100_000}, "num_hidden_layers must be a whole number from 1 to 1,000, not 100000"),
        ({"num_hidden_layers": 10**400}, "num_hidden_layers must be a whole number from 1 to 1,000"),
        ({"num_hidden_layers": 900}, r"describes .* parameters, but its weight files have"),
        ({"hidden_size": 1 << 20}, r"describes .* parameters, but its weight files have"),
        ({"hidden_size": -32}, "hidden_size must be a whole number from 1 to"),
        ({"hidden_size": "32"}, "hidden_size must be a whole number from 1 to"),
        ({"intermediate_size": 24.5}, "intermediate_size must be a whole number from 1 to"),
        ({"vocab_size": True}, "vocab_size must be a whole number from 1 to"),
        ({"vocab_size": 1 << 28}, r"describes .* parameters, but its weight files have"),
        ({"num_labels": 10**9}, "num_labels must be a whole number from 1 to 100,000"),
        ({"num_attention_heads": 0}, "num_attention_heads must be a whole number"),
        ({"eos_token_id": 10**30}, "eos_token_id is too large a number"),
        ({"num_attention_heads": 3}, "could not be loaded"),
        ({"hidden_act": "no such"}, "could not be loaded"),
        ({"rope_parameters": [1]}, "could not be loaded"),
        ({"max_position_embeddings": "many"}, "max_position_embeddings must be a whole number"),
        ({"model_type": ["llama"]}, "of no type that its config.json names; choose one of llama"),
        ({"num_hidden_layers": 1}, "has weights that its configuration leaves out"),
        ({"num_hidden_layers": 3}, "lacks weights that its configuration needs"),
    ],
)
def test_a_configuration_is_held_to_its_weights(folder: Path, changes: dict[str, Any], words: str) -> None:
    edit(folder / "config.json", **changes)
    with pytest.raises(UserError, match=words) as caught:
        modhifi.load_model(f"hf:{folder}", device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["[]", "null", "{}", "[" * 100_000, "{", '{"model_type": NaN}'])
def test_a_configuration_that_is_none(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    refusal(f"hf:{folder}")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes")
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "generation_config.json"])
def test_a_pipe_is_not_waited_for(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert "is not a regular file" in refusal(f"hf:{folder}")


def test_weights_that_are_missing_are_not_drawn_at_random(folder: Path) -> None:
    state = safetensors.torch.load_file(folder / "model.safetensors")
    name = next(name for name in state if "down_proj" in name)
    del state[name]
    safetensors.torch.save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    assert f"lacks weights that its configuration needs ({name})" in refusal(f"hf:{folder}")
