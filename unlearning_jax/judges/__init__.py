"""Frozen classifiers: images to scores. One judge, one file."""
