"""Benchmarks: a suite of tasks and methods unfolded into cells, run with the code of madiff.train, and told in tables.

`suite` and `folder` say what there is to do and where it lies, `work` does one job, `launchers` and `runner` do many,
`aggregate`, `tables`, `drawing` and `page` turn the records into statements; `questions` are what a suite asks beyond
them, effects and curves, `answers` what was measured of these, and `modes` draws what policies make of several modes.
"""
