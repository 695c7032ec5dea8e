"""Old names of modules that have moved: an import by the old name gives the module of the new name."""

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class OldNames(MetaPathFinder, Loader):
    """Imports old names, once it is in `sys.meta_path`. A module is loaded when its old name is first imported."""

    def __init__(self, names: Mapping[str, str]) -> None:
        """``names`` maps old dotted names to new ones."""
        self._names = names

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of an old name; None for any other name."""
        return ModuleSpec(fullname, self) if fullname in self._names else None

    def exec_module(self, module: ModuleType) -> None:
        """Puts the module of the new name where the import system looks for the old name."""
        sys.modules[module.__name__] = import_module(self._names[module.__name__])
