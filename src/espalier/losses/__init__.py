"""Losses as functions of tensors: each returns what is to be summed, and nothing here takes a mean over a batch."""
