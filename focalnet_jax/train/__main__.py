"""Trains or evaluates a FocalNet.

python -m focalnet_jax.train                                the digits, the default
python -m focalnet_jax.train --config=base:tiny_srf --config.batch_size=256
python -m focalnet_jax.train --config=mine.py               a recipe of one's own
python -m focalnet_jax.train --mode=eval                    the newest checkpoint
"""

from focalnet_jax.train import command_line

if __name__ == "__main__":
    command_line.run()
