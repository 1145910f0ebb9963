"""What is made of a run's events: the log, the run resumed or repeated from it, traces for others.

Imports the agent; the agent knows nothing of it.
"""
