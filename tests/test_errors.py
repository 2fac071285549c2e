"""One line for whatever lies outside the program, and nothing for a fault of ours."""

import ast
import errno
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors import SafetensorError

from modhifi import UserError
from modhifi.errors import first_fault, user_error
from modhifi.specs import DataRef

ROOT = Path(__file__).resolve().parents[1]


@given(st.text(max_size=2000))
def test_a_message_is_one_printable_line(message: str) -> None:
    said = str(UserError(message))
    assert len(said) <= 300
    assert said.isprintable()
    said.encode()


def test_of_a_long_message_the_end_stays() -> None:
    said = str(UserError(f"the file {'x' * 5000} is damaged; download it again"))
    assert said.startswith("the file xxx")
    assert said.endswith("x is damaged; download it again")
    assert len(said) == 300
    assert str(UserError("a\x1b[31mred\x07 \u202e name\ud800")) == r"a\x1b[31mred\x07 \u202e name\ud800"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/a/b"), "/a/b: no space left on the disk; free space"),
        (PermissionError(errno.EACCES, "Permission denied", "/a"), "/a: permission denied; check its permissions"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 400), "use a shorter name"),
        (OSError("something odd"), "something odd; check the path"),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), "free space"),
        (RuntimeError("[enforce fail at inline_container.cc:626] . unexpected pos"), "check the path"),
        (MemoryError(), "use fewer samples"),
        (torch.OutOfMemoryError("CUDA out of memory"), "use fewer samples"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "fewer samples"),
        (UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed"), "rename the file"),
        (RecursionError("maximum recursion depth exceeded"), "fewer levels"),
        (OverflowError("Python int too large to convert to C long"), "use a smaller one"),
        (torch.linalg.LinAlgError("the leading minor of order 1 is not positive"), "finite and not all zero"),
        (np.linalg.LinAlgError("Singular matrix"), "finite and not all zero"),
        (RuntimeError("Could not determine home directory."), "write the path in full"),
        (UserError("no; yes"), "no; yes"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_lies_outside(error: Exception, line: str) -> None:
    said = user_error(error)
    assert said is not None
    assert line in str(said)
    assert len(str(said)) <= 300


@pytest.mark.parametrize("error", [ZeroDivisionError(), KeyError("a"), AssertionError(), RuntimeError("size mismatch")])
def test_a_fault_of_ours_is_none_of_these(error: Exception) -> None:
    assert user_error(error) is None


def test_the_first_fault_of_a_model() -> None:
    with pytest.raises(ValidationError) as caught:
        DataRef.model_validate({"spec": 1})
    assert first_fault(caught.value) == "spec: Input should be a valid string"
    assert first_fault(ValueError("two\nlines")) == "two lines"


def test_every_message_says_how_to_mend_it() -> None:
    """What is wrong; how to fix it. A message without a second half must itself be a rule that can be followed."""
    rules = re.compile(
        r"\b(must|choose|set|name|needs?|saved as|above|keeps|training needs)\b|_similar|--|\{(named|error)\}|first_fault"
    )
    silent = []
    for room in ("modhifi", "app"):
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "UserError":
                    message = ast.unparse(node.args[0])
                    passed_on = not any(
                        isinstance(part, ast.Constant) and str(part.value).count(" ") > 1 for part in ast.walk(node)
                    )
                    if ";" not in message and not rules.search(message) and not passed_on:
                        silent.append(f"{path.relative_to(ROOT)}:{node.lineno}: {message}")
    assert silent == []
