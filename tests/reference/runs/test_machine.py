import subprocess
import sys
import types
from importlib import metadata

import pytest
import torch

from zipfmax_reference.runs import machine


def test_versions_are_those_installed():
    found = machine.versions()
    assert found["torch"] == metadata.version("torch")
    assert found["numpy"] == metadata.version("numpy")


def test_describing_the_machine_imports_no_other_framework():
    program = (
        "import sys; from zipfmax_reference.runs import machine; machine.describe(); machine.versions();"
        "print({'paddle', 'tensorflow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_machine_has_cores_memory_and_threads():
    described = machine.describe()
    assert described["cores"] >= 1
    assert described["threads"] >= 1
    assert described["memory_bytes"] > 1 << 28
    assert described["cpu"]


def test_a_package_in_someone_elses_repository_has_no_commit(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / "zipfmax.py").write_text("")
    monkeypatch.setattr(machine.zipfmax, "__file__", str(tmp_path / "zipfmax.py"))
    assert machine.commit() is None


def test_a_checkout_has_its_commit_and_says_whether_it_was_changed(tmp_path, monkeypatch):
    file = tmp_path / "zipfmax.py"
    file.write_text("")
    git = ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *arguments], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
    monkeypatch.setattr(machine.zipfmax, "__file__", str(file))
    assert machine.commit() == head.strip()
    file.write_text("changed")
    assert machine.commit() == head.strip() + "-dirty"


class Nvml:
    """In the place of nvidia-ml-py: a driver with a mask of throttle reasons, or one that refuses."""

    class NVMLError(Exception):
        pass

    def __init__(self, mask=0, refuses=()):
        self._mask, self._refuses = mask, refuses

    def nvmlInit(self):  # noqa: N802
        self._answer("init", None)

    def nvmlDeviceGetHandleByUUID(self, uuid):  # noqa: N802
        assert uuid == "GPU-12ab"
        return self._answer("handle", "handle")

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle):  # noqa: N802
        assert handle == "handle"
        return self._answer("reasons", self._mask)

    def _answer(self, call, value):
        if call in self._refuses:
            raise self.NVMLError(call)
        return value


def throttle(monkeypatch, nvml, device="cuda"):
    monkeypatch.setattr(machine, "find_spec", lambda name: None if nvml is None else object())
    monkeypatch.setattr(machine, "import_module", lambda name: nvml)
    properties = types.SimpleNamespace(uuid="12ab")
    monkeypatch.setattr(machine.torch.cuda, "get_device_properties", lambda device: properties)
    return machine.Throttle.of(torch.device(device)).state()


@pytest.mark.parametrize(
    ("mask", "state"),
    [(0x00, False), (0x01, False), (0x04, False), (0x08, True), (0x20, True), (0x40, True), (0x80, True)],
)
def test_heat_and_brakes_throttle_a_gpu_and_idleness_and_the_power_limit_do_not(monkeypatch, mask, state):
    assert throttle(monkeypatch, Nvml(mask)) is state


@pytest.mark.parametrize("refuses", ["init", "handle", "reasons"])
def test_a_driver_that_refuses_leaves_throttling_unknown(monkeypatch, refuses):
    assert throttle(monkeypatch, Nvml(0, (refuses,))) is None


def test_without_the_library_and_on_a_cpu_throttling_is_unknown(monkeypatch):
    assert throttle(monkeypatch, None) is None
    assert throttle(monkeypatch, Nvml(0x08), device="cpu") is None
