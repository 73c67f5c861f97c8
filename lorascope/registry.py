"""A registry that finds its members by importing a folder, refuses a second owner of a name and suggests near ones.

Members of other packages are found by entry points, once a name is asked for that the folder does not have, or all
names. A package announces them in its pyproject.toml, each entry the module that registers them:

    [project.entry-points."lorascope.methods"]
    my-method = "my_package.my_method"
"""

import difflib
import importlib
import importlib.util
import pkgutil
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Generic, TypeVar

from lorascope.errors import InputError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

T = TypeVar("T")


class PluginWarning(UserWarning):
    """A package announces members for lorascope that cannot be used."""


class Registry(Generic[T]):
    """Names to members. A member registers itself with the decorator in its own file; there is no central list.

    Args:
        what: the singular noun used in messages, such as "method".
        folder: the package whose modules hold the members, such as "lorascope.methods".
        plugins: the entry point group in which other packages announce members; None where they cannot.
    """

    def __init__(self, what: str, folder: str, plugins: str | None = None):
        self.what, self.folder, self.plugins = what, folder, plugins
        self._members: dict[str, T] = {}
        self._modules: dict[str, str] = {}  # by a member's name, the module that registered it
        self._folder_loaded = self._plugins_loaded = False

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: `@methods.register("lora")`. Raises ValueError where another module has that name already."""

        def keep(member: T) -> T:
            module = sys._getframe(1).f_globals.get("__name__", "")
            if not self._is_built_in(module):
                self._load_folder()  # so that a built-in name is taken, whichever is imported first
            owner = self._modules[name] if name in self._members else module
            if owner != module:
                raise ValueError(f"the {self.what} {name!r} of {module} has the name of one of {owner}")
            self._members[name], self._modules[name] = member, module
            return member

        return keep

    def get(self, name: str) -> T:
        """The member of that name; InputError with near names where there is none.

        Imports the module of that name alone, where the folder has one; else the whole folder, then the plug-ins.
        """
        for load in (lambda: self._load_module(name), self._load_folder, self._load_plugins):
            if name in self._members:
                break
            load()
        if name in self._members:
            return self._members[name]
        near = difflib.get_close_matches(name, self._members, n=3)
        raise InputError(
            f"there is no {self.what} named {name!r}",
            expected=f"one of {', '.join(sorted(self._members))}",
            hint=f"did you mean {near[0]!r}?" if near else None,
        )

    def names(self) -> list[str]:
        self._load_folder()
        self._load_plugins()
        return sorted(self._members)

    def built_in(self) -> list[tuple[str, T]]:
        """The members of the folder by name, and others that are imported already; plug-ins are not looked for."""
        self._load_folder()
        return sorted(self._members.items(), key=lambda item: item[0])

    def items(self) -> Iterator[tuple[str, T]]:
        """The built-in members by name, then the plug-ins', which are looked for only once these are through."""
        complete = self._plugins_loaded or self.plugins is None
        first = self.built_in()
        yield from first
        if complete:
            return
        self._load_plugins()
        yield from (item for item in self.built_in() if item not in first)

    def _is_built_in(self, module: str) -> bool:
        return f"{module}.".startswith(f"{self.folder}.")

    def _load_module(self, name: str) -> None:
        if not self._folder_loaded and name.isidentifier():
            importlib.import_module(self.folder)
            if importlib.util.find_spec(f"{self.folder}.{name}") is not None:
                importlib.import_module(f"{self.folder}.{name}")

    def _load_folder(self) -> None:
        if self._folder_loaded:
            return
        package = importlib.import_module(self.folder)
        for module in pkgutil.walk_packages(package.__path__, f"{self.folder}."):
            importlib.import_module(module.name)
        self._folder_loaded = True

    def _load_plugins(self) -> None:
        """Import what other packages announce. One that fails gives a warning, and registers nothing."""
        if self._plugins_loaded or self.plugins is None:
            return
        self._plugins_loaded = True
        from importlib.metadata import entry_points

        for entry in entry_points(group=self.plugins):
            before = dict(self._members), dict(self._modules)
            try:
                entry.load()
                if not any(_package(module) == _package(entry.module) for module in self._modules.values()):
                    raise ValueError(f"it registers no {self.what}")
            except (Exception, SystemExit) as error:  # whatever a foreign module does when it is imported
                self._members, self._modules = before
                _warn_of(entry, error)


def _package(module: str) -> str:
    return module.partition(".")[0]


def _warn_of(entry: "EntryPoint", error: BaseException) -> None:
    """Say which package's plug-in is not used, and why."""
    distribution = entry.dist.name if entry.dist is not None else _package(entry.module)
    why = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    warnings.warn(f"the plug-in {entry.name!r} of {distribution} is not used: {why}", PluginWarning, stacklevel=4)
