"""Where long work on a pool runs: in this process, in several processes of this machine, or on a Ray cluster.

A `Task` is cut into independent parts, each of which writes its result to a folder, whole or not at all. So any worker
may redo a part, and work that was killed resumes with the missing parts.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import pickle
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch

from tldr.check import check_number

Work = Callable[[Sequence[int]], Any]
SHARES, LARGEST = 8, 16  # shares per worker at least, so that none waits long for the last; parts per share at most
GONE = (
    "died, perhaps out of memory. Finished work is kept, and the same command resumes with the rest; with fewer "
    "engine.workers, each has more memory"
)
PATIENCE = 60  # seconds after which the user is told that the cluster has no room


class Task(Protocol):
    """Work that can be pickled."""

    def open(self, device: str, peers: int = 1) -> Work:
        """A function that does the given parts on ``device`` (``cpu``, ``cuda:1``) and returns a report on them.
        ``peers`` is the number of workers, this one included."""
        ...


class Engine(ABC):
    """``workers`` is the number of processes; None: one for each GPU."""

    def __init__(self, workers: int | None) -> None:
        if workers is not None:
            check_number("engine.workers", workers, "at least 1, or null for one on each GPU", low=1, whole=True)
        self.workers = workers

    @abstractmethod
    def alone(self, device: torch.device) -> bool:
        """Whether work on ``device`` is done by the calling process, without others."""

    @abstractmethod
    def run(self, task: Task, parts: Sequence[int], *, device: torch.device) -> Iterator[Any]:
        """Yield the report of ``task`` on each share of ``parts`` as it is finished. Raises what a worker raised, and
        RuntimeError if one died."""


class Local(Engine):
    """Processes of this machine. None: one for each GPU if the device is ``cuda`` without a number, else just the
    calling process."""

    def __init__(self, workers: int | None = 1) -> None:
        super().__init__(workers)

    def alone(self, device: torch.device) -> bool:
        """Whether there is only one worker."""
        return (self.workers or _gpus(device) or 1) == 1

    def run(self, task: Task, parts: Sequence[int], *, device: torch.device) -> Iterator[Any]:
        """In new processes, to which the GPUs are given in turn unless ``device`` names one of them."""
        gpus = _gpus(device)
        count = min(self.workers or gpus or 1, len(parts))
        if not count:
            return
        context = multiprocessing.get_context("spawn")  # a fork would share CUDA and locks
        devices, others = context.SimpleQueue(), set(multiprocessing.active_children())
        for number in range(count):
            devices.put(f"cuda:{number % gpus}" if gpus else str(device))
        with tempfile.TemporaryDirectory() as folder:
            parcel = Path(folder, "task")  # a file: a pipe would have each process wait until the one before has read
            parcel.write_bytes(pickle.dumps(task))
            threads = max(1, torch.get_num_threads() // count)
            executor = ProcessPoolExecutor(count, context, _begin, (str(parcel), devices, threads, count))
            try:
                futures = [executor.submit(_work, share) for share in _shares(parts, count)]
                for future in as_completed(futures):
                    yield future.result()
            except BrokenProcessPool as error:
                raise RuntimeError(f"one of {count} processes {GONE}") from error
            except BaseException:  # nobody waits for what the others are at: it can be done again
                for process in set(multiprocessing.active_children()) - others:
                    process.terminate()
                raise
            finally:
                executor.shutdown(cancel_futures=True)


class Ray(Engine):
    """The workers of the Ray cluster at ``address`` (``auto``: the one that is running; ``local``: one that lasts as
    long as the work), each with a CPU and ``gpus`` GPUs (None: 1 if the cluster has any). ``workers`` None: as many as
    there is room for. All machines must have this package, and see the working directory, the cache and the pictures
    under the same paths. A worker that dies is restarted, on another machine if need be, and its share is redone."""

    def __init__(self, address: str = "auto", workers: int | None = None, gpus: float | None = None) -> None:
        super().__init__(workers)
        if gpus is not None and gpus < 0:
            raise ValueError(f"engine.gpus={gpus}: how much of a GPU each worker has, 1, 0.5 or 0")
        self.address, self.gpus = address, gpus

    def alone(self, device: torch.device) -> bool:
        """Never."""
        return False

    def run(self, task: Task, parts: Sequence[int], *, device: torch.device) -> Iterator[Any]:
        """By actors. ``device`` is ignored: it belongs to this machine."""
        if not len(parts):
            return
        with self._cluster() as ray:
            has = ray.cluster_resources()
            gpus = min(1.0, has.get("GPU", 0)) if self.gpus is None else self.gpus
            room = sum(_room(node["Resources"], gpus) for node in ray.nodes() if node["Alive"])
            if room < (self.workers or 1):
                raise ValueError(f"the cluster has room for {room} workers with engine.gpus={gpus:g}: it has {has}")
            count = min(self.workers or room, len(parts))
            actor = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=3, max_task_retries=3)(_Worker)
            parcel = ray.put(pickle.dumps(task))
            actors = [actor.remote(parcel, "cuda" if gpus else "cpu", os.getcwd(), count) for _ in range(count)]
            lost = ray.exceptions
            try:
                yield from _hand_out(ray, actors, _shares(parts, count))
            except (lost.RayActorError, lost.OutOfMemoryError, lost.NodeDiedError, lost.WorkerCrashedError) as error:
                raise RuntimeError(f"one of {count} workers {GONE}: {error}") from error
            finally:
                for each in actors:  # the cluster may go on
                    ray.kill(each)

    @contextmanager
    def _cluster(self) -> Iterator[Any]:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            ray: Any = importlib.import_module("ray")
        except ModuleNotFoundError as error:
            raise ValueError("engine=ray needs the package ray: pip install 'tldr-vlp[ray]'") from error
        ours = not ray.is_initialized()
        if ours:
            try:
                ray.init(self.address, include_dashboard=False, log_to_driver=False)
            except ConnectionError as error:
                raise ValueError(
                    f"there is no Ray cluster at engine.address={self.address}: start one with `ray start --head`, "
                    "or use engine.address=local"
                ) from error
        try:
            yield ray
        finally:
            if ours:
                ray.shutdown()


def _room(has: dict[str, float], gpus: float) -> int:
    """How many workers a machine has room for, each with a CPU and ``gpus`` GPUs (a fraction, or a whole number)."""
    cpus, owned = int(has.get("CPU", 0)), has.get("GPU", 0)
    if not gpus:
        return cpus
    return min(cpus, int(owned // gpus) if gpus >= 1 else int(owned) * int(1 / gpus))


def _hand_out(ray: Any, actors: list[Any], shares: list[Sequence[int]]) -> Iterator[Any]:
    """Give each share to an actor that is up, and yield the reports; other actors may still wait for room."""
    begun = {actor.ready.remote(): actor for actor in actors}
    working: dict[Any, Any] = {}
    while shares or working:
        done, _ = ray.wait([*begun, *working], timeout=PATIENCE)
        if not done and not working:
            print("waiting for the Ray cluster, which has no room for a worker just now", flush=True)
        for future in done:
            actor = begun.pop(future, None) or working[future]
            result = ray.get(future)
            if shares:
                working[actor.work.remote(shares.pop())] = actor
            if working.pop(future, None) is not None:
                yield result


def _gpus(device: torch.device) -> int:
    """The number of GPUs to share if ``device`` is ``cuda`` without a number, else 0."""
    return torch.cuda.device_count() if device.type == "cuda" and device.index is None else 0


def _shares(parts: Sequence[int], workers: int) -> list[Sequence[int]]:
    size = max(1, min(len(parts) // (SHARES * workers), LARGEST))
    return [parts[start : start + size] for start in range(0, len(parts), size)]


class _Worker:
    """Opens its task with the first share, so that an error in opening is reported like an error in the work."""

    def __init__(self, parcel: bytes, device: str, home: str, peers: int) -> None:
        self.parcel, self.device, self.home, self.peers = parcel, device, home, peers
        self.opened: Work | None = None

    def ready(self) -> None:
        """Return as soon as the actor is up."""

    def work(self, share: Sequence[int]) -> Any:
        if self.opened is None:
            os.chdir(self.home)  # paths may be relative to it
            task: Task = pickle.loads(self.parcel)
            self.opened = task.open(self.device, self.peers)
        return self.opened(share)


_here: list[_Worker] = []  # in a process started by `Local`: its one worker


def _begin(parcel: str, devices: Any, threads: int, peers: int) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    _here.append(_Worker(Path(parcel).read_bytes(), devices.get(), os.getcwd(), peers))


def _end_with_parent() -> None:
    """Else a process whose parent is killed would wait for work for ever, and hold its GPU."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(share: Sequence[int]) -> Any:
    return _here[0].work(share)
