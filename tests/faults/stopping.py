"""SIGINT and SIGTERM at random moments, to the program alone or to all of its processes, once or twice."""

from __future__ import annotations

import random
import signal
import time

from tests.faults.programs import Lost, Program
from tests.faults.world import WAYS, Fault, World, expect_whole

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_HAS_STARTED, _HAS_ENDED = "CPU threads", "metrics in"  # logged at these moments
_AT_ONCE = 5.0  # seconds; the current step takes three times as long


def stop_training(world: World, rng: random.Random) -> None:
    """Stop a training once or more often, each time with one signal."""
    run = world.new_run()
    name = rng.choice(list(WAYS))
    for _ in range(rng.randint(1, 3)):
        number = rng.choice(_SIGNALS)
        program = world.start_training(run, WAYS[name], handicaps={"slow_steps": (0.03,)})
        program.wait_for("training split")
        time.sleep(rng.uniform(0, 1.5 * world.durations[name]))
        program.send(number, to_all=rng.random() < 0.5)
        outcome = program.wait()
        program.expect_no_survivors()
        expect_whole(run)
        outcome.expect_no_traceback()
        if (run / "metrics.json").exists():
            break
        if outcome.status != 128 + number:
            raise Lost(f"expected status {128 + number}: {outcome.show()}")
        if _HAS_STARTED in outcome.log and f"--resume {run}" not in outcome.last_line:
            raise Lost(f"expected how to resume: {outcome.show()}")
    world.finish(run, WAYS[name])


def stop_twice(world: World, rng: random.Random) -> None:
    """A second signal does not wait for the end of the step."""
    run = world.new_run()
    program = world.start_training(run, WAYS["saving every step"], handicaps={"slow_steps": (3 * _AT_ONCE,)})
    program.wait_for(_HAS_STARTED)
    time.sleep(rng.uniform(0, 0.5))
    program.send(signal.SIGINT)
    program.wait_for("stopping after this step")
    number = rng.choice(_SIGNALS)
    program.send(number)
    sent = time.monotonic()
    outcome = program.wait()
    if time.monotonic() - sent > _AT_ONCE or outcome.status != 128 + number:
        raise Lost(f"expected status {128 + number} at once: {outcome.show()}")
    outcome.expect_no_traceback()
    program.expect_no_survivors()
    expect_whole(run)
    world.finish(run, WAYS["saving every step"])


def stop_other_programs(world: World, rng: random.Random) -> None:
    """Programs without state to save exit with one line, and the same command then succeeds."""
    number = rng.choice(_SIGNALS)
    folder, run = world.fresh("cache"), world.new_run()
    evaluation = world.data.flags("--eval_ckpt", str(world.reference / "model.ckpt"), "--description", run.name)

    def start() -> Program:
        if caching:
            return world.start_caching(folder, slow_disk=(0.03,))
        return world.starter.start("method.evaluate", evaluation, {"slow_reading": (0.01,)})

    caching = rng.random() < 0.5
    program = start()
    program.wait_for("vocab" if caching else "evaluated split")
    time.sleep(rng.uniform(0, 0.8))
    program.send(number)
    outcome = program.wait()
    program.expect_no_survivors()
    outcome.expect_no_traceback()
    if outcome.status == 0 or _HAS_ENDED in outcome.log + outcome.output:
        return
    if outcome.status != 128 + number:
        raise Lost(f"expected status {128 + number}: {outcome.show()}")
    start().wait().expect_done()


FAULTS = (
    Fault("SIGINT or SIGTERM while training", stop_training, 30),
    Fault("a second signal", stop_twice, 6),
    Fault("SIGINT or SIGTERM of the other programs", stop_other_programs, 10),
)
