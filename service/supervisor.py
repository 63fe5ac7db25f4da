"""`Supervisor`: keeps child processes alive, and ends them and all that they started when it is told to."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from search.errors import EspalierError
from service import processes
from service.child import GRACE_S

#: Seconds between two looks at the children; also how long a signal may go unnoticed.
_TICK_S = 0.1


class ChildFailed(EspalierError):
    """A child cannot be kept alive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """When a child that died is started again: after a delay that doubles with every quick death in a row."""

    #: A child that lived this long starts with a clean record.
    quick_s: float = 60.0
    first_delay_s: float = 1.0
    longest_delay_s: float = 30.0
    #: Quick deaths in a row after which the supervisor gives up, or waits longest where others can do without.
    most_quick_deaths: int = 5

    def delay(self, quick_deaths: int) -> float | None:
        """Seconds until the next start; None: give up."""
        if quick_deaths >= self.most_quick_deaths:
            return None
        return float(min(self.longest_delay_s, self.first_delay_s * 2 ** max(0, quick_deaths - 1)))


@dataclass(slots=True, kw_only=True)
class Child:
    """A module that runs as a process of its own, in a session of its own."""

    name: str
    module: str
    environment: Mapping[str, str]
    #: Whether the others are no use without it. Any other that cannot be kept alive is tried again and again.
    is_essential: bool = True
    process: "subprocess.Popen[bytes] | None" = None
    started_at: float = 0.0
    quick_deaths: int = 0
    #: When it may be started again, on the monotonic clock.
    due_at: float = 0.0

    @property
    def pid(self) -> int | None:
        """Its process id while it lives."""
        return self.process.pid if self.process is not None and self.process.poll() is None else None

    def start(self) -> None:
        """Start it; its output goes to our standard error, and our death ends its standard input."""
        self.started_at = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "service.child", self.module],
            stdin=subprocess.PIPE,
            stdout=2,  # ours is for the user alone
            env={**os.environ, **self.environment},
            start_new_session=True,
        )

    def tree(self) -> set[int]:
        """It and what descends from it, while it lives."""
        return set() if self.pid is None else {self.pid} | processes.descendants(self.pid)

    def wait(self, timeout_s: float) -> bool:
        """Whether it ended within `timeout_s`."""
        if self.process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(max(0.0, timeout_s))
        return self.pid is None


class Supervisor:
    """Runs children until SIGINT or SIGTERM, restarting those that die.

    Use it from the main thread: it replaces the handlers of both signals while `guard` is open. A second signal
    ends the patience: everything is killed at once.

    Args:
        children: what to run.
        policy: when to restart, when to give up.
        grace_s: how long a child may take to end after SIGTERM.
        say: takes one line for people.
    """

    def __init__(
        self,
        children: Sequence[Child],
        *,
        policy: RestartPolicy | None = None,
        grace_s: float = GRACE_S,
        say: Callable[[str], None],
    ) -> None:
        self._children = children
        self._policy = policy or RestartPolicy()
        self._grace_s = grace_s
        self._say = say
        self._signals = 0
        self._spared: frozenset[int] = frozenset()

    @property
    def stopping(self) -> bool:
        """Whether a signal has come."""
        return self._signals > 0

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Start the children; whatever happens inside, none of their processes is alive afterwards."""
        self._spared = frozenset(processes.descendants(os.getpid()))
        processes.adopt_orphans()
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            for child in self._children:
                child.start()
            yield
        finally:
            self._stop()
            for number, handler in before.items():
                signal.signal(number, handler)

    def run(self) -> None:
        """Watch over the children until a signal comes.

        Raises:
            ChildFailed: an essential one died too often.
        """
        while not self.stopping:
            self.tick()
            time.sleep(_TICK_S)

    def tick(self) -> None:
        """One look at the children: restart, give up, collect what became ours.

        Raises:
            ChildFailed: one died too often.
        """
        processes.reap_orphans([child.process.pid for child in self._children if child.process is not None])
        for child in self._children:
            if child.pid is not None:
                continue
            if child.process is not None:
                self._bury(child)
            elif time.monotonic() >= child.due_at:
                child.start()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1

    def _bury(self, child: Child) -> None:
        """Note an unexpected death, kill what it left behind, and plan its next start."""
        assert child.process is not None
        how = _how(child.process.returncode)
        processes.kill_group(child.process.pid)
        processes.kill_descendants(
            spare=self._spared.union(*(other.tree() for other in self._children if other is not child)),
            own=[other.process.pid for other in self._children if other.process is not None],
        )
        _close_pipe(child)
        quick = time.monotonic() - child.started_at < self._policy.quick_s
        child.quick_deaths = child.quick_deaths + 1 if quick else 1
        child.process = None
        delay = self._policy.delay(child.quick_deaths)
        if delay is None:
            why = f"{child.quick_deaths} times in a row: its own messages above say why, and `espalier doctor` checks "
            how = f"{how}, {why}what it needs"
            if child.is_essential:
                raise ChildFailed(f"the {child.name} {how}")
            delay = self._policy.longest_delay_s
        child.due_at = time.monotonic() + delay
        self._say(f"the {child.name} {how}; starting it again in {delay:g} s")

    def _stop(self) -> None:
        """SIGTERM, patience, SIGKILL; then whatever still descends from us."""
        patience_ends = time.monotonic() + self._grace_s
        impatient_at = self._signals + 1
        for child in self._children:
            if child.pid is not None and child.process is not None:
                child.process.terminate()
        while any(child.pid is not None for child in self._children):
            if time.monotonic() > patience_ends or self._signals >= impatient_at:
                break
            time.sleep(_TICK_S)
        for child in self._children:
            if child.process is not None:
                processes.kill_group(child.process.pid)
                child.wait(self._grace_s)
                _close_pipe(child)
        left = processes.kill_descendants(spare=self._spared)
        if left:
            self._say(f"processes {sorted(left)} did not end when killed")


def _close_pipe(child: Child) -> None:
    if child.process is not None and child.process.stdin is not None:
        child.process.stdin.close()


def _how(returncode: int) -> str:
    """How a process ended, in words."""
    if returncode >= 0:
        return f"ended with exit code {returncode}"
    try:
        return f"was killed by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"was killed by signal {-returncode}"


class HomeInUse(EspalierError):
    """Another supervisor runs on this home folder."""


@contextlib.contextmanager
def home_lock(home: Path) -> Iterator[None]:
    """Hold ``home/serve.lock``: one supervisor a home. The kernel releases it however the process ends.

    Raises:
        HomeInUse: another process holds it.
    """
    import fcntl  # POSIX only, as is the supervisor; the client commands also run elsewhere

    with open(home / "serve.lock", "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            raise HomeInUse(
                f"another `espalier serve` (process {holder}) runs on {home}: stop it, or choose another --home"
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield
