"""Files in a folder under the registry's own paths, for any web server."""

from collections.abc import Mapping
from pathlib import Path

from peerseal.errors import FetchError
from peerseal.runtime.files import Access, Folder
from peerseal.transport.fetch import Answer, Fetcher


class PublicFiles:
    """The files of a mirror, readable for all. The folder is made where it is missing."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self.folder = Folder(folder, access=Access.READABLE, mode=0o755, tightens=False)

    def put(self, path: str, content: bytes, modified_at: float | None = None) -> None:
        """Put a file in place in one step. Raises OSError."""
        folder, name = self.at(path)
        folder.write(name, content, mode=0o644, durable=False, modified_at=modified_at)

    def get(self, path: str) -> bytes:
        """What the file has. Raises FetchError as for a 404."""
        folder, name = self.at(path)
        try:
            return folder.read(name)
        except FileNotFoundError as error:
            raise FetchError(f"{self.path}{path}: {error.strerror}", 404) from error

    def remove(self, path: str) -> None:
        """Remove the file, if it is there. Raises OSError."""
        folder, name = self.at(path)
        folder.remove(name)

    def at(self, path: str) -> tuple[Folder, str]:
        """The folder for a path of the registry, and the file's name in it."""
        *above, name = path.strip("/").split("/")
        folder = self.folder
        for part in above:
            folder = folder.inner(part)
        return folder, name


class AnswersFromFiles(Fetcher):
    """Answers as a web server on the folder does."""

    def __init__(self, files: PublicFiles) -> None:
        self._files = files

    def call(self, method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
        """See Fetcher. Raises OSError as well."""
        try:
            return Answer(200, self._files.get(path))
        except FetchError as error:
            return Answer(404, str(error).encode())

    def target(self, path: str) -> str:
        """See Fetcher."""
        return path
