"""The CUDA compiler accepts every file of kernels/ for the GPUs of 2018 to 2025, and no kernel spills registers to memory."""

import os
import re
import shutil
import subprocess

import pytest
from hypothesis import settings

from minifcn.fast.gpu import launch

# T4, A100, H100 and H200, the same with wgmma, the RTX 50 series: the first and the fullest on an ordinary day, all of them
# with HYPOTHESIS_PROFILE=ci.
ARCHITECTURES = ("sm_75", "sm_80", "sm_90", "sm_90a", "sm_120") if settings.default.max_examples > 25 else ("sm_75", "sm_90a")
# A wheel's nvcc finds its parts by $CUDA_HOME alone.
NVCC = shutil.which("nvcc") or shutil.which(os.path.join(os.environ.get("CUDA_HOME", ""), "bin", "nvcc"))
FILES = sorted(path.stem for path in launch.KERNELS.glob("*.cu"))


def architectures_of(file):
    return [a for a in ARCHITECTURES
            if (file != "warpgroup" or a == "sm_90a") and (file not in launch.NEED_TENSOR_CORES or a != "sm_75")]


@pytest.mark.skipif(NVCC is None, reason="no nvcc: the kernels are not compiled for a GPU")
@pytest.mark.parametrize("file", FILES)
def test_nvcc(file, tmp_path):
    """One nvcc for all architectures: it works at several of them at a time."""
    targets = [f"-gencode=arch={a.replace('sm', 'compute')},code={a}" for a in architectures_of(file)]
    report = subprocess.run([NVCC, "-std=c++17", *targets, "--threads=0", "-fatbin", "-Xptxas", "-v",
                             launch.KERNELS / f"{file}.cu", "-o", tmp_path / "kernels.fatbin"],
                            capture_output=True, text=True, check=True).stderr
    compiled = re.findall(r"Compiling entry function '(\w+)' for '(\w+)'", report)
    spilled = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert sorted(compiled) == sorted((name, a) for name in kernels_of(file) for a in architectures_of(file))
    assert len(spilled) >= len(compiled) and set(spilled) == {("0", "0", "0")}
    assert "warning" not in report


@pytest.mark.parametrize(("architecture", "file"), [(a, file) for file in FILES for a in architectures_of(file)])
def test_nvrtc(architecture, file):
    """The compiler that CuPy uses, with CuPy's options; unlike nvcc it has no standard headers. Needs no device."""
    nvrtc = pytest.importorskip("cupy_backends.cuda.libs.nvrtc", reason="no CuPy: the kernels are not compiled by NVRTC")
    try:
        nvrtc.getVersion()
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"CuPy finds no NVRTC: {error}")
    program = nvrtc.createProgram(launch.source(file), f"{file}.cu", (), ())
    nvrtc.compileProgram(program, ("-std=c++17", f"-arch={architecture}", "-ftz=true", "--device-as-default-execution-space"))
    cubin = nvrtc.getCUBIN(program)
    assert all(name.encode() in cubin for name in kernels_of(file))


def kernels_of(file):
    return sorted(name for name, (its_file, _) in launch.signatures().items() if its_file == file)


def test_every_kernel_is_parsed():
    sources = [launch.source(file) for file in FILES]
    assert len(launch.signatures()) == sum(source.count("__global__ void") for source in sources) > 40
    types = {c_type for _, parameters in launch.signatures().values() for c_type, _ in parameters}
    pointers = {t.removeprefix("const ").removesuffix("*") for t in types - {"int", "float"}}
    assert pointers == launch.DTYPES.keys()


def test_files_that_need_tensor_cores_are_named():
    """The files that include device.cuh, whose instructions a T4 has not."""
    assert {file for file in FILES if "cp.async" in launch.source(file)} == launch.NEED_TENSOR_CORES | {"warpgroup"}
