"""What can be learnt: each task is one object behind the protocol of `tasks.base`."""
