"""Tune: which batch settings carry the highest rate within an objective.

    curve      run times of the model over batch sizes, measured
    costs      what the way to the model and back costs beside the runs, measured
    simulate   the real batcher, with a simulated clock, workers and arrivals
    grid       the settings that are worth a try, and the highest rate of each, by simulation
    verify     the best few and the defaults, by real open-loop runs
    report     what was predicted, what was measured, and what to write into a configuration

Nothing is fitted: a simulated run takes as long as one of the measured runs of its size, so
that tails stay what they are.
"""
