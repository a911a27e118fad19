"""Copies while training: the door of `training_step`, the step, and which steps are probed."""
