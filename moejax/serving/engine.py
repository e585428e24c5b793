"""The engine: one thread that owns the model, and the queue in front of it.

Everything on the devices is asked for by that thread, one compiled call after the other. Other threads only put
requests into the queue, cancel them, and read their mailboxes; they never wait for the devices.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from moejax.decoding.sampling_arrays import shared_entropy
from moejax.decoding.scheduler import Scheduler
from moejax.decoding.slots import Slots
from moejax.loading import Model
from moejax.runtime.programs import Programs
from moejax.serving.fair_queue import FairQueue
from moejax.serving.jobs import EngineError, QueueFull, ServedRequest, wake
from moejax.serving.limits import served_features
from moejax.serving.metrics import Metrics
from moejax.serving.running import CHUNK_SECONDS, RunningRequests
from moejax.serving.settings import EngineSettings
from moejax.serving.shapes import Program, kv_cache_bytes, make_shapes

Status = Literal["loading", "ready", "draining", "dead", "stopped"]
STOP_SECONDS = 2.0  # that a server waits for the thread: far longer than a call of a program takes
FIRST_PROGRAMS = 2  # of all: with them a short prompt is fed and continued

REFUSALS: dict[Status, str] = {
    "loading": "the model is loading; ask again when /health says 200",
    "draining": "the server is shutting down",
    "stopped": "the server is shutting down",
    "dead": "the engine has failed; start the server again",
}


class Engine:
    """Loads a model, and serves jobs until it is stopped, as soon as the first programs are compiled.

    The others are compiled one by one, while there is nothing else to do, or when a job needs one.

    Args:
        load: makes the model, in the engine's thread.
        settings: sizes.
        metrics: written by the engine.
        say: prints a line about the start.
        url: where the page is, for that line.

    status: "loading" until the first programs are compiled.  was_ready: whether it ever served.
    error: what ended the thread, if something did.
    """

    def __init__(
        self,
        load: Callable[[], Model],
        settings: EngineSettings,
        metrics: Metrics,
        say: Callable[[str], None],
        url: str = "",
    ) -> None:
        self.settings, self.metrics = settings, metrics
        self.status: Status = "loading"
        self.was_ready = False
        self.error: BaseException | None = None
        self._load, self._say, self._url = load, say, url
        self._model: Model | None = None
        self._running: RunningRequests | None = None
        self._uncompiled: deque[Program] = deque()
        self._programs = 0
        self._queue = FairQueue(settings.max_queue)
        self._changed = threading.Condition()  # guards the queue and all that follows
        self._pauses = 0
        self._busy = True
        self._deadline: float | None = None
        self._thread = threading.Thread(target=self._run, name="moejax-engine", daemon=True)

    # --- for other threads ---
    @property
    def model(self) -> Model:
        """The model that is served.

        Raises:
            EngineError: when it is not there yet, or not any more.
        """
        if self.status != "ready" or self._model is None:
            raise EngineError(REFUSALS[self.status] if self.status != "ready" else REFUSALS["loading"])
        return self._model

    @property
    def programs(self) -> tuple[int, int]:
        """How many programs are there, and how many there will be; none is compiled for a job after that."""
        return self._programs - len(self._uncompiled), self._programs

    def start(self) -> None:
        """Starts the thread; returns at once."""
        self._thread.start()

    def submit(self, jobs: Sequence[ServedRequest], client: str = "") -> None:
        """Puts the jobs of a request of `client` into the queue, all or none.

        Raises:
            EngineError: when the engine does not take any.
            QueueFull: when they would be more than may wait.
        """
        with self._changed:
            if self.status != "ready":
                raise EngineError(REFUSALS[self.status])
            try:
                self._queue.add(jobs, client)
            except QueueFull:
                self.metrics.refused.inc(len(jobs))
                raise
            self._count_waiting()
            self._changed.notify_all()

    def cancel(self, jobs: Sequence[ServedRequest]) -> None:
        """Says that nobody waits for these any more; those that are finished stay so."""
        with self._changed:
            for job in jobs:
                job.cancelled = True
            self._changed.notify_all()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Holds the engine between two calls: requests wait, and the devices are idle.

        Entering blocks until the call that is running has ended and was handed out.
        """
        with self._changed:
            self._pauses += 1
            self._changed.wait_for(lambda: not self._busy or self.status in ("dead", "stopped"))
        try:
            yield
        finally:
            with self._changed:
                self._pauses -= 1
                self._changed.notify_all()

    def drain(self, seconds: float) -> None:
        """Takes nothing more, gives up what waits, and after `seconds` also what runs."""
        with self._changed:
            if self.status in ("ready", "loading"):
                self.status = "draining"
                self._deadline = time.perf_counter() + seconds
                self._give_up_queue(EngineError(REFUSALS["draining"]))
            self._changed.notify_all()

    def stop(self, seconds: float | None = None) -> None:
        """Gives up all jobs and ends the thread; returns when it has ended, or at once while the model is loading.

        seconds: after which it returns at the latest. Nothing interrupts a compilation, and `alive` is then true.
        """
        with self._changed:
            was_loading = self._running is None
            if self.status != "dead":
                self.status = "stopped"
            self._changed.notify_all()
        if not was_loading:
            self._thread.join(seconds)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    # --- the thread ---
    def _run(self) -> None:
        try:
            self._prepare()
            self._serve()
        except BaseException as error:  # whatever it is, nobody may wait for an engine that is gone
            self._die(error)

    def _prepare(self) -> None:
        model = self._load()
        shapes = make_shapes(model, self.settings)
        needed = kv_cache_bytes(model, shapes)
        per_device = " per device" if model.mesh.size > 1 else ""
        self._say(
            f"key/value cache: {shapes.parts.batch} sequences x {shapes.length:,} tokens, "
            f"{needed / 1e6:,.1f} MB{per_device}"
        )
        slots = Slots(model, shapes, served_features(model.config.vocab_size), shared_entropy())
        self._uncompiled.extend(shapes.programs(slots.feature_sets))
        self._programs = len(self._uncompiled)
        for _ in range(FIRST_PROGRAMS):
            self._compile_next(slots, model.programs)
        with self._changed:
            self._model, self._running = model, RunningRequests(Scheduler(slots), self.metrics)
            if self.status == "loading":
                self.status, self.was_ready = "ready", True
                self._say(f"ready: open {self._url}" if self._url else "ready")

    def _compile_next(self, slots: Slots, programs: Programs) -> None:
        slots.warm_up(self._uncompiled[0])
        self._uncompiled.popleft()
        if not self._uncompiled:
            self._say(programs.summary)

    def _serve(self) -> None:
        while (work := self._wait_for_work()) != "end":
            assert self._running is not None and self._model is not None
            if work == "serve":
                self._round(self._running)
            else:
                self._compile_next(self._running.scheduler.slots, self._model.programs)

    def _wait_for_work(self) -> Literal["serve", "compile", "end"]:
        """Waits until there is something to do and no pause."""
        running = self._running
        assert running is not None
        with self._changed:
            while True:
                for job in self._queue.take_cancelled():
                    self.metrics.finish(job, "abort")
                running.drop_cancelled()
                overdue = self._deadline is not None and time.perf_counter() > self._deadline
                if self.status == "stopped" or overdue:
                    self._give_up_all(running, EngineError(REFUSALS["stopped"]))
                if self.status == "stopped":
                    return "end"
                if not self._pauses:
                    running.take(self._queue)
                self._count_waiting()
                if running.jobs and not self._pauses:
                    self._busy = True
                    return "serve"
                running.flush()
                if self._uncompiled and not self._pauses and self.status == "ready":
                    self._busy = True
                    return "compile"
                self._busy = False
                self._changed.notify_all()
                left = None if self._deadline is None or not running.jobs else self._deadline - time.perf_counter()
                self._changed.wait(left if left is None else max(0.0, left) + 0.001)

    def _round(self, running: RunningRequests) -> None:
        """Feeds prompts for about CHUNK_SECONDS at most if some wait for their next token, then steps all sequences.

        At least one part is fed. Sequences without company wait for nobody: then everything is fed.
        """
        began = time.perf_counter()
        scheduler = running.scheduler
        while scheduler.feeding:
            running.feed()
            running.flush()
            if scheduler.running and time.perf_counter() - began + running.feed_seconds > CHUNK_SECONDS:
                break
            with self._changed:
                if self._pauses:
                    return
                running.take(self._queue)
                self._count_waiting()
        if scheduler.running:
            running.step(self._undisturbed)
        running.flush()

    def _undisturbed(self) -> bool:
        """Whether `_wait_for_work` would find nothing new, so that the next call may be made without it."""
        running = self._running
        assert running is not None
        with self._changed:
            disturbed = self.status != "ready" or self._pauses or running.can_take(self._queue)
            return not disturbed and not any(job.cancelled for job in (*self._queue, *running.jobs))

    def _count_waiting(self) -> None:
        self.metrics.waiting.set(len(self._queue))

    def _give_up_queue(self, error: EngineError) -> None:
        for job in self._queue:
            job.mailbox.end(error)
            self.metrics.finish(job, "abort")
        wake(job.mailbox for job in self._queue)
        self._queue.clear()
        self._count_waiting()

    def _give_up_all(self, running: RunningRequests, error: EngineError) -> None:
        self._give_up_queue(error)
        for job in running.jobs:
            running.give_up(job, error)
        running.flush()

    def _die(self, error: BaseException) -> None:
        with self._changed:
            self.status, self.error = "dead", error
            failed = EngineError(f"the engine has failed ({type(error).__name__}); start the server again")
            self._give_up_queue(failed)
            if self._running is not None:
                self._give_up_all(self._running, failed)
            self._busy = False
            self._changed.notify_all()
        if self.was_ready:  # before that whoever started it learns it
            first_line = str(error).partition("\n")[0]
            self._say(f"the engine has failed: {type(error).__name__}: {first_line}")
