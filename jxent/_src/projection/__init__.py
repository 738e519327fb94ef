"""Losses from the output projection, a block of examples or of classes at a time."""
