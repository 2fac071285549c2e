"""The language model's recipe gives a folder that opens, and the shipped one is what its card says."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch

import modhifi
from assets import text_llama
from modhifi.evaluation import read

ASSETS = Path(__file__).resolve().parents[2] / "assets"


def test_one_step_gives_a_folder_that_opens(tmp_path: Path) -> None:
    verses = [
        f"Ge{chapter}:{verse} And word {verse} of {chapter}." for chapter in range(1, 41) for verse in range(1, 9)
    ]
    (tmp_path / "verses.txt").write_text("\n".join(verses))
    before = torch.get_rng_state()
    card = text_llama.make(tmp_path / "verses.txt", tmp_path, seed=1, steps=1)
    assert torch.equal(before, torch.get_rng_state())
    folder = tmp_path / "text-llama"
    assert json.loads((folder / "card.json").read_text()) == card
    model = modhifi.load_model(f"hf:{folder}", device="cpu")
    assert sum(value.numel() for value in model.module.parameters()) == card["params"]
    held = (folder / "test.txt").read_text()
    assert held == "".join(text_llama.chapters("\n".join(verses))[i] for i in (19, 39))
    assert "Ge" not in held
    assert not set(held.splitlines()) - {""} & set((folder / "calibration.txt").read_text().splitlines())


def test_the_tokenizer_is_of_bytes() -> None:
    tokenizer = text_llama.byte_tokenizer()
    text = bytes(range(256)).decode("latin-1") + "  é\n\n漢"
    assert tokenizer(text)["input_ids"] == list(text.encode())
    assert tokenizer.decode(list(text.encode())) == text


def test_unigram_perplexity() -> None:
    # 256 bytes with one more count each; "a" stands twice in four.
    expected = math.exp(-(math.log(3 / 260) + math.log(1 / 260)) / 2)
    assert math.isclose(text_llama.unigram_perplexity("az", "aabc"), expected)


def test_the_shipped_model_is_small_and_far_better_than_counting_letters() -> None:
    card = json.loads((ASSETS / "text-llama" / "card.json").read_text())
    assert 2e6 <= card["params"] <= 6e6
    assert sum(path.stat().st_size for path in (ASSETS / "text-llama").iterdir()) < 6.5e6
    model = modhifi.load_model("text-llama", device="cpu")
    assert sum(value.numel() for value in model.module.parameters()) == card["params"]
    found = read(model, modhifi.load_data("text:kjv", split="test", samples=12))
    assert found.perplexity < card["unigram_perplexity"] / 5
