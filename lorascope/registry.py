"""A registry that finds its members by importing a folder, refuses a second owner of a name and suggests near ones."""

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from lorascope.errors import InputError

T = TypeVar("T")


class Registry(Generic[T]):
    """Names to members. A member registers itself with the decorator in its own file; there is no central list.

    Args:
        what: the singular noun used in messages, such as "method".
        folder: the package whose modules hold the members, such as "lorascope.methods".
    """

    def __init__(self, what: str, folder: str):
        self.what, self.folder = what, folder
        self._members: dict[str, T] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: `@methods.register("lora")`. Raises ValueError where the name has an owner already."""

        def keep(member: T) -> T:
            owner = self._members.get(name)
            if owner is not None and getattr(owner, "__module__", None) != getattr(member, "__module__", None):
                raise ValueError(f"{self.what} {name!r} is registered twice: {owner!r} and {member!r}")
            self._members[name] = member
            return member

        return keep

    def get(self, name: str) -> T:
        """The member of that name; InputError with near names where there is none."""
        if name not in self._members:  # one that is imported needs no import of the whole folder
            self._load()
        if name in self._members:
            return self._members[name]
        near = difflib.get_close_matches(name, self._members, n=3)
        raise InputError(
            f"there is no {self.what} named {name!r}",
            expected=f"one of {', '.join(sorted(self._members))}",
            hint=f"did you mean {near[0]!r}?" if near else None,
        )

    def names(self) -> list[str]:
        self._load()
        return sorted(self._members)

    def items(self) -> Iterator[tuple[str, T]]:
        return ((name, self.get(name)) for name in self.names())

    def _load(self) -> None:
        if self._loaded:
            return
        package = importlib.import_module(self.folder)
        for module in pkgutil.walk_packages(package.__path__, f"{self.folder}."):
            importlib.import_module(module.name)
        self._loaded = True
