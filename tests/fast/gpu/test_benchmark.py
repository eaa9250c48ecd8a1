"""benchmarks.gpu end to end on the pretended device, tiny, with PyTorch on the CPU: that it measures, compares, writes and
survives a failing section. What the times are means nothing here."""

import json
import time
from types import SimpleNamespace

import pytest
import streams

from benchmarks import gpu as benchmark
from minifcn.core import backend
from minifcn.data.synthetic import write_synthetic

torch = pytest.importorskip("torch", reason="PyTorch is not installed: there is nothing to compare with")


class TimedEvent(streams.Event):
    def record(self, stream):
        super().record(stream)
        self.wall = time.perf_counter()


@pytest.fixture
def options(gpu_on_cpu, monkeypatch, tmp_path):
    cuda = SimpleNamespace(**vars(gpu_on_cpu.cuda) | {
        "Event": TimedEvent,
        "get_elapsed_time": lambda start, end: 1e3 * (end.wall - start.wall)})
    pool = SimpleNamespace(total_bytes=lambda: 0, free_all_blocks=lambda: None)
    monkeypatch.setattr(gpu_on_cpu, "cuda", cuda)
    monkeypatch.setattr(gpu_on_cpu, "get_default_memory_pool", lambda: pool, raising=False)
    monkeypatch.setattr(benchmark, "LEAST_MS", 0)
    monkeypatch.setattr(benchmark, "WARM", 1)
    options = benchmark.parse(["--batch", "2", "--size", "64", "64", "--width", "4", "--json", str(tmp_path / "gpu.json")])
    options.torch_device, options.rounds, options.seeds, options.classes = "cpu", 1, 1, 3
    options.copies, options.products = (1,), (("layer1", 4, 600, 36),)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)                    # several wait for each other while other processes use the cores
    yield options
    torch.backends.cudnn.benchmark = False
    torch.set_num_threads(threads)


def test_sections(options, capsys):
    options.sections, options.precisions, options.inference = ["steps", "images", "kernels"], ("tf32",), (1,)
    results = benchmark.report(options, {"gpu": "none"})
    assert json.loads(options.json.read_text()) == json.loads(json.dumps(results))
    options.sections, options.precisions = ["ops", "accuracy"], ("tf32",)
    results |= benchmark.report(options, {"gpu": "none"})
    assert [(name, result) for name, result in results.items() if "failed" in str(result)] == []

    for name, case in results["ops"].items():
        if isinstance(case, dict):
            assert 0 < case["tf32"]["ours error"] < 1e-3 and case["tf32"]["ours ms"] > 0 and case["tf32"]["torch ms"] > 0, name
    assert 4 < results["accuracy"]["ours / torch tf32"]                  # torch's is fp32 here
    full, small = results["steps"]["2 x 64 x 64"], results["steps"]["2 x 32 x 32"]
    assert len(full) == 5 and len(small) == 4                            # variants and ratios
    assert results["images"]["1"]["ratio"] > 0
    rows = results["kernels"]["tf32"]["rows"]
    assert {"im2col_4", "col2im_4", "gemm, one piece", "cells_loss", "sgd"} <= {row[0] for row in rows}
    assert sum(row[2] for row in rows) == pytest.approx(results["kernels"]["tf32"]["step_ms"])
    assert "images/s" in capsys.readouterr().out


def test_quick_chooses_less():
    assert benchmark.parse(["--quick"]).sections == benchmark.QUICK and benchmark.parse(["--quick"]).minutes == 3
    everything, names = benchmark.parse([]), benchmark.SECTIONS.keys()
    assert everything.sections[0] == "tests" and set(everything.sections) == names and everything.minutes == 9


def test_training_reads_what_the_command_line_wrote(options, tmp_path):
    options.precisions = ("tf32",)              # one run is enough here
    options.data, options.device, options.epochs, options.workers = tmp_path / "data", "cpu", 1, 1
    write_synthetic(options.data, train=4, val=2, size=(64, 64))
    options.sections = ["training"]
    result = benchmark.report(options, {})["training"]
    assert 0 <= result["tf32"]["mean_iou"] <= 1 and result["tf32"]["images_per_second"] > 0
    assert 0 <= result["tf32"]["waiting"] <= 1 and result["tf32"]["curve"]
    options.epochs = 0                          # refused by the command line: its message must not be lost
    assert "epochs is 0" in benchmark.report(options, {})["training"]["failed"]


def test_a_failing_section_does_not_stop_the_others(options, monkeypatch):
    def broken(options):
        raise ZeroDivisionError("planted")

    monkeypatch.setitem(benchmark.SECTIONS, "ops", broken)
    monkeypatch.setitem(benchmark.SECTIONS, "device", lambda options: {"fine": 1})
    options.sections = ["ops", "device"]
    results = benchmark.report(options, {})
    assert "planted" in results["ops"]["failed"] and results["device"]["fine"] == 1
    options.minutes = 0.0
    assert "were over" in benchmark.report(options, {})["device"]["left out"]


def test_the_cases_run_in_pytorch_at_every_size():
    from benchmarks import gpu_ops
    for case in gpu_ops.cases(2, (64, 96), 4, 5):
        arrays, labels, cotangent = gpu_ops.inputs(case)
        exact = gpu_ops.theirs(case, arrays, labels, cotangent, "cpu", torch.float64)()
        assert gpu_ops.worst_error(gpu_ops.theirs(case, arrays, labels, cotangent, "cpu")(), exact) < 1e-5, case.name


def test_without_a_device_it_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(backend, "cupy", None)
    assert benchmark.main(["--json", str(tmp_path / "gpu.json")]) == 2
    assert "nothing to measure: CuPy is not installed" in capsys.readouterr().err
    assert not (tmp_path / "gpu.json").exists()
    for wrong in (["nonsense"], ["--size", "100", "480"]):
        with pytest.raises(SystemExit):
            benchmark.main(wrong)


def test_show(capsys):
    benchmark.show(["what", "ms"], [("a", 1.23456), ("b", 4321.0), ("c", 2.5e-7), ("d", None), ("e", 3)])
    cells = [line.split("|")[2].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert cells[-5:] == ["1.23", "4321", "2.5e-07", "-", "3"]


def test_alternate_takes_the_median_of_each(monkeypatch):
    clock = iter(range(10**6))
    monkeypatch.setattr(benchmark, "synchronize", lambda: None)
    monkeypatch.setattr(benchmark, "LEAST_MS", 5.0)
    now = [0.0]
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: now[0])
    order = []

    def step(name, seconds):
        def run():
            order.append(name)
            now[0] += seconds(next(clock))
        return run

    slow, fast = step("slow", lambda k: 0.02 + 0.5 * (k % 7 == 0)), step("fast", lambda k: 0.002)
    ms = benchmark.alternate({"slow": slow, "fast": fast}, 5)
    assert ms["slow"] == pytest.approx(20) and ms["fast"] == pytest.approx(2)
    assert order[-3:] == ["slow", "fast", "fast"]                        # 2 ms are repeated until they last 5
