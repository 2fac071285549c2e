"""The file formats for modified networks. Files that can be run are checked once against the network before they are kept.

A new format is one new file that calls `register_format`, and one line that imports it in this room's ``__init__``.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import nn

from ..errors import UserError
from ..models import Model
from ..registry import Registry

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


def _example(model: Model) -> torch.Tensor:
    return model.example(2).cpu()  # torch.export would treat a batch size of 1 as a constant


def _check(answers: torch.Tensor, net: nn.Module, example: torch.Tensor, what: str) -> None:
    with torch.inference_mode():
        own = net(example)
    difference = float((answers - own).abs().max())
    if not difference <= _TOLERANCE * max(1.0, float(own.abs().max())):
        raise RuntimeError(
            f"the output of the {what} file differs from the network's by {difference:.3g}; the file was not kept"
        )


def _write_onnx(net: nn.Module, model: Model, target: Path) -> None:
    import onnxruntime

    example = _example(model)
    dtype = next(net.parameters()).dtype
    if dtype == torch.float64:
        raise UserError(f"{model.spec} computes in float64, for which ONNX has no convolution; omit onnx")
    if dtype != torch.float32:  # runtimes lack half precision on the CPU, and single precision holds the same weights
        net = copy.deepcopy(net).float()
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                net,
                (example,),
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                dynamo=True,
            )
            assert program is not None
            program.save(str(target), external_data=False)
    except torch.onnx.errors.OnnxExporterError as error:
        raise UserError(f"{model.spec} cannot be written as ONNX ({str(error).splitlines()[0]}); omit onnx") from error
    session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": example.numpy()})
    _check(torch.from_numpy(np.asarray(logits)), net, example, "ONNX")


def _write_pt2(net: nn.Module, model: Model, target: Path) -> None:
    example = _example(model)
    try:
        with _quiet(), torch.no_grad():
            program = torch.export.export(net, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
            torch.export.save(program, target)
    except (torch._dynamo.exc.TorchDynamoException, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{model.spec} cannot be written by torch.export ({reason}); omit pt2") from error
    with _quiet(), torch.no_grad():
        _check(torch.export.load(target).module()(example), net, example, "torch.export")


def _write_safetensors(net: nn.Module, model: Model, target: Path) -> None:  # noqa: ARG001 - only the network is needed
    state = {key: value.contiguous().clone() for key, value in net.state_dict().items()}
    safetensors.torch.save_file(state, target)


register_format(Format("safetensors", "safetensors", _write_safetensors))
register_format(Format("onnx", "ONNX", _write_onnx))
register_format(Format("pt2", "torch.export", _write_pt2))
