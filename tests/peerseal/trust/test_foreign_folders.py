"""The cache folders of foreign registries: which are removed, and what removing one leaves alone."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from peerseal.trust.disk.document_cache import Copy, CopyFolder
from peerseal.trust.disk.foreign_folders import ForeignFolders


def filled(folders: ForeignFolders, root: str) -> Path:
    """The folder for that root, with a document and a ledger in it."""
    folder = folders.of(root)
    assert folder is not None
    (folder / f"documents-{root}").mkdir(parents=True)
    (folder / f"documents-{root}" / "root.jwt").write_text("a.b.c")
    (folder / "ledger.checkpoint").write_text("note")
    return folder


def test_the_folders_of_other_roots_go_with_all_that_is_in_them(tmp_path: Path) -> None:
    folders = ForeignFolders(tmp_path, "own")
    kept, gone, of_another = filled(folders, "a"), filled(folders, "b"), filled(ForeignFolders(tmp_path, "other"), "b")
    folders.keep_only({"a", "never-asked"})
    assert (kept / "documents-a" / "root.jwt").exists()
    assert not gone.exists()
    assert of_another.exists()
    folders.keep_only({"a"})
    assert kept.exists()


def test_no_link_is_followed_and_what_cannot_be_removed_keeps_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folders = ForeignFolders(tmp_path / "cache", "own")
    gone = [filled(folders, name) for name in ("a", "b", "c")]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_text("")
    (gone[0] / "inner").symlink_to(elsewhere)
    (gone[0].parent / "link").symlink_to(elsewhere)
    (gone[0].parent / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        folders.keep_only(frozenset())
    assert not any(folder.exists() for folder in gone)
    assert (elsewhere / "file").exists()
    assert caplog.text.count("stays") == 2
    assert str(gone[0].parent / "link") in caplog.text


@pytest.mark.parametrize("made", [False, True])
def test_without_folders_nothing_is_to_do(tmp_path: Path, made: bool) -> None:
    ForeignFolders(tmp_path / "cache" if made else None, "own").keep_only(frozenset())
    assert not list(tmp_path.iterdir())


def test_a_cache_folder_that_cannot_be_used_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    folders = ForeignFolders(tmp_path / "file", "own")
    with caplog.at_level(logging.WARNING):
        assert folders.of("a") is None
        folders.keep_only(frozenset())
    assert "nothing of the foreign registry is kept on disk" in caplog.text


def test_a_process_that_reads_and_writes_while_its_folder_is_removed_loses_copies_and_nothing_else(
    tmp_path: Path,
) -> None:
    folders = ForeignFolders(tmp_path, "own")
    folder = folders.of("a")
    assert folder is not None
    copies, began, ended = CopyFolder(folder, "documents-a"), threading.Event(), threading.Event()

    def use() -> None:
        while not ended.is_set():
            copies.keep("keys-billing.jwt", "a.b.c", 1, 1.0)
            with copies.locked("keys-billing.jwt"):
                found = copies.read("keys-billing.jwt")
            assert found is None or found.jws == "a.b.c"
            began.set()

    with ThreadPoolExecutor(1) as other:
        using = other.submit(use)
        try:
            assert began.wait(60)
            for _ in range(200):
                folders.keep_only(frozenset())
        finally:
            ended.set()
        using.result()
    copies.keep("keys-billing.jwt", "a.b.c", 1, 1.0)
    assert copies.read("keys-billing.jwt") == Copy("a.b.c", 1.0)
