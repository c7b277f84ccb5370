"""Runs the checks of modules on several ranks: `python ranks.py RANK WORLD STORE OUT MODULE...`.

Each check gets a group of its own, with a short time limit: a collective that another rank does not start
fails that check, and the next starts over. What each check met is written for the test that reads it.
"""

import datetime
import importlib
import os
import pickle
import sys
import time
import traceback
import warnings
from pathlib import Path

import torch
import torch.distributed as dist

LIMIT_S = 60
DEVICE = "ZIPFMAX_RANKS_DEVICE"
"""Of the layers: cpu, over Gloo, or cuda, over NCCL with a GPU a rank."""


def checks_of(path):
    """The checks of a file of this folder by name, in its order."""
    return importlib.import_module(Path(path).stem).CHECKS


def main(rank, world, store, out, *paths):
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype")
    warnings.filterwarnings("ignore", message="Initializing zero-element")  # uniform tails are meant
    limit = datetime.timedelta(seconds=LIMIT_S)
    on_gpu = os.environ.get(DEVICE, "cpu") == "cuda"
    if on_gpu:
        torch.cuda.set_device(rank)
    kind = "nccl" if on_gpu else "gloo"
    dist.init_process_group(kind, init_method=f"file://{store}", rank=rank, world_size=world)
    found = {}
    for name, check in [pair for path in paths for pair in checks_of(path).items()]:
        group = dist.new_group(timeout=limit)
        begin = time.perf_counter()
        try:
            check(group)
            found[name] = None
        except Exception:
            found[name] = traceback.format_exc()
        print(f"{time.perf_counter() - begin:.2f} s {name}")
        Path(out).write_bytes(pickle.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
