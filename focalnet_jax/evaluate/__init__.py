"""Accuracies on the evaluation sets of ImageNet, beside the published ones."""
