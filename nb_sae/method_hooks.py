"""Hooks on what a method of a module returns: the embeddings that no module gives, such as `encode_image`.

The method is replaced on the one object while somebody listens, and put back with the last of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn


class Handle(Protocol):
    """What takes a hook off again, as torch's own handles do."""

    def remove(self) -> None:
        """Take it off."""
        ...


def hook_method(module: nn.Module, name: str, listener: Callable[[Any], Any]) -> Handle:
    """Let `listener` see what the method returns, before it is normalised, and replace it unless it gives None."""
    hooks = module.__dict__.get(name)
    if not isinstance(hooks, _MethodHooks):
        hooks = _MethodHooks(module, name)
        setattr(module, name, hooks)
    hooks.listeners.append(listener)
    return _MethodHandle(hooks, listener)


class _MethodHooks:
    """Stands in for a bound `encode_*` method of one module while somebody listens to what it returns."""

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module, self.name = module, name
        self.own = module.__dict__.get(name)
        self.original = getattr(module, name)
        self.signature = inspect.signature(self.original)
        self.listeners: list[Callable[[Any], Any]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        normalize = bound.arguments.get("normalize", False)
        if normalize:
            bound.arguments["normalize"] = False
        output = self.original(*bound.args, **bound.kwargs)
        for listener in list(self.listeners):
            changed = listener(output)
            output = output if changed is None else changed
        return nn.functional.normalize(output, dim=-1) if normalize else output

    def remove(self, listener: Callable[[Any], Any]) -> None:
        if listener in self.listeners:
            self.listeners.remove(listener)
        if not self.listeners and self.module.__dict__.get(self.name) is self:
            delattr(self.module, self.name)
            if self.own is not None:
                setattr(self.module, self.name, self.own)


@dataclass(frozen=True)
class _MethodHandle:
    hooks: _MethodHooks
    listener: Callable[[Any], Any]

    def remove(self) -> None:
        self.hooks.remove(self.listener)
