"""Runs whose directory is in an object store: finished checkpoints are copied there, and fetched to resume.

Files are written, verified and resumed from on this machine, since safetensors and torch DCP map files into memory. A
checkpoint in the store counts when its manifest is there, which is copied last and deleted first.
"""

from __future__ import annotations

import hashlib
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
        InputError: the address has a password in it, or the store's package is not installed.
    """

    url: str

    def __post_init__(self) -> None:
        if "@" in self.url.partition("://")[2].partition("/")[0]:
            raise InputError(
                "an address with credentials in it would be told by every checkpoint's recipe.yaml: give them by the "
                "environment variables of the store's library"
            )

    def default_local_directory(self) -> Path:
        """Where its files lie on this machine unless the recipe says where."""
        cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
        name = self.url.rstrip("/").rpartition("/")[2]
        return cache / "automodel" / "runs" / f"{name}-{hashlib.sha256(self.url.encode()).hexdigest()[:12]}"

    def push(self, run_directory: Path) -> None:
        """Copy the whole checkpoints that the store does not have, and the files that lie beside the checkpoints.

        One that could not be copied when it was saved is copied when the next one is.

        Raises:
            RunError: the store refused; the checkpoints are on this machine.
        """
        with self._told(RunError, f"; the checkpoints are in {run_directory}, and the same command copies them"):
            store, root = self._store()
            there = self._manifests()
            for step, path in directory.checkpoints(run_directory):
                if not manifest.problems(path) and there.get(step) != manifest.read_manifest(path):
                    for file in sorted(path.rglob("*"), key=lambda file: file.name == manifest.MANIFEST):
                        if file.is_file():
                            store.put_file(str(file), f"{root}/{file.relative_to(run_directory).as_posix()}")
            for file in run_directory.iterdir():
                if file.is_file() and not file.name.startswith("."):
                    store.put_file(str(file), f"{root}/{file.name}")

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
            if newer:  # before the checkpoint is here, or an interruption would leave a run without its history
                self._fetch_files(run_directory)
            fetched = next((step for step in newer if self._fetch_step(step, run_directory)), None)
            best = directory.best(manifests)
            if best is not None and best not in {*here, fetched}:
                self._fetch_step(best, run_directory)

    def _fetch_files(self, run_directory: Path) -> None:
        store, root = self._store()
        run_directory.mkdir(parents=True, exist_ok=True)
        for entry in store.ls(root, detail=True):
            name = entry["name"].rpartition("/")[2]
            if entry["type"] == "file" and not name.startswith("."):
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
        """The manifests of the store's checkpoints, by step; one that cannot be read is passed over with a notice."""
        store, root = self._store()
        found = {}
        for path in store.glob(f"{root}/step_*/{manifest.MANIFEST}"):
            if match := re.search(r"/step_(\d+)/[^/]+$", path):
                try:
                    found[int(match[1])] = manifest.parsed(store.cat_file(path))
                except ValueError as error:
                    notice(f"{self.url}/step_{match[1]} is damaged and passed over: {error}")
        return found

    def prune(self, keep_last_n: int, just_saved: Path, best: Path | None) -> None:
        """Delete the oldest checkpoints but the last ones, the one just saved among them, and the best.

        Raises:
            RunError: the store refused.
        """
        with self._told(RunError):
            store, root = self._store()
            names = [f"step_{step}" for step in sorted(self._manifests()) if f"step_{step}" != just_saved.name]
            for name in [*names, just_saved.name][:-keep_last_n]:
                if best is None or best.name != name:
                    store.rm_file(f"{root}/{name}/{manifest.MANIFEST}")
                    store.rm(f"{root}/{name}", recursive=True)

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
        except Exception as error:  # botocore's, aiohttp's, gcsfs's, ... have no base of their own
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
