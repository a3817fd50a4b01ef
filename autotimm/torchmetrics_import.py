"""Has torchmetrics imported without matplotlib and scipy, which only its plots and audio need.

Lightning imports torchmetrics, and torchmetrics imports both of them at once: a quarter of the CPU
time of ``import lightning.pytorch``, in every process of every run. While torchmetrics is imported,
stand-ins take their places in ``sys.modules``. They have the few names that torchmetrics uses to
define its functions, and import the true module as soon as anything else is asked of them: plots
work as ever, and a release of torchmetrics that asks for more starts slower, without failing.

A torchmetrics without these imports at the top of its modules would replace this one.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from importlib.abc import Loader


def defer() -> None:
    """Prepares the import of torchmetrics; does nothing if that has happened already."""
    if "torchmetrics" not in sys.modules:
        sys.meta_path.insert(0, _Finder())


def _style_context(style: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates as ``matplotlib.pyplot.style.context`` does; imports it when the function runs."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def in_style(*args: Any, **kwargs: Any) -> Any:
            with import_module("matplotlib.pyplot").style.context(style):
                return function(*args, **kwargs)

        return in_style

    return decorate


_USED: dict[str, dict[str, Any]] = {
    "matplotlib": {"colors": SimpleNamespace(Colormap=object)},
    "matplotlib.axes": {"Axes": object},
    "matplotlib.pyplot": {"Figure": object, "style": SimpleNamespace(context=_style_context)},
    "scipy": {},
    "scipy.signal": {"hamming": None},  # torchmetrics adds this old name where it is missing
}
"""What torchmetrics uses of each module while it is imported: mostly types of annotations."""


class _StandIn(ModuleType):
    """A module that imports the true one of its name once it lacks what is asked of it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":  # inspect asks all modules for __file__
            raise AttributeError(name)
        _remove_stand_ins()
        part = f"{self.__name__}.{name}"
        return import_module(part) if part in _USED else getattr(import_module(self.__name__), name)


def _put_stand_ins() -> list[_StandIn]:
    """Puts them where nothing of the package has been imported."""
    made: dict[str, _StandIn] = {}
    for name, used in _USED.items():
        package, _, part = name.partition(".")
        if package in made:
            setattr(made[package], part, one := _StandIn(name))
        elif package in sys.modules or not find_spec(package) or (spec := find_spec(name)) is None:
            continue
        else:
            (one := _StandIn(name)).__spec__ = spec
        vars(one).update(used)
        made[name] = sys.modules[name] = one
    return [*made.values()]


def _remove_stand_ins() -> None:
    for name in _USED:
        if isinstance(sys.modules.get(name), _StandIn):
            del sys.modules[name]


class _Finder:  # not an importlib.abc.MetaPathFinder, whose import every process would pay for
    """Finds torchmetrics, once."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "torchmetrics":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = cast("Loader", _LoaderWithStandIns(spec.loader))
        return spec


class _LoaderWithStandIns:
    """Loads a module while the stand-ins are there."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__loader__ = module.__spec__.loader = self._loader
        made = _put_stand_ins()
        try:
            self._loader.exec_module(module)
        finally:
            _remove_stand_ins()
            for one in made:  # torchmetrics keeps them: from here on they have the true values
                own = [key for key in vars(one) if not key.startswith("__")]
                for key in own:
                    delattr(one, key)
