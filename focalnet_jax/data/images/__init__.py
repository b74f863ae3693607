"""Images on the host: decoding, transforms and augmentation."""
