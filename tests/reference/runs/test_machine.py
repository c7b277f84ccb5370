import subprocess
import sys
from importlib import metadata

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
