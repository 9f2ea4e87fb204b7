"""A small disk to fill: a tmpfs of its own where mounting is allowed, a limit on the size of files elsewhere."""

import os
import resource
import shutil
import subprocess
from contextlib import suppress

SIZE = 96_000_000
"""Bytes: enough for all checkpoints that a run keeps, and one more."""


class Disk:
    """No disk of its own: what a run has that never meets a full one."""

    can_stay_full = False

    def __init__(self, directory):
        self.directory = directory

    def __enter__(self):
        self.directory.mkdir()
        return self

    def __exit__(self, *error):
        pass


class Tmpfs(Disk):
    """A file system in memory. Filled by a file that leaves so much room; that room is made again by deleting it."""

    can_stay_full = True
    how = "of their own, in memory (tmpfs), and filled by a file"

    def __enter__(self):
        super().__enter__()
        _mount("-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", self.directory)
        return self

    def __exit__(self, *error):
        subprocess.run(["umount", "--lazy", self.directory], check=True)

    def fill(self, process, room):
        status = os.statvfs(self.directory)
        if (more := status.f_bavail * status.f_frsize - room) > 0:
            with suppress(OSError), self._filler.open("ab") as file:  # the run may have taken it meanwhile
                os.posix_fallocate(file.fileno(), file.tell(), more)

    def make_room(self):
        self._filler.unlink(missing_ok=True)

    @property
    def _filler(self):
        return self.directory / "filler"


class FileLimit(Disk):
    """What comes close without mounting: a process that runs may write no file larger than `room` any more."""

    how = "not full: a limit on the size of files (RLIMIT_FSIZE) stood in, mounting a small one not being allowed"

    def fill(self, process, room):
        with suppress(ProcessLookupError):
            resource.prlimit(process, resource.RLIMIT_FSIZE, (room, room))

    def make_room(self):
        """The limit went with its process."""


def small_disk(scratch):
    """The kind of disk that can be filled here; `scratch` is a directory that does not exist."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        return FileLimit
    try:
        with Tmpfs(scratch):
            return Tmpfs
    except subprocess.CalledProcessError:
        return FileLimit
    finally:
        scratch.rmdir()


def _mount(*words):
    subprocess.run(["mount", *words], check=True, capture_output=True)
