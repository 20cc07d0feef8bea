"""Searches that misbehave, for child processes to import."""

import os


def dies(recording, seed, budget):
    os._exit(7)


def raises(recording, seed, budget):
    raise RuntimeError("no luck")
