"""The threads that work through a run's tasks, as many at a time as memory allows."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from threading import Condition, Thread

import torch

from worker.merging.engine.groups import Group, Task

Work = Callable[[Task], Sequence[Task]]
"""Does a task and returns those that follow from it."""


class Crew:
    """Takes tasks from groups, the costliest group first, until none is left or one fails.

    What is begun is finished before something else is: its state is freed. Each thread looks for
    its next task itself: to be handed one would cost two changes of threads.
    """

    def __init__(
        self, groups: Iterable[Group], done: set[tuple[str, int, int]], allowance: int, work: Work
    ) -> None:
        """`done` are the stretches that are not to be done; `allowance` is in bytes."""
        self._waiting = deque(sorted(groups, key=_cost, reverse=True))
        self._done, self._work = done, work
        self._ready: deque[Task] = deque()
        self._free, self._allowance, self._busy = allowance, allowance, 0
        self._failures: list[BaseException] = []
        self._changed = Condition()

    @property
    def halted(self) -> bool:
        """Whether a task has failed: then the others are to stop."""
        return bool(self._failures)

    def run(self, threads: int) -> None:
        """Work with that many threads; raise what the first task that failed raised."""
        # A tensor is merged on one thread, and tensors in parallel: then the bytes do not depend on
        # how many cores there are. torch keeps that number per thread.
        torch.set_num_threads(1)
        crew = [Thread(target=self._loop, name=f"merge-{n}") for n in range(threads)]
        try:
            for thread in crew:
                thread.start()
            for thread in crew:
                thread.join()
        except BaseException as error:
            self._fail(error)
            _wait_for(thread for thread in crew if thread.ident is not None)
            raise
        if self._failures:
            raise self._failures[0]

    def _loop(self) -> None:
        torch.set_num_threads(1)
        try:
            while (task := self._take()) is not None:
                following: Sequence[Task] = ()
                try:
                    following = self._work(task)
                finally:
                    self._give_back(task, following)
        except BaseException as error:  # noqa: BLE001 - raised again by `run`
            self._fail(error)

    def _take(self) -> Task | None:
        """Return the next task, once there is memory for it; None when all is done or over."""
        with self._changed:
            while not self._failures:
                while not self._ready and self._waiting:
                    self._ready.extend(self._waiting.popleft().start(self._done))
                if self._ready and (not self._busy or _size(self._ready[0]) <= self._free):
                    self._busy += 1
                    self._free -= _size(self._ready[0])
                    return self._ready.popleft()
                if not self._ready and not self._busy:
                    break
                self._changed.wait()
            self._changed.notify_all()
            return None

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._failures.append(error)
            self._changed.notify_all()

    def _give_back(self, task: Task, following: Sequence[Task]) -> None:
        with self._changed:
            self._busy -= 1
            self._free += _size(task)
            self._ready.extendleft(reversed(following))
            self._changed.notify_all()


def _wait_for(threads: Iterable[Thread]) -> None:
    """Wait until all have ended, interrupted or not: they use files that are closed next."""
    for thread in threads:
        while thread.is_alive():
            with suppress(KeyboardInterrupt):
                thread.join()


def _cost(group: Group) -> int:
    return sum(step.cost.flops for step in group.steps)


def _size(task: Task) -> int:
    return task.stretch.step.cost.memory_bytes
