"""Trains or evaluates a model: `python -m focalnet_jax.train --help`."""

from focalnet_jax.train import command_line

if __name__ == "__main__":
    command_line.run()
