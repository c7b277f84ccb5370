"""The layer needs torch and NumPy, and nothing that only the harness needs."""

import subprocess
import sysconfig
import venv
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement

IMPL = Path(__file__).parents[2] / "impl"

STEP = """
import sys, torch
from zipfmax import AdaptiveLogSoftmaxWithLoss
torch.manual_seed(0)
layer = AdaptiveLogSoftmaxWithLoss(16, 60, [10, 30])
twin = torch.nn.AdaptiveLogSoftmaxWithLoss(16, 60, [10, 30])
twin.load_state_dict(layer.state_dict())
hidden, target = torch.randn(7, 16), torch.tensor([0, 9, 10, 29, 30, 59, 3])
for one in (layer, twin):
    optimizer = torch.optim.SGD(one.parameters(), lr=0.5)
    one(hidden, target).loss.backward()
    optimizer.step()
for name, value in twin.state_dict().items():
    torch.testing.assert_close(layer.state_dict()[name], value)
layer = AdaptiveLogSoftmaxWithLoss.from_counts(16, range(60), 32)
assert layer.label_ranks is not None
print(sorted({"typer", "pandas", "rich", "pytest", "scipy"} & set(sys.modules)))
"""


def closure(*names):
    """Distributions that these need, themselves included, without extras."""
    found, todo = {}, list(names)
    while todo:
        name = todo.pop()
        if name in found:
            continue
        found[name] = distribution(name)
        for line in found[name].requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                todo.append(requirement.name)
    return found.values()


def test_an_environment_with_torch_and_numpy_only_trains_a_step_as_torchs_layer_does(tmp_path):
    venv.create(tmp_path, with_pip=False)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(tmp_path)}))
    for needed in closure("torch", "numpy"):
        for top in {file.parts[0] for file in needed.files if file.parts[0] not in ("..", "__pycache__")}:
            link, source = site / top, Path(needed.locate_file(top))
            if source.exists() and not link.exists():
                link.symlink_to(source)
    (site / "zipfmax.pth").write_text(f"{IMPL}\n")
    python = tmp_path / "bin" / "python"
    absent = subprocess.run([python, "-I", "-c", "import typer"], capture_output=True, check=False)
    assert absent.returncode != 0, "the environment should hold the base only"
    done = subprocess.run([python, "-I", "-c", STEP], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    told = subprocess.run(
        [python, "-I", "-m", "zipfmax", "--help"], capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stderr
