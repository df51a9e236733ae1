"""What holds for all data, sets and scores, on examples drawn by hypothesis: the same few each time."""

from hypothesis import settings

few = settings(max_examples=25, deadline=None, derandomize=True, database=None)
