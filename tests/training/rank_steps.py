"""Trains a small FCN-32s on drawn images and writes weights and losses to a file: one process, or the ranks of mpiexec.

    mpiexec -n 3 python tests/training/rank_steps.py OUT --width 64 --steps 20 --batches 5 2

--batches: numbers of images of the steps, repeated; some ranks get one more than others, or none.
"""

import argparse

import numpy as np

from minifcn import models, nn
from minifcn.data.loader import Batch
from minifcn.training import parallel
from minifcn.training.optim import SGD
from minifcn.training.step import train_step

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("out")
parser.add_argument("--width", type=int, default=64)
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--batches", type=int, nargs="+", default=[5, 2])
parser.add_argument("--dtype", default="float64")
parser.add_argument("--lr", type=float, default=0.02)
parser.add_argument("--bucket", type=int, default=parallel.BUCKET)
parser.add_argument("--no-sync-norm", action="store_true")
args = parser.parse_args()

world, parallel.BUCKET = parallel.world(), args.bucket
parallel.start(world, "cpu")
nn.init.seed(0)
net = models.fcn32s(5, width=args.width).to(args.dtype)
if not args.no_sync_norm:
    parallel.sync_norm(net, world)
optimizer = SGD(net.parameters(), args.lr, momentum=0.9, weight_decay=1e-4)
sums = []
for step in range(args.steps):
    rng, N = np.random.default_rng(step), args.batches[step % len(args.batches)]
    images = rng.integers(0, 256, (N, 3, 64, 96), np.uint8)
    labels = rng.integers(0, 5, (N, 4, 6), np.uint8).repeat(16, 1).repeat(16, 2)                    # (N, 64, 96)
    labels[rng.random(labels.shape) < rng.random((N, 1, 1))] = 255       # each image has another number of valid pixels
    mine = world.share(N)
    sums.append(train_step(net, optimizer, Batch(images[mine], labels[mine], [""] * N), world=world))
if world.rank == 0:
    np.savez(args.out, sums=np.array(sums, float), **net.state_dict())
