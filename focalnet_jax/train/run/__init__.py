"""What a run writes, shows and listens to, beside its training."""
