"""Mutations of files, by format: each returns other content and what it did, and depends on its random generator alone."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

Files = dict[str, bytes]
Mutated = tuple[bytes, str]

_DEEP = "\u2063deep\u2063"
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 255, 2**31, 2**63, -(2**63) - 1, 2**64, 10**30, 10**400),
    *(0.0, -0.0, 0.5, -1.5, 1e-320, 1e308, float("nan"), float("inf"), -float("inf")),
    *("", " ", "a", "a\nb", "../../etc/passwd", "/dev/zero", "\x00", "\ud800", "\u202e", "x" * 5000, "%2F", "1", "nan"),
    *([], {}, [[]], [None], [-1], [0, 0], [2**63], ["a", "a"], {"": 0}, {"a": {"b": []}}, [1.5, "x", None]),
    _DEEP,
)


def flip(content: bytes, rng: random.Random) -> Mutated:
    """A few bytes or one piece changed, removed, repeated or cut off."""
    changed = bytearray(content)
    kind = rng.choice(["flip", "flip", "cut", "drop", "repeat", "zero", "empty"])
    at = rng.randrange(max(1, len(changed)))
    size = rng.choice([1, 2, 8, 64, 4096])
    if kind == "flip":
        for _ in range(rng.choice([1, 1, 4, 32])):
            if changed:
                changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del changed[at:]
    elif kind == "drop":
        del changed[at : at + size]
    elif kind == "repeat":
        changed[at:at] = changed[at : at + size] * rng.choice([1, 2, 100])
    elif kind == "zero":
        changed[at : at + size] = bytes(len(changed[at : at + size]))
    else:
        changed.clear()
    return bytes(changed), f"{kind} at {at} ({size})"


def _places(value: Any) -> list[tuple[Any, ...]]:
    """The paths to all parts of a parsed JSON, which may be nested more deeply than Python calls may be."""
    found, waiting = [], [((), value)]
    while waiting:
        path, part = waiting.pop(0)
        found.append(path)
        items = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
        # Far down, one place is like another.
        waiting += [((*path, key), below) for key, below in items] if len(path) < 100 else []
    return found


def values(value: Any, rng: random.Random) -> tuple[Any, str]:
    """A parsed JSON with one to three places replaced, removed, renamed, repeated or exchanged."""
    value = json.loads(json.dumps(value))
    done = []
    for _ in range(rng.choice([1, 1, 2, 3])):
        places = [place for place in _places(value) if place]
        if not places:
            return rng.choice(VALUES), "everything"
        place = rng.choice(places)
        parent = value
        for key in place[:-1]:
            parent = parent[key]
        key, kind = place[-1], rng.choice(["set", "set", "set", "tweak", "remove", "add", "rename", "swap"])
        old = parent[key]
        if kind == "tweak" and isinstance(old, int | float):
            parent[key] = rng.choice([old + 1, old - 1, -old, old * 1000, old / 3, str(old)])
        elif kind == "tweak" and isinstance(old, list) and old:
            parent[key] = rng.choice([old[:-1], old + old[:1], old[::-1], old * 3])
        elif kind == "remove":
            del parent[key]
        elif kind == "add" and isinstance(parent, dict):
            parent[rng.choice(["extra", "", "\ud800", "schema_version"])] = rng.choice(VALUES)
        elif kind == "rename" and isinstance(parent, dict):
            parent[f"{key}x"] = parent.pop(key)
        elif kind == "swap":
            other = rng.choice(places)
            source: Any = value
            try:
                for step in other:
                    source = source[step]
            except (KeyError, IndexError, TypeError):
                continue
            parent[key] = json.loads(json.dumps(source))
        else:
            parent[key] = rng.choice(VALUES)
        done.append(
            f"{kind} {'/'.join(map(str, place))}={str(parent.get(key, '') if isinstance(parent, dict) else '')[:40]!r}"
        )
    return value, "; ".join(done)


def text_of(value: Any) -> bytes:
    deep = "[" * 100_000 + "]" * 100_000
    return json.dumps(value).replace(json.dumps(_DEEP), deep).encode()


def json_file(content: bytes, rng: random.Random) -> Mutated:
    if rng.random() < 0.2:
        return flip(content, rng)
    if rng.random() < 0.05:
        return b"\xef\xbb\xbf" + content, "byte order mark"
    value, what = values(json.loads(content), rng)
    return text_of(value), what


def tensors(state: dict[str, Tensor], rng: random.Random) -> tuple[dict[str, Tensor], str]:
    """Some tensors with another shape, type, name or content."""
    state, done = dict(state), []
    for _ in range(rng.choice([1, 1, 2])):
        if not state:
            break
        name = rng.choice(sorted(state))
        value = state[name]
        kind = rng.choice(sorted(_TENSORS))
        if kind == "rename":
            state[rng.choice(["", "x", f"module.{name}", f"{name}.x", "../a", "a/b"])] = state.pop(name)
        elif kind == "drop":
            del state[name]
        elif kind == "exchange":
            state[name] = state[rng.choice(sorted(state))].clone()
        else:
            with contextlib.suppress(RuntimeError):  # an earlier change left a shape that this one cannot take
                state[name] = _TENSORS[kind](value).contiguous().clone()
        done.append(f"{kind} {name}")
    return state, "; ".join(done)


def _filled(number: float) -> Callable[[Tensor], Tensor]:
    return lambda value: torch.full_like(value, number) if value.is_floating_point() else value


def _typed(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda value: value.to(dtype)


_TENSORS: dict[str, Callable[[Tensor], Tensor]] = {
    **{kind: lambda value: value for kind in ("rename", "drop", "exchange")},
    "flat": lambda value: value.reshape(-1),
    "scalar": lambda value: value.reshape(-1)[:1].reshape(()),
    "empty": lambda value: value.reshape(-1)[:0],
    "taller": lambda value: torch.cat([value.reshape(len(value), -1) if value.ndim else value[None]] * 2),
    "shorter": lambda value: value[:-1] if value.ndim else value,
    "turned": lambda value: value.transpose(0, -1) if value.ndim > 1 else value,
    "deeper": lambda value: value[None],
    "no rows": lambda value: value.new_zeros((10**9, 0)),
    **{f"{n}": _filled(n) for n in (0.0, -1.0, 1e-30, 1e30, float("nan"), float("inf"))},
    **{
        str(dtype): _typed(dtype)
        for dtype in (
            torch.float64,
            torch.float16,
            torch.bfloat16,
            torch.int64,
            torch.uint8,
            torch.bool,
            torch.complex64,
        )
    },
}


def safetensors_file(content: bytes, rng: random.Random) -> Mutated:
    kind = rng.random()
    if kind < 0.2:
        return flip(content, rng)
    if kind < 0.4:
        size = struct.unpack("<Q", content[:8])[0]
        header, what = values(json.loads(content[8 : 8 + size]), rng)
        text = text_of(header)
        return struct.pack("<Q", rng.choice([len(text), len(text), size, 2**63])) + text + content[8 + size :], what
    state, what = tensors(safetensors.torch.load(content), rng)
    return safetensors.torch.save(state, {"format": "pt"}), what


def pickle_file(content: bytes, rng: random.Random) -> Mutated:
    kind = rng.random()
    if kind < 0.25:
        return flip(content, rng)
    if kind < 0.4:
        return zip_file(content, rng)
    state, what = tensors(torch.load(io.BytesIO(content), weights_only=True), rng)
    wrapped: Any = state
    for _ in range(rng.choice([0, 0, 1, 3, 20])):
        wrapped = {rng.choice(["state_dict", "model", "other"]): wrapped, "epoch": 3}
    odd = rng.choice(["none"] * 5 + ["itself", "expanded", "sparse", "meta", "object", "key", "list"])
    if odd == "itself":
        wrapped = {"state_dict": wrapped}
        wrapped["state_dict"] = wrapped
    elif odd == "expanded":
        state[next(iter(state), "x")] = torch.zeros(1).expand(10**9, 4)
    elif odd == "sparse":
        state[next(iter(state), "x")] = torch.eye(4).to_sparse()
    elif odd == "meta":
        state[next(iter(state), "x")] = torch.zeros(10**6, 10**6, device="meta")
    elif odd == "object":
        state["x"] = rng.choice([1, "a", None, [1], torch.nn.Parameter(torch.zeros(2))])  # type: ignore[assignment]
    elif odd == "key":
        state[3] = torch.zeros(2)  # type: ignore[index]
    elif odd == "list":
        wrapped = [wrapped]
    buffer = io.BytesIO()
    torch.save(wrapped, buffer, _use_new_zipfile_serialization=rng.random() < 0.8)
    if rng.random() < 0.05:
        return pickle.dumps({"a": 1}), "a plain pickle"
    return buffer.getvalue(), f"{what}; {odd}"


def zip_file(content: bytes, rng: random.Random, inner: Callable[[bytes, random.Random], Mutated] = flip) -> Mutated:
    kind = rng.choice(["flip", "name", "inner", "flag", "crc", "size", "drop", "method", "twice", "more"])
    if kind == "flip":
        return flip(content, rng)
    if kind in ("flag", "crc", "size", "method"):
        changed = bytearray(content)
        at = {"flag": 8, "method": 10, "crc": 16, "size": rng.choice([20, 24])}[kind]
        found = [i for i in range(len(changed) - 46) if changed[i : i + 4] == b"PK\x01\x02"]
        if found:
            place = rng.choice(found) + at
            changed[place : place + 2] = rng.choice([b"\x01\x00", b"\xff\xff", b"\x0e\x00", b"\x00\x80"])
        return bytes(changed), f"zip {kind}"
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    at = rng.randrange(len(members))
    name, body = members[at]
    what = f"zip {kind} {name}"
    if kind == "name":
        name = rng.choice(
            ["../x", "/x", "a\\..\\b", "C:x", name + "/y.png", "x" * 400 + ".png", "\u202e.png", "", ".", "a//b.png"]
        )
    elif kind == "inner":
        body, how = inner(body, rng)
        what += f": {how}"
    members[at] = (name, body)
    if kind == "drop":
        del members[at]
    elif kind == "twice":
        members.append(rng.choice(members))
    elif kind == "more":
        members.append(
            (rng.choice(["extra.json", "cat/x.png", "a/b/c/x.png", "x.png"]), rng.choice([b"", b"{}", body]))
        )
    buffer = io.BytesIO()
    with zipfile.ZipFile(
        buffer, "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
    ) as archive:
        for name, body in members:
            archive.writestr(name or "empty", body)
    return buffer.getvalue(), what


def text_file(content: bytes, rng: random.Random) -> Mutated:
    odd = (
        b"\xef\xbb\xbf",
        b"\x00",
        b"\xff\xfe",
        b"\n",
        b"\r\n",
        b" ",
        b"\xc2\x85",
        b"\xe2\x80\xae",
        b"%2F",
        b"x" * 100_000,
    )
    lines = content.split(b"\n")
    kind = rng.choice(["insert", "line", "double", "drop", "flip"])
    if kind == "flip":
        return flip(content, rng)
    at = rng.randrange(len(lines))
    if kind == "insert":
        lines[at] = rng.choice(odd) + lines[at]
    elif kind == "line":
        lines[at] = rng.choice(odd)
    elif kind == "double":
        lines.insert(at, lines[at])
    else:
        del lines[at]
    return b"\n".join(lines), f"{kind} line {at}"


MUTATIONS: dict[str, Callable[[bytes, random.Random], Mutated]] = {
    ".json": json_file,
    ".safetensors": safetensors_file,
    ".pt": pickle_file,
    ".zip": zip_file,
    ".txt": text_file,
    ".png": flip,
    ".parquet": flip,
    ".arrow": flip,
    ".npy": flip,
    ".npz": lambda content, rng: flip(content, rng) if rng.random() < 0.5 else zip_file(content, rng),
}


def mutant(files: Files, rng: random.Random, spared: tuple[str, ...] = ()) -> tuple[Files, str]:
    """``files`` with one of them mutated or missing. In most mutants the sha256 that other files record is corrected, because
    otherwise nothing but its check would be tried.
    """
    name = rng.choice([name for name in sorted(files) if name not in spared])
    if len(files) > 1 and rng.random() < 0.03:
        return {other: content for other, content in files.items() if other != name}, f"without {name}"
    content, what = MUTATIONS[name[name.rindex(".") :]](files[name], rng)
    changed = files | {name: content}
    if rng.random() < 0.9:
        old, new = (hashlib.sha256(body).hexdigest().encode() for body in (files[name], content))
        changed = {
            other: body.replace(old, new) if other.endswith(".json") else body for other, body in changed.items()
        }
    return changed, f"{name}: {what}"
