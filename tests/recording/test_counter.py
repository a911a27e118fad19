"""The steps of the measured optimizer, counted by its hooks."""

import random

from lightning_landscape.recording.counter import StepCounter


def test_it_counts_as_a_list_of_events_does():
    generator, counter = random.Random(0), StepCounter(step=7)
    events = [generator.choice(["backward", "step"]) for _ in range(200)]
    for event in events:
        counter.note_backward() if event == "backward" else counter.note_step()
    steps = [place for place, event in enumerate(events) if event == "step"]
    idle = [place for place in steps if place == 0 or events[place - 1] != "backward"]
    assert counter.step == 7 + len(steps)
    assert counter.idle == len(idle) > 0


def test_a_step_without_a_backward_pass_is_idle():
    counter = StepCounter()
    counter.note_step()
    assert (counter.step, counter.idle, counter.moved) == (1, 1, False)


def test_several_backward_passes_are_one_step():
    counter = StepCounter()
    for _ in range(3):
        counter.note_backward()
    assert counter.backward
    counter.note_step()
    assert (counter.step, counter.idle, counter.backward, counter.moved) == (1, 0, False, True)


def test_a_new_fit_may_be_refused():
    assert StepCounter(12, 24).may_refuse
