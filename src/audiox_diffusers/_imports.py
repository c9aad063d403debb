"""Lazy imports: names that are imported when they are first used, and actions that wait for a module."""

import atexit
import gc
import importlib
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def lazy_names(package: str, modules: dict[str, list[str]]) -> tuple[Callable, Callable, list[str]]:
    """
    Return `__getattr__`, `__dir__` and `__all__` for a package that imports its modules when they are first used.

    diffusers and transformers have a class for this, but it takes seconds to import.

    Args:
        package (`str`): `__name__` of the package.
        modules (`dict`): Names of modules of the package, each with the names that the package exports from it.
    """
    origin = {name: module for module, names in modules.items() for name in names}

    def __getattr__(name: str) -> Any:
        if name in origin:
            value = getattr(import_without_gc(f"{package}.{origin[name]}"), name)
        elif name in modules:
            value = import_without_gc(f"{package}.{name}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, value)
        return value

    exported = sorted(origin)
    return __getattr__, lambda: sorted({*vars(sys.modules[package]), *exported, *modules}), exported


def import_without_gc(name: str) -> ModuleType:
    """Import a module with the garbage collector paused: it would search the many new objects and find no garbage."""
    collects = gc.isenabled()
    gc.disable()
    try:
        return importlib.import_module(name)
    finally:
        if collects:
            gc.enable()


def exit_quickly() -> None:
    """Let this process end without a last garbage collection, which takes up to a second with torch and diffusers."""
    atexit.register(gc.freeze)


def when_imported(name: str, action: Callable[[ModuleType], None]) -> None:
    """Call `action` with the module `name`: now if it is imported already, otherwise right after its import."""
    if name in sys.modules:
        action(sys.modules[name])
        return
    if _waiting not in sys.meta_path:
        sys.meta_path.insert(0, _waiting)
    _waiting.actions.setdefault(name, []).append(action)


class _Waiting(MetaPathFinder):
    """Finds modules as the other finders do, and lets their loaders run the actions that wait for them."""

    def __init__(self):
        self.actions: dict[str, list[Callable[[ModuleType], None]]] = {}

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in self.actions:
            return None
        finders = [finder for finder in sys.meta_path if finder is not self]
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in finders)), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                for action in self.actions.pop(name, []):
                    # A package may have put another object in its place, as diffusers does.
                    action(sys.modules[name])

            spec.loader.exec_module = exec_module
        return spec


_waiting = _Waiting()
