"""Runs whose directory is in an object store: finished checkpoints are copied there, and fetched to resume.

Files are written, verified and resumed from on this machine, since safetensors and torch DCP map files into memory. A
checkpoint in the store counts when its manifest is there, which is copied last and deleted first.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from automodel.checkpoint import directory, manifest
from automodel.errors import AutoModelError, InputError, RunError
from automodel.notices import notice

_PROTOCOL = re.compile(r"[a-z][a-z0-9+.-]+://")


def is_remote(path: str | Path) -> bool:
    """Whether a path is a URL of an object store."""
    return isinstance(path, str) and _PROTOCOL.match(path) is not None


@dataclass(frozen=True)
class Remote:
    """The directory of a run in an object store, `s3://bucket/run`.

    Raises:
        InputError: the store's package is not installed.
    """

    url: str

    def default_local_directory(self) -> Path:
        """Where its files lie on this machine unless the recipe says where."""
        cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
        name = self.url.rstrip("/").rpartition("/")[2]
        return cache / "automodel" / "runs" / f"{name}-{hashlib.sha256(self.url.encode()).hexdigest()[:12]}"

    def push(self, run_directory: Path, checkpoint: Path | None = None) -> None:
        """Copy a finished checkpoint, and the files that lie beside the checkpoints.

        Raises:
            RunError: the store refused; the checkpoint is on this machine.
        """
        with self._told(RunError, f"; it is in {run_directory}"):
            store, root = self._store()
            if checkpoint is not None:
                for path in sorted(checkpoint.rglob("*"), key=lambda path: path.name == manifest.MANIFEST):
                    if path.is_file():
                        store.put_file(str(path), f"{root}/{path.relative_to(run_directory).as_posix()}")
            for path in run_directory.iterdir():
                if path.is_file() and not path.name.startswith("."):
                    store.put_file(str(path), f"{root}/{path.name}")

    def fetch(self, run_directory: Path) -> None:
        """Bring what a run goes on with to this machine: its newest whole checkpoint, the best one, and its metrics.

        A checkpoint that is here already stays; one that is as new as those of the store is gone on with.

        Raises:
            InputError: the store cannot be read.
        """
        with self._told(InputError):
            manifests = self._manifests()
            here = {step for step, path in directory.checkpoints(run_directory) if not manifest.problems(path)}
            newer = [step for step in sorted(manifests, reverse=True) if step > max(here, default=-1)]
            fetched = next((step for step in newer if self._fetch_step(step, run_directory)), None)
            best = directory.best(manifests)
            if best is not None and best not in {*here, fetched}:
                self._fetch_step(best, run_directory)
            store, root = self._store()
            if fetched is not None:
                for entry in store.ls(root, detail=True):
                    if entry["type"] == "file":
                        name = entry["name"].rpartition("/")[2]
                        store.get_file(f"{root}/{name}", str(run_directory / name))

    def fetch_step(self, step: int, run_directory: Path) -> None:
        """Bring one checkpoint to this machine, if it is not here.

        Raises:
            InputError: the store cannot be read, or the checkpoint is damaged.
        """
        if manifest.problems(run_directory / f"step_{step}"):
            with self._told(InputError):
                if not self._fetch_step(step, run_directory):
                    raise InputError(f"there is no whole checkpoint {self.url}/step_{step}")

    def _fetch_step(self, step: int, run_directory: Path) -> bool:
        store, root = self._store()
        target = directory.begin(run_directory, step)
        store.get(f"{root}/step_{step}/", f"{target}/", recursive=True)
        if problems := manifest.problems(target):
            shutil.rmtree(target)
            notice(f"{self.url}/step_{step} is damaged and passed over: {'; '.join(problems[:3])}")
            return False
        directory.flush(target)
        directory.publish(target)
        return True

    def _manifests(self) -> dict[int, dict[str, Any]]:
        """The manifests of the store's checkpoints, by step."""
        store, root = self._store()
        found = {}
        for path in store.glob(f"{root}/step_*/{manifest.MANIFEST}"):
            if match := re.search(r"/step_(\d+)/[^/]+$", path):
                found[int(match[1])] = json.loads(store.cat_file(path))
        return found

    def prune(self, keep_last_n: int, best: Path | None) -> None:
        """Delete the oldest checkpoints but the last ones and the best.

        Raises:
            RunError: the store refused.
        """
        with self._told(RunError):
            store, root = self._store()
            for step in sorted(self._manifests())[:-keep_last_n]:
                if best is None or best.name != f"step_{step}":
                    store.rm_file(f"{root}/step_{step}/{manifest.MANIFEST}")
                    store.rm(f"{root}/step_{step}", recursive=True)

    def _store(self) -> tuple[Any, str]:
        import fsspec

        try:
            store, root = fsspec.url_to_fs(self.url.rstrip("/"), use_listings_cache=False)
        except ImportError as error:
            protocol = self.url.partition(":")[0]
            raise InputError(
                f'{self.url} needs a package: pip install "automodel-core[{protocol}]" ({error})'
            ) from error
        except ValueError as error:
            raise InputError(f"{self.url} is in no object store that fsspec knows: {error}") from error
        return store, root

    @contextmanager
    def _told(self, kind: type[AutoModelError], more: str = "") -> Iterator[None]:
        """Let whatever the store's library raises be one message: its errors are of many classes."""
        try:
            yield
        except AutoModelError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise kind(f"the object store of {self.url} refused: {reason}{more}") from error


def local_copy(path: str | Path) -> Path:
    """The directory of a checkpoint or of a run on this machine; fetched if it is in an object store.

    Raises:
        InputError: the store cannot be read.
    """
    if not isinstance(path, str) or not is_remote(path):
        return Path(path).expanduser()
    run, _, last = path.rstrip("/").rpartition("/")
    if match := re.fullmatch(r"step_(\d+)", last):
        remote = Remote(run)
        remote.fetch_step(int(match[1]), remote.default_local_directory())
        return remote.default_local_directory() / last
    remote = Remote(path)
    remote.fetch(remote.default_local_directory())
    return remote.default_local_directory()
