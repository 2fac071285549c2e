"""Language models are loaded from folders, told from what they are not, and may lie elsewhere than in memory."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import modhifi
from modhifi import Data, Model, UserError
from modhifi.data import windowed
from modhifi.errors import Cancelled
from modhifi.loading import reload
from modhifi.models import fingerprint
from modhifi.models.language import FAMILIES, as_transformers, opens_alone
from modhifi.pruning._sequential_blocks import sequential_blocks

Make = Callable[..., Model]


def saved(model: Model, folder: Path) -> Path:
    as_transformers(model.module).save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_what_transformers_wrote_is_loaded(family: str, language: Make, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = language(family)
    folder = saved(model, tmp_path / "it")
    loaded = modhifi.load_model(f"hf:{folder}", device="cpu", context=20)
    assert loaded.fingerprint == model.fingerprint
    assert loaded.spec == f"hf:{folder}"
    assert loaded.tokens is not None
    assert loaded.tokens.context == 20
    assert loaded.tokenizer("né")["input_ids"] == list("né".encode())
    assert opens_alone(loaded.module)
    ids = loaded.example(2)
    theirs = AutoModelForCausalLM.from_pretrained(folder)(input_ids=ids).logits
    assert torch.allclose(loaded.module(ids), theirs, atol=1e-5)
    assert reload(loaded.ref).input == loaded.input


def test_bfloat16_stays_bfloat16(language: Make, tmp_path: Path) -> None:
    folder = saved(language(dtype=torch.bfloat16), tmp_path / "it")
    loaded = modhifi.load_model(f"hf:{folder}", device="cpu")
    assert {value.dtype for value in loaded.module.parameters()} == {torch.bfloat16}
    assert loaded.tokens is not None
    assert loaded.tokens.context == 48  # as many as it takes


def test_mistakes_are_told(language: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(language(), tmp_path / "it")
    for context in (1, 49):
        with pytest.raises(UserError, match="the context must be 2 to 48 tokens"):
            modhifi.load_model(f"hf:{folder}", context=context)
    with pytest.raises(UserError, match="omit the weights file"):
        modhifi.load_model(f"hf:{folder}", folder / "model.safetensors")
    with pytest.raises(UserError, match="takes tokens"):
        modhifi.load_model(f"hf:{folder}", mean=(0, 0, 0), device="cpu")
    with pytest.raises(UserError, match="omit the context, which is for language models"):
        modhifi.load_model("digits-resnet20", context=8)
    with pytest.raises(UserError, match="only language models"):
        modhifi.load_model("digits-resnet20", device="map")
    tokenizer = (folder / "tokenizer.json").read_bytes()
    (folder / "tokenizer.json").write_bytes(tokenizer[:100])
    with pytest.raises(UserError, match=r"the tokenizer of .* cannot be opened"):
        modhifi.load_model(f"hf:{folder}", device="cpu")
    for file in folder.glob("*token*"):
        file.unlink()
    assert modhifi.load_model(f"hf:{folder}", device="cpu").tokenizer is None
    (folder / "model.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match="weight files have 2 bytes; download it again"):
        modhifi.load_model(f"hf:{folder}")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    with pytest.raises(UserError, match="is a bert model; choose one of llama"):
        modhifi.load_model(f"hf:{folder}")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match="pip install transformers accelerate"):
        modhifi.load_model(f"hf:{folder}")


def test_weights_on_the_disk_are_read_and_analysed(language: Make, prose: Data, tmp_path: Path) -> None:
    from accelerate import disk_offload

    model = language()
    expected = modhifi.analyze(model, prose, 24, constants=["directional"], constant_samples=2)
    away = language()
    disk_offload(away.module.lm, offload_dir=str(tmp_path / "disk"), execution_device=torch.device("cpu"))
    assert all(value.is_meta for value in away.module.parameters())
    assert fingerprint(away.module) == model.fingerprint
    assert away.device == torch.device("cpu")
    found = modhifi.analyze(away, prose, 24, constants=["none"], out=tmp_path / "study")
    for name, stats in expected.layers.items():
        assert torch.allclose(found.layers[name].moments.second, stats.moments.second, rtol=1e-4, atol=1e-6)
        assert torch.equal(found.layers[name].weight, stats.weight)
    keep = {group.name: list(range(0, group.size, 2)) for group in expected.groups}
    rows = torch.cat([rows for rows, _ in windowed(prose.take(24), model).batches(model.input)])
    edits = [sequential_blocks(expected, keep, one.module, rows.split(7), 24)[0] for one in (model, away)]
    for name, edit in edits[0].items():
        assert torch.allclose(edits[1][name].weight, edit.weight, rtol=1e-3, atol=1e-5)
    plan = modhifi.prune(expected, params=0.95, compensate="full")
    with pytest.raises(UserError, match="are offloaded; load the model on one device"):
        modhifi.apply(plan, away)


def test_weights_on_the_disk_are_read_once_a_pass(
    language: Make, prose: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate import disk_offload
    from accelerate.utils import OffloadedWeightsLoader

    away = language()
    disk_offload(away.module.lm, offload_dir=str(tmp_path / "disk"), execution_device=torch.device("cpu"))
    read: list[str] = []
    usual = OffloadedWeightsLoader.__getitem__

    def counted(self: OffloadedWeightsLoader, key: str) -> torch.Tensor:
        read.append(key)
        return usual(self, key)

    monkeypatch.setattr(OffloadedWeightsLoader, "__getitem__", counted)
    found = []
    for size in (24, 2):
        read.clear()
        modhifi.analyze(away, prose, 24, constants=["none"], batch_size=size)
        found.append(sum(key.endswith("layers.1.mlp.gate_proj.weight") for key in read))
    assert found[0] == found[1] > 0


def test_a_spread_gpt2_is_refused(language: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate import dispatch_model
    from transformers import AutoModelForCausalLM

    folder = saved(language("gpt2"), tmp_path / "it")
    usual = AutoModelForCausalLM.from_pretrained

    def spread(where: str, **options: object) -> object:
        lm, report = usual(where, **{name: value for name, value in options.items() if name != "device_map"})
        places = {"transformer.wte": "cpu", "transformer.wpe": "cpu", "transformer.ln_f": "cpu", "lm_head": "cpu"}
        places |= {"transformer.h.0": "cpu", "transformer.h.1": "disk"}
        return dispatch_model(lm, places, offload_dir=str(tmp_path / "disk"), main_device="cpu"), report

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", spread)
    with pytest.raises(UserError, match="GPT-2 models cannot be spread over devices"):
        modhifi.load_model(f"hf:{folder}", device="map")


def test_an_analysis_that_fails_leaves_nothing(language: Make, prose: Data, tmp_path: Path) -> None:
    def stopped(done: int, total: int, what: str) -> None:
        if what.startswith("collecting") and done:
            raise Cancelled

    with pytest.raises(Cancelled):
        modhifi.analyze(language(), prose, 24, constants=["none"], out=tmp_path / "study", progress=stopped)
    assert list(tmp_path.iterdir()) == []
