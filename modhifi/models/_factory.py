"""Networks that a person's own Python code builds: ``FILE.py:FACTORY`` and ``package.module:FACTORY``.

Such a spec runs code. On the command line and in Python that is the caller's own; a server for others restricts it to one
folder, or forbids it, with `restrict_factories`.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from ..errors import UserError
from ._libraries import seeded

__all__ = ["IN_MEMORY", "Made", "is_factory", "make", "restrict_factories"]

_FILE = re.compile(r"(?P<where>.+\.py):(?P<name>[^\W\d]\w*)")
_MODULE = re.compile(r"(?P<where>[^\W\d]\w*(\.[^\W\d]\w*)*):(?P<name>[^\W\d]\w*)")
IN_MEMORY = "python:"
"""Begins the spec of a network that `modhifi.wrap` was given: nothing can load it again."""
# Other kinds of specs have this form too.
_TAKEN = ("timm", "torchvision", "hf", "text", IN_MEMORY.removesuffix(":"))

_folders: tuple[Path, ...] | None = None


@dataclass(frozen=True)
class Made:
    """``module`` as the factory returned it, its ``examples`` if there were any, the spec with an absolute path, and the sha256
    of the file that the factory is in.
    """

    module: nn.Module
    examples: Any
    spec: str
    source: str


def restrict_factories(*folders: str | Path) -> None:
    """From now on, this process runs only factories in files inside these folders; none at all without any. Relative paths in
    specs are then relative to the first folder that has the file.
    """
    global _folders
    _folders = tuple(Path(folder).expanduser().resolve() for folder in folders)


def is_factory(spec: str) -> bool:
    """Whether ``spec`` has the form of a factory."""
    where = _MODULE.fullmatch(spec)
    return bool(_FILE.fullmatch(spec)) or (where is not None and where["where"] not in _TAKEN)


def make(spec: str, source: str | None = None) -> Made:
    """Runs the factory of ``spec``, with torch's random numbers from seed 0, so that random weights are the same every time.

    ``source``: the sha256 that its file must have, for a spec out of a plan, study or export; it must then name the file by an
    absolute path, since a relative one would run what lies beside a file from somebody else. Raises `UserError` if the file or
    the factory is missing, the file has changed, something in it raises, or it returns no network.
    """
    from_file = _FILE.fullmatch(spec)
    match = from_file or _MODULE.fullmatch(spec)
    assert match is not None
    name, path = match["name"], None
    if from_file:
        if source is not None and not Path(match["where"]).is_absolute():
            raise UserError(f"{spec} is a relative path to Python code, which does not run; analyze the network again")
        path = _path(spec, match["where"])
        spec = f"{path}:{name}"
    elif _folders is not None:
        raise _forbidden(spec)
    with _importable(Path.cwd() if path is None else path.parent):
        file = path or _guarded(spec, "import", lambda: _file_of(match["where"], spec))
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        if source is not None and digest != source:
            raise UserError(f"{file} has changed since {name} was used from it; restore it, or analyze the new one")
        module = _guarded(spec, "import", lambda: _imported(match["where"], path))
        factory = getattr(module, name, None)
        if not callable(factory):
            what = "has no" if factory is None else "is not callable:"
            near = ", ".join(key for key, value in vars(module).items() if _is_own(value, module)) or "none"
            raise UserError(f"{match['where']} {what} {name}; its functions and classes: {near}")
        _check_arguments(factory, spec)
        with seeded(0):
            found = _guarded(spec, "factory", factory)
    examples = None
    if isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], nn.Module):
        found, examples = found
    if not isinstance(found, nn.Module):
        what = "nothing" if found is None else f"a {type(found).__name__}"
        raise UserError(
            f"{spec} returned {what}; it must return a torch.nn.Module, or a tuple of it and example inputs"
        )
    return Made(found, examples, spec, digest)


def _path(spec: str, where: str) -> Path:
    given = Path(where).expanduser()
    found = [(base / given).resolve() for base in ([Path.cwd()] if _folders is None else _folders)]
    if _folders is not None:
        found = [path for path in found if any(path.is_relative_to(folder) for folder in _folders)]
        if not found:
            raise _forbidden(spec)
    for path in found:
        if path.is_file():
            return path
    raise UserError(f"{found[0]} was not found; a network of your own is named FILE.py:FACTORY, where FILE.py exists")


def _forbidden(spec: str) -> UserError:
    where = (
        "name a file of the folder that it was started for" if _folders else "start it with modhifi ui --models FOLDER"
    )
    return UserError(f"{spec} is Python code, which this server does not run; {where}")


def _file_of(where: str, spec: str) -> Path:
    """The file of a module, which does not run yet; the packages that it is in do."""
    found = importlib.util.find_spec(where)
    if found is None:
        raise ModuleNotFoundError(name=where)
    if found.origin is None or not Path(found.origin).is_file():
        raise UserError(f"{spec} is in no file of Python code; name a module that is one")
    return Path(found.origin)


def _imported(where: str, path: Path | None) -> ModuleType:
    if path is None:
        return importlib.import_module(where)
    name = f"modhifi_file_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up their module there
    spec.loader.exec_module(module)
    return module


def _guarded(spec: str, what: str, run: Any) -> Any:
    """``run()``, whose exceptions are the person's own."""
    try:
        return run()
    except UserError:
        raise
    except ModuleNotFoundError as error:
        if what == "import" and error.name and spec.startswith(error.name):
            raise UserError(
                f"unknown model {spec!r}: there is no Python module {error.name!r}; see modhifi models for all forms"
            ) from error
        raise UserError(f"{spec}: the module {error.name!r} that it imports is missing; install it") from error
    except (Exception, SystemExit) as error:
        said = " ".join(str(error).split())[:120]
        where = "while it was imported" if what == "import" else "when it was called"
        raise UserError(
            f"{spec} raised {type(error).__name__} {where} ({said}); run it in Python to see where"
        ) from error


def _check_arguments(factory: Any, spec: str) -> None:
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # written in C
        return
    needed = [
        name
        for name, one in signature.parameters.items()
        if one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    ]
    if needed:
        raise UserError(
            f"{spec} needs arguments ({', '.join(needed)}); write a function without any, which returns the network"
        )


def _is_own(value: Any, module: ModuleType) -> bool:
    return callable(value) and getattr(value, "__module__", None) == module.__name__


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Inside the context, modules in ``folder`` can be imported, as when Python runs a file there."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))
