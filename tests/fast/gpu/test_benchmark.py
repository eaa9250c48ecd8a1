"""benchmarks.gpu end to end on the pretended device, tiny, with PyTorch on the CPU: that it measures, compares, writes and
survives a failing section. What the times are means nothing here."""

import json
import os
import time
from collections import Counter
from types import SimpleNamespace

import pytest
import streams

from benchmarks import gpu as benchmark
from benchmarks import shapes
from minifcn.core import backend
from minifcn.data.synthetic import write_synthetic
from minifcn.data.voc import Folder

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
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)         # oneDNN aborts in fp16 on some CPUs
    options = benchmark.parse(["--batch", "2", "--size", "64", "64", "--width", "4", "--json", str(tmp_path / "gpu.json")])
    options.torch_device, options.rounds, options.seeds, options.classes = "cpu", 1, 1, 3
    options.copies, options.products, options.square = (1,), (("layer1", 4, 600, 36),), (8, 8, 8)
    options.start = time.perf_counter()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)                    # several wait for each other while other processes use the cores
    yield options
    torch.backends.cudnn.benchmark = False
    torch.set_num_threads(threads)


def test_sections(options, capsys):
    options.sections, options.precisions, options.inference = ["steps", "small", "images", "kernels"], ("tf32",), (1,)
    results = benchmark.report(options, {"gpu": "none"}, benchmark.alone)
    assert json.loads(options.json.read_text()) == json.loads(json.dumps(results))
    options.sections, options.precisions = ["plain", "ops", "accuracy"], ("tf32",)
    results |= benchmark.report(options, {"gpu": "none"}, benchmark.alone)
    assert [(name, result) for name, result in results.items() if "failed" in str(result)] == []

    for name, case in results["ops tf32"].items():
        if name == "largest error":
            assert 1e-5 < case["tf32"] < 1e-3
        elif isinstance(case, dict):
            assert 0 < case["tf32"]["ours error"] < 1e-3 and case["tf32"]["ours ms"] > 0 and case["tf32"]["torch ms"] > 0, name
    assert 4 < results["accuracy tf32"]["ours / torch tf32"]             # torch's is fp32 here
    variants = {"minifcn tf32", "minifcn tf32, not recorded", "torch tf32", "torch fp16"}
    ratios = {f"{a} / {b}" for a in variants for b in variants if "minifcn" in a and "torch" in b}
    for part, N in (("steps tf32", 2), ("small", 2)):
        assert results[part].keys() == variants | ratios | {"seconds"}
        ours = results[part]["minifcn tf32"]
        assert ours["ms an image"] == ours["ms"] / N == pytest.approx(1e3 / ours["images_per_second"])
        assert results[part]["minifcn tf32 / torch tf32"] == ours["ms"] / results[part]["torch tf32"]["ms"]
    assert results["images"]["1"]["ratio"] > 0 and results["plain"]["minifcn definitions and blocks.py"]["ms"] > 0
    rows = results["kernels tf32"]["tf32"]["rows"]
    assert {"im2col_4", "col2im_4", "gemm, one piece", "cells_loss", "sgd"} <= {row[0] for row in rows}
    assert sum(row[2] for row in rows) == pytest.approx(results["kernels tf32"]["tf32"]["step_ms"])
    assert "images/s" in capsys.readouterr().out


def test_the_ladder(options, monkeypatch):
    """Each rung that takes a layer is timed, here of the stem and of layer1, whose 64 filters are too few for one of them."""
    monkeypatch.setattr(shapes, "CONVS", shapes.CONVS[:2])
    options.sections, options.width, options.size, options.batch, options.rounds = ["ladder"], 64, (32, 32), 1, 0
    result = benchmark.report(options, {}, benchmark.alone)["ladder"]
    rungs = {what for what, *_ in benchmark.LADDER if "warpgroup, tf32" not in what}
    assert rungs | {"cuDNN, tf32", "seconds"} == result.keys()
    stem = {what for what, by in result.items() if what != "seconds" and "stem" in "".join(by)}
    assert stem == {"columns, fp32", "implicit GEMM, fp32", "gx: columns, fp32", "columns, tf32", "implicit GEMM, tf32",
                    "gw: columns, fp32", "gw: columns, tf32", "gw: stem, tf32", "cuDNN, tf32"}
    assert all(one["tflops"] > 0 for by in result.values() if isinstance(by, dict) for one in by.values())


def test_every_goal_has_a_place(options, capsys):
    """What the sections write is what the goals read: each goal gets the number at its place, and a verdict."""
    results = {}
    for k, (_, where, _, _) in enumerate(benchmark.GOALS):
        place = results
        for key in where[:-1]:
            place = place.setdefault(key, {})
        place[where[-1]] = 10.0 * k
    found = benchmark.judged(results)
    assert [value for value, _ in found.values()] == [10.0 * k for k in range(len(benchmark.GOALS))]
    assert found["tf32 step / PyTorch tf32"][1] == "aim reached" and found["an epoch of 900 + 445 images, s"][1] == "missed"
    results["steps tf32"]["minifcn tf32 / torch tf32"] = 0.6
    assert benchmark.judged(results)["tf32 step / PyTorch tf32"] == (0.6, "kept")
    assert {verdict for _, verdict in benchmark.judged({"images": {"8": {"failed": "x"}}}).values()} == {"not measured"}
    assert {where[0].split()[0] for _, where, *_ in benchmark.GOALS} <= benchmark.SECTIONS.keys()
    assert "not measured" in capsys.readouterr().out


def test_parts_in_order(options):
    options.sections, options.precisions = ["tests", "steps", "device"], ("tf32", "fp16")
    assert [name for name, *_ in benchmark.parts(options)] == ["tests", "steps tf32", "steps fp16", "device"]
    assert benchmark.parse(["--quick"]).sections == benchmark.QUICK and benchmark.parse(["--quick"]).minutes == 3
    everything, names = benchmark.parse([]), benchmark.SECTIONS.keys()
    assert everything.sections[0] == "tests" and set(everything.sections) == names and everything.minutes == 9


def test_training_reads_what_the_command_line_wrote(options, tmp_path):
    options.precisions = ("tf32",)              # one run is enough here
    options.data, options.device, options.epochs, options.workers = tmp_path / "data", "cpu", 1, 1
    write_synthetic(options.data, train=4, val=2, size=(64, 64))
    options.sections = ["training"]
    result = benchmark.report(options, {}, benchmark.alone)["training tf32"]
    assert 0 <= result["tf32"]["mean_iou"] <= 1 and result["tf32"]["images_per_second"] > 0
    assert 0 <= result["tf32"]["waiting"] <= 1 and result["tf32"]["curve"]
    options.epochs = 0                          # refused by the command line: its message must not be lost
    assert "epochs is 0" in benchmark.report(options, {}, benchmark.alone)["training tf32"]["failed"]


def test_an_epoch_is_the_difference_of_two_runs(options, tmp_path, monkeypatch):
    runs, sizes = [], Counter()

    def train(options, data, out, *settings):
        runs.append((len(list((data / "JPEGImages").iterdir())), len(Folder(data, "val")), settings[-1]))
        sizes.update(Folder(data, "val").sizes())
        return 5.0 + 2.0 * settings[-1]

    monkeypatch.setattr(benchmark, "train", train)
    options.sections, options.epoch_images = ["epoch"], (70, 20)
    assert benchmark.report(options, {}, benchmark.apart)["epoch"]["epoch"] == 2.0
    assert runs == [(90, 20, 1), (90, 20, 3)]
    assert sizes == dict(zip(benchmark.SIZES, (20, 10, 6, 2, 2)))        # of two times 20 images


def test_a_failing_section_does_not_stop_the_others(options, monkeypatch):
    def broken(options):
        raise ZeroDivisionError("planted")

    monkeypatch.setitem(benchmark.SECTIONS, "ladder", broken)
    monkeypatch.setitem(benchmark.SECTIONS, "device", lambda options: {"fine": 1})
    options.sections = ["ladder", "device"]
    results = benchmark.report(options, {}, benchmark.alone)
    assert "planted" in results["ladder"]["failed"] and results["device"]["fine"] == 1
    options.minutes = 0.0
    assert "were over" in benchmark.report(options, {}, benchmark.alone)["device"]["left out"]


def test_a_section_that_ends_its_process_or_never_ends(options, monkeypatch):
    """A fault on the device does the first, a barrier that is never reached the second. The new process has no CuPy."""
    assert "NoneType" in benchmark.apart(options, "device", ("tf32",))["failed"]
    monkeypatch.setattr(benchmark, "_into", os.abort)                    # called with arguments: a TypeError ends the process
    assert benchmark.apart(options, "device", ("tf32",)) == {"failed": "its process ended with 1"}
    monkeypatch.setattr(benchmark, "LONGEST", -10.0)
    assert benchmark.apart(options, "device", ("tf32",)) == {"failed": "killed after 0 s"}


def test_a_failing_variant_costs_its_own_row(options, capsys):
    def broken():
        raise ZeroDivisionError("planted")

    lost = iter([None] * 3)                     # works while it is prepared, and then no more
    ms = benchmark.alternate({"broken": broken, "fine": time.monotonic, "lost": lambda: next(lost)}, 3)
    assert ms.keys() == {"fine", "lost"} and benchmark.ratio(ms, "fine", "broken") is None
    assert "broken: FAILED" in capsys.readouterr().out


def test_files_of_tests_run_apart(options, monkeypatch, tmp_path, capsys):
    folder = tmp_path / "tests" / "fast" / "gpu"
    folder.mkdir(parents=True)
    (tmp_path / "setup.cfg").write_text("[tool:pytest]\nmarkers = gpu: needs one\n")
    for name, body in (("good", "pass"), ("bad", "assert 0, 'planted'"), ("crash", "import os; os._exit(9)")):
        (folder / f"test_{name}.py").write_text(f"import pytest\n@pytest.mark.gpu\ndef test_it():\n    {body}\n")
    (folder / "test_other.py").write_text("def test_it():\n    pass\n")
    monkeypatch.setattr(benchmark, "ROOT", tmp_path)
    options.sections = ["tests"]
    result = benchmark.report(options, {}, benchmark.apart)["tests"]
    assert {name[len("tests/fast/gpu/test_"):-3]: one["exit"] for name, one in result["files"].items()} == {
        "bad": 1, "crash": 9, "good": 0}
    assert result["failed"] == ["tests/fast/gpu/test_bad.py", "tests/fast/gpu/test_crash.py"]
    assert "planted" in capsys.readouterr().out


def test_the_cases_run_in_pytorch_at_every_size():
    from benchmarks import gpu_ops
    for case in gpu_ops.cases(2, (64, 96), 4, 5):
        arrays, labels, cotangent = gpu_ops.inputs(case)
        exact = gpu_ops.theirs(case, arrays, labels, cotangent, "cpu", torch.float64)()
        assert gpu_ops.worst_error(gpu_ops.theirs(case, arrays, labels, cotangent, "cpu")(), exact) < 1e-5, case.name


def test_one_wrong_number_among_many_is_an_error():
    from benchmarks import gpu_ops
    exact = torch.ones(10_000, dtype=torch.float64)
    wrong = exact.clone()
    wrong[1234] += 0.5
    assert gpu_ops.worst_error([exact, wrong], [exact, exact]) == gpu_ops.worst_error([-2 * wrong], [-2 * exact]) == 0.5


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
