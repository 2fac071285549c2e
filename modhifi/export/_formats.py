"""The file formats for modified networks. Files that can be run are checked once against the network before they are kept.

A new format is one new file that calls `register_format`, and one line that imports it in this room's ``__init__``.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from ..errors import UserError
from ..models import Model, answers_of, in_own_form
from ..registry import Registry
from ..specs import ArraySpec, InputSpec, TokenSpec

__all__ = ["Format", "formats", "register_format"]

_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Format:
    """``write(net, model, target)`` writes ``net``, the CPU copy of ``model``'s network in evaluation mode, to ``target``; it
    raises `UserError` if the format cannot express the network.
    """

    name: str
    title: str
    write: Callable[[nn.Module, Model, Path], None]
    suffix: str | None = None
    """Suffix of the file, by default ``name``."""

    @property
    def file(self) -> str:
        """The file's name in the export folder."""
        return f"model.{self.suffix or self.name}"


_FORMATS: Registry[Format] = Registry("format")


def register_format(made: Format) -> Format:
    """Makes a format known to `export`, the command line and the dashboard. Raises ValueError if the name is taken."""
    return _FORMATS.register(made.name, made)


def formats() -> dict[str, Format]:
    """All registered formats by name; ``safetensors`` is always written."""
    return dict(_FORMATS)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences torch's exporters, which print to standard output and warn about their own internals."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class _Flat(nn.Module):
    """A network as the exported files have it: a tensor for each input, and its answer, or the tensors of its output in a row."""

    def __init__(self, net: nn.Module, given: InputSpec | ArraySpec) -> None:
        super().__init__()
        self.net = in_own_form(net)
        self.names = (
            [(one.name, one.keyword) for one in given.inputs] if isinstance(given, ArraySpec) else [("", False)]
        )

    def forward(self, *values: Tensor) -> Tensor | tuple[Tensor, ...]:
        both = list(zip(self.names, values, strict=True))
        named = {name: value for (name, keyword), value in both if keyword}
        found = answers_of(self.net(*(v for (_, keyword), v in both if not keyword), **named))
        return found[""] if "" in found else tuple(found.values())


@dataclass(frozen=True)
class _Traced:
    """What the exporters need, on the CPU: ``net`` in single precision where ``single`` was asked for, and its names."""

    net: nn.Module
    inputs: list[str]
    outputs: list[str]
    given: InputSpec | ArraySpec

    @classmethod
    def of(cls, net: nn.Module, model: Model, single: bool = False) -> _Traced:
        given = model.input
        assert not isinstance(given, TokenSpec)
        flat = _Flat(net, given)
        if single:  # runtimes lack half precision on the CPU, and single precision holds the same weights
            flat = copy.deepcopy(flat).float()
        if isinstance(given, InputSpec):
            return cls(flat, ["images"], ["logits"], given)
        traced = cls(flat, [one.name for one in given.inputs], [], given)
        positional = [v for one, v in zip(given.inputs, traced.example(2), strict=True) if not one.keyword]
        named = {one.name: v for one, v in zip(given.inputs, traced.example(2), strict=True) if one.keyword}
        with torch.inference_mode():
            found = answers_of(flat.net(*positional, **named))
        outputs = [(name or "answer").replace(".", "_") for name in found]
        # A network may call its output as it calls an input.
        outputs = [f"{name}_out" if name in traced.inputs else name for name in outputs]
        return cls(flat, traced.inputs, outputs, given)

    def example(self, batch: int) -> tuple[Tensor, ...]:
        dtype = next((weight.dtype for weight in self.net.parameters() if weight.is_floating_point()), torch.float32)
        rows = self.given.example(batch)
        values = self.given.unpack(rows) if isinstance(self.given, ArraySpec) else [rows]
        return tuple(value.to(dtype) if value.is_floating_point() else value for value in values)

    @property
    def shapes(self) -> dict[str, Any]:
        batch = torch.export.Dim("batch")
        return {"values": tuple({0: batch} for _ in self.inputs)}

    def check(self, run: Callable[[tuple[Tensor, ...]], Any], model: Model, what: str) -> None:
        """Compares what ``run`` gives with the network for batches of several sizes."""
        for batch in (2, 1, 3):
            example = self.example(batch)
            try:
                answers = run(example)
            except Exception as error:
                if batch == 2:
                    raise
                raise UserError(
                    f"{what} of {model.spec} takes only batches of the size it was traced with; use x.shape[0] in its"
                    " forward instead of numbers that depend on the batch, or omit this format"
                ) from error
            with torch.inference_mode():
                own = self.net(*example)
            both = zip(_listed(answers), _listed(own), strict=True)
            for answer, expected in both:
                _compare(torch.as_tensor(answer), expected, what)


def _listed(answers: Any) -> Sequence[Any]:
    return [answers] if isinstance(answers, Tensor) else answers


def _compare(answer: Tensor, own: Tensor, what: str) -> None:
    if answer.shape != own.shape:
        raise RuntimeError(
            f"the {what} file gives {tuple(answer.shape)} instead of {tuple(own.shape)}; it was not kept"
        )
    if not own.numel():
        return
    difference = float((answer.double() - own.double()).abs().max())
    if not difference <= _TOLERANCE * max(1.0, float(own.double().abs().max())):
        raise RuntimeError(
            f"the output of the {what} file differs from the network's by {difference:.3g}; the file was not kept"
        )


def _write_onnx(net: nn.Module, model: Model, target: Path) -> None:
    import onnxruntime

    if next(net.parameters()).dtype == torch.float64:
        raise UserError(f"{model.spec} computes in float64, for which ONNX has no convolution; omit onnx")
    traced = _Traced.of(net, model, single=True)
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                traced.net,
                traced.example(2),  # torch.export would treat a batch size of 1 as a constant
                input_names=traced.inputs,
                output_names=traced.outputs,
                dynamic_shapes=traced.shapes,
                dynamo=True,
            )
            assert program is not None
            program.save(str(target), external_data=False)
    except torch.onnx.errors.OnnxExporterError as error:
        raise UserError(f"{model.spec} cannot be written as ONNX ({str(error).splitlines()[0]}); omit onnx") from error
    session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    taken = {one.name for one in session.get_inputs()}  # an input that nothing reads is left out

    def run(example: tuple[Tensor, ...]) -> Sequence[Any]:
        values = {name: value.numpy() for name, value in zip(traced.inputs, example, strict=True) if name in taken}
        return [np.asarray(answer) for answer in session.run(traced.outputs, values)]

    traced.check(run, model, "ONNX")


def _write_pt2(net: nn.Module, model: Model, target: Path) -> None:
    traced = _Traced.of(net, model)
    try:
        with _quiet(), torch.no_grad():
            program = torch.export.export(traced.net, traced.example(2), dynamic_shapes=traced.shapes)
            torch.export.save(program, target)
    except (torch._dynamo.exc.TorchDynamoException, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{model.spec} cannot be written by torch.export ({reason}); omit pt2") from error
    with _quiet(), torch.no_grad():
        again = torch.export.load(target).module()
        traced.check(lambda example: again(*example), model, "torch.export")


def _write_safetensors(net: nn.Module, model: Model, target: Path) -> None:  # noqa: ARG001 - only the network is needed
    state = {key: value.contiguous().clone() for key, value in net.state_dict().items()}
    safetensors.torch.save_file(state, target)


register_format(Format("safetensors", "safetensors", _write_safetensors))
register_format(Format("onnx", "ONNX", _write_onnx))
register_format(Format("pt2", "torch.export", _write_pt2))
