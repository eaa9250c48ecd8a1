"""Importing minifcn takes NumPy alone: all other packages are met where they are used."""

import subprocess
import sys
from pathlib import Path

OTHERS = "PIL matplotlib tqdm threadpoolctl fcntl mpi4py cupy torch onnx hypothesis".split()

CODE = """
import sys
sys.modules.update(dict.fromkeys(sys.argv[1:]))         # None: the import of this name fails
import numpy as np
import minifcn, minifcn.functional, minifcn.nn, minifcn.models, minifcn.training, minifcn.data, minifcn.inference
import minifcn.plotting, minifcn.check, minifcn.__main__
from minifcn import Tensor, nn
from minifcn.training import SGD
net = nn.Conv2d(3, 4, 3)
net(Tensor(np.ones((1, 3, 5, 5), np.float32))).sum().backward()
SGD(net.parameters(), lr=0.1).step()
print(minifcn.__file__)
"""


def test_numpy_alone():
    root = Path(__file__).parents[1]
    run = subprocess.run([sys.executable, "-c", CODE, *OTHERS], cwd=root, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == str(root / "minifcn" / "__init__.py")
