"""The CUDA compiler accepts kernels.cu for the GPUs of 2020 and 2022, and no kernel spills registers to memory."""

import re
import shutil
import subprocess

import pytest

from minifcn.fast.gpu import launch

ARCHITECTURES = ("sm_80", "sm_90")              # A100, H100 and H200
NVCC = shutil.which("nvcc")


@pytest.mark.skipif(NVCC is None, reason="no nvcc: kernels.cu is not compiled for a GPU")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nvcc(architecture, tmp_path):
    report = subprocess.run([NVCC, "-std=c++17", f"-arch={architecture}", "-cubin", "-Xptxas", "-v", launch.SOURCE,
                             "-o", tmp_path / "kernels.cubin"], capture_output=True, text=True, check=True).stderr
    compiled = re.findall(rf"Compiling entry function '(\w+)' for '{architecture}'", report)
    spilled = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert sorted(compiled) == sorted(launch.signatures())
    assert len(spilled) >= len(compiled) and set(spilled) == {("0", "0", "0")}
    assert "warning" not in report


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nvrtc(architecture):
    """The compiler that CuPy uses, with CuPy's options; unlike nvcc it has no standard headers. Needs no device."""
    nvrtc = pytest.importorskip("cupy_backends.cuda.libs.nvrtc", reason="no CuPy: kernels.cu is not compiled by NVRTC")
    try:
        nvrtc.getVersion()
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"CuPy finds no NVRTC: {error}")
    program = nvrtc.createProgram(launch.SOURCE.read_text(), "kernels.cu", (), ())
    nvrtc.compileProgram(program, ("-std=c++17", f"-arch={architecture}", "-ftz=true", "--device-as-default-execution-space"))
    cubin = nvrtc.getCUBIN(program)
    assert all(name.encode() in cubin for name in launch.signatures())


def test_every_kernel_is_parsed():
    source = launch.SOURCE.read_text()
    assert len(launch.signatures()) == source.count("__global__") > 10
    types = {c_type for parameters in launch.signatures().values() for c_type, _ in parameters}
    pointers = {t.removeprefix("const ").removesuffix("*") for t in types - {"int", "float"}}
    assert pointers == launch.DTYPES.keys()
