"""What Windows does not have is taken away: minifcn imports, trains, resumes and predicts all the same.

A folder cannot be opened there, and locks come from msvcrt. Paths stay this system's: this is no test of backslashes.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
CODE = """
import errno, multiprocessing, os, shutil, signal, subprocess, sys, tempfile, types     # before the system looks different
sys.modules.update(dict.fromkeys(["fcntl", "resource", "pwd", "grp", "termios"]))
for name in "fork sched_getaffinity O_NOFOLLOW O_NONBLOCK O_NOCTTY mkfifo geteuid".split():
    delattr(os, name)
os.process_cpu_count = os.cpu_count             # Python's own asks sched_getaffinity here
for name in "SIGUSR1 SIGHUP SIGALRM".split():
    delattr(signal, name)
shutil._use_fd_functions = False                # as it finds out there; Python 3.14 keeps the function
shutil._rmtree_impl = getattr(shutil, "_rmtree_unsafe", None)
held = set()

def locking(handle, mode, count):
    file = os.fstat(handle).st_ino
    if file in held:
        raise OSError(errno.EACCES, "Permission denied")
    held.add(file)

sys.modules["msvcrt"] = types.SimpleNamespace(locking=locking, LK_NBLCK=2)
opened, close = os.open, os.close

def no_folders(path, *arguments, **settings):
    if os.path.isdir(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))
    return opened(path, *arguments, **settings)

def unlock(handle):
    held.discard(os.fstat(handle).st_ino)
    close(handle)

os.open, os.close = no_folders, unlock

from minifcn.__main__ import main
from minifcn.data.synthetic import write_synthetic
from minifcn.files import atomic
atomic.WINDOWS = True
data = str(write_synthetic("shapes", train=4, val=2, size=(64, 96)))
train = ["train", "--data", data, "--out", "run", "--width", "2", "--crop", "64", "64", "--batch-size", "2", "--device", "cpu"]
assert main([*train, "--epochs", "1"]) == 0
assert main([*train, "--epochs", "2", "--resume"]) == 0
assert main(["evaluate", "run/best.npz"]) == 0
image = os.path.join(data, "JPEGImages", os.listdir(os.path.join(data, "JPEGImages"))[0])
assert main(["predict", "run/checkpoint.npz", image, "--out", "out"]) == 0
with atomic.locked("run", "training"):
    assert main([*train, "--resume"]) == 2
"""


def test_without_what_windows_lacks(tmp_path):
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", CODE], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    assert "another process is training into this folder" in run.stderr
    assert not [line for line in run.stderr.splitlines() if "warning" in line and "threadpoolctl" not in line]
    assert len(list((tmp_path / "out").iterdir())) == 2
