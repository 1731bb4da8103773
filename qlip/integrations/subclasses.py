"""Subclasses of other libraries' classes, made while a program runs by mixing a class of ours in.

An object gets one by assignment to its `__class__`. Subclasses have their base's name, under which transformers saves
files, and pickle as the two classes they are made of, since they can't be imported.
"""

from __future__ import annotations

from functools import cache
from typing import Any


class MadeSubclass:
    """Base of the mixins."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Pickles mixin and base instead of the subclass."""
        parts: Any = super().__reduce_ex__(protocol)
        return _new_instance, (find_mixin(self), find_base(self)), *parts[2:]


class BuildsPlain(MadeSubclass):
    """Base of the mixins whose class, called with arguments as by `type(model).from_pretrained`, builds a plain object.

    Only assigning the class to an object that exists gives it the mixin.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Builds an object of the base if there are arguments."""
        if args or kwargs:
            return cls.__bases__[1](*args, **kwargs)
        return super().__new__(cls)


@cache
def make_subclass(mixin: type, base: type) -> type:
    """Makes the subclass of `mixin` and `base`, named like `base`; the same arguments give the same class."""
    names = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
    return type(base.__name__, (mixin, base), names)


def find_base(instance: Any) -> type:
    """Finds the class that an object had before."""
    return type(instance).__bases__[1]


def find_mixin(instance: Any) -> type:
    """Finds the mixin in an object's class."""
    return type(instance).__bases__[0]


def _new_instance(mixin: type, base: type) -> Any:
    subclass: Any = make_subclass(mixin, base)
    return subclass.__new__(subclass)
