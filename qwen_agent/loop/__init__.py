"""What the loop in react.py is put together from: a run and its prompt, the model's part of a step, the tools' part.

Pure but for the clock and threads; knows runtimes and tools only by their protocols.
"""
