"""Whatever a model keeps beside its weights, remembered and put back: caches, tables, counters.

A model that is traced fills its caches with tensors that hold no values, one that is proven with
float64. They lie in attributes of modules and helper objects, on classes, in global variables, in
what hooks and closures hold, and in functions with `lru_cache`.
"""

import functools
import operator
import random
import sys
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

LONG = 10_000  # entries; what is longer holds data
DEEP = 8  # objects inside objects inside a module
MISSING = object()
DEFINITIONS = (ModuleType, FunctionType, type)  # what is imported on the way stays
OWN = {"__main__", "__mp_main__"}  # holds users' code, though it comes with Python
LIBRARIES = set(sys.stdlib_module_names) - OWN | {"torch", "numpy", "sympy", "scipy", "slipstream"}


@contextmanager
def left_as_it_was(model: "nn.Module | Memory") -> Generator["Memory"]:
    """Remember what `model` keeps, and put it back when the block ends.

    Args:
        model: A module, or what was remembered of it before: for all of it is put back every time.

    Yields:
        The memory, with which everything is put back in between.
    """
    memory = model if isinstance(model, Memory) else Memory(model)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        yield memory
    finally:
        memory.restore()
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])


KEEPING = (dict, list, set, deque, FunctionType, ModuleType, functools._lru_cache_wrapper)


class Memory:
    """What a model keeps, as it is now."""

    def __init__(self, model: nn.Module) -> None:
        self._repairs: list[Callable[[], None]] = []
        self._seen: set[int] = set()
        self._kept: list[Any] = []  # no object may be freed, and its number given to another
        queue = deque((module, 0) for module in model.modules())
        while queue:
            item, depth = queue.popleft()
            if id(item) in self._seen or depth > DEEP:
                continue
            self._seen.add(id(item))
            self._kept.append(item)
            queue.extend((inner, depth + 1) for inner in self._remember(item))

    def restore(self) -> None:
        """Put everything back."""
        for repair in self._repairs:
            repair()

    def _remember(self, item: Any) -> Iterable[Any]:
        """Note how to put back `item` itself, and return what it holds."""
        for kinds, remember in REMEMBER.items():
            if isinstance(item, kinds):
                return remember(self, item)
        return self._remember_object(item) if _is_own(type(item)) else ()

    def _remember_container(self, item: Any) -> Iterable[Any]:
        if len(item) > LONG:
            return ()
        self._repairs.append(_container_repair(item))
        return _entries(item).values() if isinstance(item, dict) else list(item)

    def _remember_object(self, item: Any) -> Iterator[Any]:
        yield type(item)
        if isinstance(kept := getattr(item, "__dict__", None), dict):
            yield kept

    def _remember_cache(self, function: Any) -> Iterable[Any]:
        self._repairs.append(_cache_repair(function))
        return (function.__wrapped__,)

    def _remember_tensor(self, tensor: Tensor) -> Iterable[Any]:
        """A plain tensor may be written to; weights and buffers are replaced while a model runs."""
        if isinstance(tensor, nn.Parameter) or tensor.is_meta or _is_special(tensor):
            return ()
        version, before = tensor._version, tensor.detach().clone()

        def repair() -> None:
            nonlocal version
            if tensor._version != version:
                with torch.no_grad():
                    tensor.detach().copy_(before)
                version = tensor._version

        self._repairs.append(repair)
        return ()

    def _remember_function(self, function: FunctionType) -> Iterator[Any]:
        if not _is_own(function):
            return
        for cell in function.__closure__ or ():
            self._repairs.append(_cell_repair(cell))
            yield from _contents(cell)
        yield from (function.__defaults__, function.__kwdefaults__, function.__dict__)
        yield from self._remember_names(function.__globals__)

    def _remember_module(self, module: ModuleType) -> Iterable[Any]:
        return self._remember_names(vars(module)) if _is_own_name(module.__name__) else ()

    def _remember_names(self, names: dict[str, Any]) -> Iterator[Any]:
        """Global variables: what they are bound to, and the containers among them."""
        if id(names) in self._seen:
            return
        self._seen.add(id(names))
        self._repairs.append(_container_repair(names))
        for value in list(names.values()):
            if isinstance(value, KEEPING):
                yield value

    def _remember_class(self, owner: type) -> Iterator[Any]:
        for base in owner.__mro__:
            if not _is_own(base):
                continue
            before = dict(vars(base))
            self._repairs.append(functools.partial(_restore_class, base, before))
            for value in before.values():
                yield getattr(value, "__func__", value)


REMEMBER: dict[Any, Callable[[Memory, Any], Iterable[Any]]] = {
    Tensor: Memory._remember_tensor,
    (dict, list, set, deque): Memory._remember_container,
    tuple: lambda _, item: item,
    functools.partial: lambda _, item: (item.func, item.args, item.keywords),
    MethodType: lambda _, item: (item.__self__, item.__func__),
    FunctionType: Memory._remember_function,
    functools._lru_cache_wrapper: Memory._remember_cache,
    ModuleType: Memory._remember_module,
    type: Memory._remember_class,
    nn.Module: Memory._remember_object,
}


def _is_special(tensor: Tensor) -> bool:
    """Whether a tensor is none of plain values in memory."""
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    return wrapped or tensor.layout != torch.strided


def _container_repair(item: Any) -> Callable[[], None]:
    if isinstance(item, dict):
        return functools.partial(_restore_entries, item, _entries(item))
    before = list(item)

    def repair() -> None:
        if not _is_same(item, before):
            item.clear()
            (item.update if isinstance(item, set) else item.extend)(before)

    return repair


def _restore_entries(item: dict[Any, Any], before: dict[Any, Any]) -> None:
    # Nearly always nothing has changed, and that is seen without a look at each entry.
    if _is_same(dict.keys(item), before) and _is_same(dict.values(item), before.values()):
        return
    now = _entries(item)
    for name in now.keys() - before.keys():
        # What `torch.compile` leaves among global variables begins with two underscores.
        if not isinstance(now[name], DEFINITIONS) and not str(name).startswith("__"):
            del item[name]
    for name, value in before.items():
        if now.get(name, MISSING) is not value:
            item[name] = value


def _entries(item: dict[Any, Any]) -> dict[Any, Any]:
    """What a dictionary holds, whatever its class makes of it on access."""
    return dict(dict.items(item))


def _is_same(item: Collection[Any], before: Collection[Any]) -> bool:
    if len(item) != len(before):
        return False
    if isinstance(item, set):
        return all(entry in item for entry in before)
    return all(map(operator.is_, item, before))


def _cache_repair(function: Any) -> Callable[[], None]:
    misses = function.cache_info().misses

    def repair() -> None:
        nonlocal misses
        if function.cache_info().misses != misses:
            function.cache_clear()
            misses = 0

    return repair


def _cell_repair(cell: CellType) -> Callable[[], None]:
    before = _contents(cell)

    def repair() -> None:
        if before:
            cell.cell_contents = before[0]

    return repair


def _contents(cell: CellType) -> list[Any]:
    try:
        return [cell.cell_contents]
    except ValueError:  # it is not filled yet
        return []


def _restore_class(owner: type, before: dict[str, Any]) -> None:
    now = dict(vars(owner))
    with suppress(AttributeError, TypeError):  # a class may be read-only
        for name in now.keys() - before.keys():
            delattr(owner, name)
        for name, value in before.items():
            if now.get(name, MISSING) is not value:
                setattr(owner, name, value)


def _is_own(item: Any) -> bool:
    """Whether a class or function is neither of Python nor of a library that keeps nothing."""
    module = getattr(item, "__module__", None)
    return isinstance(module, str) and _is_own_name(module)


def _is_own_name(module: str) -> bool:
    return module.partition(".")[0] not in LIBRARIES
