"""Tasks: rows and a verb in, metrics, a table and sample pictures out."""

from vlmzoo.evaluate.tasks.base import Task, TaskConfig, check_tasks

__all__ = ["Task", "TaskConfig", "check_tasks"]
