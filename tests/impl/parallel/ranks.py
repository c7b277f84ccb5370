"""Runs the checks of a module on several ranks: `python ranks.py MODULE RANK WORLD STORE OUT`.

Each check gets a group of its own, with a short time limit: a collective that another rank does not start
fails that check, and the next begins anew. What each check met is written for the test that reads it.
"""

import datetime
import importlib.util
import pickle
import sys
import traceback
import warnings
from pathlib import Path

import torch
import torch.distributed as dist

LIMIT_S = 20


def checks_of(path):
    """The checks of a file by name, in its order."""
    spec = importlib.util.spec_from_file_location("checks", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.CHECKS


def main(path, rank, world, store, out):
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    limit = datetime.timedelta(seconds=LIMIT_S)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    found = {}
    for name, check in checks_of(path).items():
        group = dist.new_group(timeout=limit)
        try:
            check(group)
            found[name] = None
        except Exception:
            found[name] = traceback.format_exc()
        Path(out).write_bytes(pickle.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5])
