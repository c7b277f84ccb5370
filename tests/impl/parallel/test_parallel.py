"""A layer over two ranks: its results and gradients are those of one process."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
LIMIT_S = 300


MODULES = ("checks.py", "checks_ecosystem.py")


def checks(modules=MODULES):
    sys.path.insert(0, str(HERE))
    try:
        from ranks import checks_of

        return [name for module in modules for name in checks_of(module)]
    finally:
        sys.path.remove(str(HERE))


def run_ranks(folder, world, modules=MODULES, **environment):
    """What each check met, of every rank: name to tracebacks, None for none. Kills ranks that take too long."""
    ranks = [
        subprocess.Popen(
            [
                *(sys.executable, str(HERE / "ranks.py"), str(rank), str(world)),
                *(str(folder / "store"), str(folder / f"{rank}"), *modules),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                **environment,
            },
        )
        for rank in range(world)
    ]
    outputs = []
    for rank in ranks:
        try:
            outputs.append(rank.communicate(timeout=LIMIT_S)[0])
        except subprocess.TimeoutExpired:
            rank.kill()
            outputs.append(f"killed after {LIMIT_S} s\n{rank.communicate()[0]}")
    files = [folder / f"{rank}" for rank in range(world)]
    return [pickle.loads(f.read_bytes()) if f.exists() else {} for f in files], "\n".join(outputs)


@pytest.fixture(scope="module")
def met(tmp_path_factory):
    return run_ranks(tmp_path_factory.mktemp("ranks"), 2)


@pytest.mark.parametrize("name", checks())
def test_over_two_ranks(met, name):
    hold(met, name)


def hold(met, name):
    """Fail where a check failed on some rank."""
    found, output = met
    for rank, of_rank in enumerate(found):
        assert name in of_rank, f"rank {rank} did not get to it\n{output}"
        assert of_rank[name] is None, f"rank {rank}:\n{of_rank[name]}"


KERNELS = ("checks_kernels.py",)


@pytest.mark.slow
def test_the_kernels_over_two_ranks_of_the_interpreter(tmp_path):
    """All at once: a rank takes seconds to start, and the interpreter more."""
    met = run_ranks(tmp_path, 2, KERNELS, TRITON_INTERPRET="1")
    for name in checks(KERNELS):
        hold(met, name)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_over_two_gpus(tmp_path):
    """Over NCCL: the kernels, the other backends, no wait for the device, and a CUDA graph."""
    found, output = met = run_ranks(tmp_path, 2, KERNELS, ZIPFMAX_RANKS_DEVICE="cuda")
    assert found[0], output
    for name in found[0]:
        hold(met, name)
