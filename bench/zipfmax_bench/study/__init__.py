"""What adaptive softmax costs in quality and saves in time: the same model trained with each output layer.

Read `training.py` first: it is one training run. `run.py` runs all of them and keeps the records; `corpus.py`
is the text, `outputs.py` the output layers, `trunk.py` what lies below them, `break_even.py` the map of where
a whole step is faster.
"""
