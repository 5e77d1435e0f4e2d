"""What tests of a watch share: a look at a time, and checkpoints that appear."""

import shutil

from ptq_eval.jobs.events import Measured

QUICK = {"every": 0.01, "settle": 0.0}


CSV = "degradation.csv"


def save(trajectory, run, step):
    shutil.copytree(trajectory / f"checkpoint-{step}", run / f"checkpoint-{step}")


def steps_of(events):
    return [event.checkpoint.step for event in events if isinstance(event, Measured)]


def each_look(*happenings):
    """A sleep that lets one thing happen at each look, and then fails the test."""
    left = iter(happenings)

    def sleep(_seconds):
        next(left)()

    return sleep
