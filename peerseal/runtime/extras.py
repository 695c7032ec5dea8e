"""The optional parts of this distribution, and the message of one whose library is missing."""


def missing(error: ModuleNotFoundError, extra: str) -> ModuleNotFoundError:
    """The error to raise from ``error``: it names the extra that installs the library."""
    library = error.name or "a library"
    return ModuleNotFoundError(f"{library} is not installed: pip install 'peerseal[{extra}]'", name=error.name)
