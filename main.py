"""Trains or evaluates a FocalNet.

    python main.py                                     handwritten digits, the default
    python main.py --config=configs/base.py            ImageNet-1K
    python main.py --config=configs/base.py:tiny_srf --config.batch_size=256
    python main.py --mode=eval                         the newest checkpoint
    python main.py --config=configs/base.py --compile_for=v5e:16x16     without a TPU

The program is `focalnet_jax/train/command_line.py`: `python -m focalnet_jax.train` runs
it outside a checkout.
"""

from focalnet_jax.train import command_line

if __name__ == "__main__":
    command_line.run()
