"""Text becomes windows of a model's tokens; what is no text is told from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import modhifi
from modhifi import Data, Model, UserError
from modhifi.data import tokens_of, windowed

Make = Callable[..., Model]


def test_windows_follow_one_another(language: Make, tmp_path: Path) -> None:
    path = tmp_path / "some.txt"
    path.write_text("Größe " * 10, encoding="utf-8")
    model = language(context=16)
    data = modhifi.load_data("text:some.txt", tmp_path)
    assert data.spec == f"text:{path}"
    cut = windowed(data, model)
    whole = ("Größe " * 10).encode()
    assert tokens_of(data, model).tolist() == list(whole)
    assert len(cut) == len(whole) // 16
    rows = torch.cat([rows for rows, _ in cut.batches(model.input, 3)])
    assert rows.flatten().tolist() == list(whole[: len(cut) * 16])
    assert windowed(cut, model) is cut


def test_draws_are_of_windows_and_repeat(language: Make, prose: Data) -> None:
    model = language()
    drawn = windowed(prose.take(9, seed=3), model)
    assert len(drawn) == 9
    assert drawn.ref == windowed(prose, model).take(9, seed=3).ref
    assert drawn.ref != windowed(prose.take(9, seed=4), model).ref
    assert drawn.ref.fingerprint != windowed(prose.take(9, seed=3), language(context=8)).ref.fingerprint
    rows = torch.cat([rows for rows, _ in drawn.batches(model.input)])
    everything = torch.cat([rows for rows, _ in windowed(prose, model).batches(model.input)])
    assert torch.equal(rows, everything[list(drawn.order)])


def test_what_does_not_go_together(language: Make, prose: Data, digits_model: Model, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not text"):
        windowed(modhifi.load_data("digits"), language())
    with pytest.raises(UserError, match="text is for language models"):
        windowed(prose, digits_model)
    with pytest.raises(UserError, match="text is for language models"):
        modhifi.evaluate(digits_model, prose)
    (tmp_path / "short.txt").write_text("short")
    with pytest.raises(UserError, match="5 tokens, less than one window of 16"):
        windowed(modhifi.load_data(f"text:{tmp_path / 'short.txt'}"), language())
    (tmp_path / "latin.txt").write_bytes(b"\xff\xfe\xfa")
    for name, words in (("latin.txt", "cannot be read"), ("none.txt", "does not exist")):
        with pytest.raises(UserError, match=words):
            modhifi.load_data(f"text:{tmp_path / name}")
    model = language()
    model.tokenizer = None
    with pytest.raises(UserError, match="no tokenizer"):
        windowed(prose, model)
    with pytest.raises(UserError, match="no split 'train'"):
        modhifi.load_data("text:kjv", split="train")


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfIn the beginning")
    assert modhifi.load_data(f"text:{tmp_path / 'a.txt'}").text == "In the beginning"


def test_only_regular_files_of_a_limited_size(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a regular file"):
        modhifi.load_data("text:/dev/zero")
    with pytest.raises(UserError, match="is a folder, not the text"):
        modhifi.load_data(f"text:{tmp_path}")
    with (tmp_path / "large.txt").open("wb") as file:
        file.truncate((256 << 20) + 1)
    with pytest.raises(UserError, match="too large for the text: 256 MiB, the limit is 256 MiB"):
        modhifi.load_data(f"text:{tmp_path / 'large.txt'}")
