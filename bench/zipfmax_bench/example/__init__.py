"""A worked example that runs: a small language model on any text file, its output layer chosen by one flag.

Read `train.py` first: it is the program, top to bottom.
"""
