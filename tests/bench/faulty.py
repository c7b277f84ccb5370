"""Implementations that misbehave, for `path/file.py:Class`: each is torch.nn's layer with one fault."""

import os
import signal
import time

import torch
from torch import nn


class Sound(nn.AdaptiveLogSoftmaxWithLoss):
    """No fault."""


class Raises(Sound):
    def forward(self, input, target):
        raise ValueError("this layer always raises\nand says so on two lines")


class RunsOutOfMemory(Sound):
    def forward(self, input, target):
        torch.empty(1 << 60, dtype=torch.int8)


class KillsItself(Sound):
    def forward(self, input, target):
        os.kill(os.getpid(), signal.SIGKILL)


class Hangs(Sound):
    def forward(self, input, target):
        time.sleep(600)


class Wrong(Sound):
    def forward(self, input, target):
        output, loss = super().forward(input, target)
        return output, loss * 1.001


class DiesAtTheThirdRun(Sound):
    runs = 0

    def forward(self, input, target):
        DiesAtTheThirdRun.runs += 1
        if DiesAtTheThirdRun.runs == 3:
            os._exit(7)
        return super().forward(input, target)
