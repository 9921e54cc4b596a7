"""Packages whose names are imported when they are first asked for: `--help` needs no torch."""

import ast
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any


def lazy_names(
    package: str, file: str, otherwise: Callable[[str], Any] | None = None
) -> Callable[[str], Any]:
    """Return the `__getattr__` of a package that imports its names when they are first used.

    Its `__init__.py` lists them once, for type checkers and for this function:

        if TYPE_CHECKING:
            from slipstream.trajectory.recorder import Recorder

        __getattr__ = lazy_names(__name__, __file__)

    Args:
        package: `__name__` of the package.
        file: `__file__` of it.
        otherwise: Finds names that are not listed; raises AttributeError if there is none.

    Returns:
        What finds a name in the module that it is listed with.
    """
    sys.modules[package].__class__ = _Package

    def find(name: str) -> Any:
        modules = _listed(file)
        if name not in modules:
            if otherwise is not None:
                return otherwise(name)
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        found = getattr(import_module(modules[name]), name)
        setattr(sys.modules[package], name, found)
        return found

    return find


def names_of(package: str) -> Callable[[str], Any]:
    """Return the `__getattr__` of a package inside another one that lists the names of both."""
    return lambda name: getattr(import_module(package), name)


class _Package(ModuleType):
    """Prefers a function to the module of the same name, which Python binds when it is loaded."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (isinstance(value, ModuleType) and name in _listed(str(self.__file__))):
            super().__setattr__(name, value)


@cache
def _listed(file: str) -> dict[str, str]:
    """Name to module, of the imports under `if TYPE_CHECKING`."""
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    blocks = (node for node in tree.body if isinstance(node, ast.If))
    imports = (node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom))
    return {alias.asname or alias.name: str(n.module) for n in imports for alias in n.names}
