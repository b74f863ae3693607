"""Data sets: those of TFDS, and folders of images."""
