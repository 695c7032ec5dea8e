"""The kind of file system of a folder, as far as the operating system tells."""

import os
import re
from pathlib import Path
from typing import Final

_MOUNTS = Path("/proc/self/mountinfo")

_NETWORK: Final = re.compile(
    r"9p|afs|beegfs|ceph|cifs|gfs2|gpfs|lustre|ncpfs|nfs4?|ocfs2|orangefs|pvfs2|smb[23]|smbfs"
    r"|fuse\.(beegfs|ceph|cephfs|gcsfuse|glusterfs|juicefs|mfs|moosefs|rclone|s3fs|sshfs)"
)
"""Kinds that several hosts can mount at once. There, appends of two hosts may overwrite each other."""


def network_file_system(device: int) -> str | None:
    """The kind of the network file system with that device number (``st_dev``). None for a local one, and where the
    system does not tell."""
    try:
        mounts = _MOUNTS.read_text("utf-8", errors="replace")
    except OSError:
        return None
    kind = file_system_kind(mounts, device)
    return kind if kind is not None and _NETWORK.fullmatch(kind) else None


def file_system_kind(mounts: str, device: int) -> str | None:
    """The kind of the file system with that device number, in the text of a ``mountinfo`` (see proc(5)), if listed."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in mounts.splitlines():
        mount, _, source = line.partition(" - ")
        if mount.split(" ")[2:3] == [wanted]:
            return source.split(" ")[0]
    return None
