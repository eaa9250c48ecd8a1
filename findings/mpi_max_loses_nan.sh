#!/usr/bin/env bash
# MPI: the maximum over the ranks of a number that is NaN on one of them need not be NaN, and ranks may disagree about it.
#
# mpi4py 4.1.2 with the MPICH 5.0.2 wheel. Four ranks, NaN on one of them, Allreduce with MPI.MAX. A program that asks "did any rank
# overflow?" by the maximum of the losses does not hear of it. The standard leaves it open: MPI_MAX is defined by comparisons,
# and NaN compares false. MPI.SUM gives NaN on every rank, whichever rank has it.
#
# Seen: MAX is not NaN on at least one rank, for at least one place of the NaN; SUM is NaN everywhere. Exits non-zero if not.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.4.* mpi4py==4.1.2 mpich==5.0.2
cat > "$folder/max.py" <<'PY'
import numpy as np
from mpi4py import MPI

comm = MPI.COMM_WORLD
lost = 0
for place in range(comm.size):
    mine, largest, total = np.array([np.nan if comm.rank == place else 1.0]), np.empty(1), np.empty(1)
    comm.Allreduce(mine, largest, MPI.MAX)
    comm.Allreduce(mine, total, MPI.SUM)
    seen = comm.gather((largest[0], total[0]))
    if comm.rank == 0:
        print(f"NaN on rank {place}: MAX {[float(a) for a, _ in seen]}, SUM {[float(b) for _, b in seen]}", flush=True)
        assert all(np.isnan(b) for _, b in seen)
        lost += any(not np.isnan(a) for a, _ in seen)
if comm.rank == 0:
    assert lost, "MAX kept every NaN"
    print("MAX lost it for", lost, "of", comm.size, "places")
PY
timeout 60 "$folder/venv/bin/mpiexec" -n 4 "$folder/venv/bin/python" "$folder/max.py"
