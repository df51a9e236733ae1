"""Imported by worker processes before they are forked, so that they share one copy of the package in memory."""

from . import bridge

bridge.load()
