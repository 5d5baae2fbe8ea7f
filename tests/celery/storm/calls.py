"""The calls of the storm, in all forms that Celery has for them."""

import time

from celery import chain, chord, group
from celery.exceptions import ChordError

from tests.celery.storm.keys import policy_of
from tests.celery.storm.tasks import Failed, app, follow, gather


class Call:
    """A call, and where it gets its answer from: results whose values are each a number and a run.

    Attributes:
        at: when it was made.
        awaited: the ids of the tasks that have to end for it, the last one last.
    """

    def __init__(self, form, key, numbers, result, *, members, at):
        self.at, self.form, self.key, self.numbers, self.result = at, form, key, numbers, result
        self.policy = policy_of(key)
        self.awaited = [*members, result.id] if form != "group" else list(members)
        self._answered = False

    def answered(self):
        self._answered = self._answered or self.result.ready()
        return self._answered

    def answers(self):
        """What was answered to each of its numbers: a number that was run, and the run; None for what was skipped."""
        value = self.result.get(propagate=False)
        if isinstance(value, ChordError):
            return []
        values = value if len(self.numbers) > 1 else [value]
        return [each.args if isinstance(each, Failed) else each for each in values]

    def __str__(self):
        return f"{self.form} {self.key} {self.numbers} {self.awaited}"


def by_delay(task, key, numbers, how):
    return task.delay(key, numbers[0], how), ()


def by_id(task, key, numbers, how):
    return task.apply_async((key, numbers[0], how), task_id=f"storm-{numbers[0]}-{time.time_ns()}"), ()


def by_name(task, key, numbers, how):
    return app.send_task(task.name, (key, numbers[0], how)), ()


def by_chain(task, key, numbers, how):
    result = chain(task.si(key, numbers[0], "succeed"), follow.s())()
    return result, (result.parent.id,)


def by_chord(task, key, numbers, how):
    result = chord([task.s(key, number) for number in numbers])(gather.s())
    return result, tuple(member.id for member in result.parent.results)


def by_group(task, key, numbers, how):
    result = group(task.s(key, number) for number in numbers)()
    return result, tuple(member.id for member in result.results)


FORMS = {
    "delay": by_delay, "id": by_id, "name": by_name, "chain": by_chain, "chord": by_chord, "group": by_group,
}  # fmt: skip
SEVERAL = ("chord", "group")
