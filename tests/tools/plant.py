"""Mistakes as people make them, planted one at a time: shows which test notices each, and which no test notices.

    python tests/tools/plant.py                       all of planted.py; exits 1 if one survives
    python tests/tools/plant.py threads winograd      only bugs whose kind or file contains one of these words
    python tests/tools/plant.py --list                the bugs, without running them

mutate.py changes an operator or a constant. A developer's slip is larger and does less: a condition that is too wide, a sum
that is not reset before the second epoch, an option that is forgotten where another one is set. Each bug of planted.py is a
patch with the input that shows it. It runs in the same way as a mutant (mutate.py says how): against the tests that know its
file, which stand in TESTS here and there. They must pass without a bug: run the suite first.
"""

import argparse
import sys

import mutate
from planted import BUGS

TESTS = {                                       # file -> the tests that know it; those of mutate.TESTS count too
    "core/backend.py": "backend arithmetic",
    "core/dispatch.py": "dispatch arithmetic",
    "core/machine.py": "machine arithmetic",
    "core/tensor.py": "tensor written basic arena torch_reference",
    "data/classes.py": "classes masks voc loader",
    "data/loader.py": "loader loader_options void run parity",
    "data/masks.py": "masks voc survey photos",
    "data/voc.py": "voc loader loader_options survey run",
    "fast/blocks.py": "conditions blocks_walk dispatch conv",
    "fast/cpu/columns.py": "conditions fast dispatch fused",
    "fast/cpu/descent.py": "conditions fast dispatch",
    "fast/cpu/filters.py": "conditions fast dispatch fused",
    "fast/cpu/head.py": "conditions fast dispatch",
    "fast/cpu/layout.py": "conditions fast dispatch fused",
    "fast/cpu/lines.py": "conditions fast dispatch fused",
    "fast/cpu/loss.py": "conditions fast dispatch",
    "fast/cpu/memory.py": "fast",
    "fast/cpu/pixels.py": "conditions fast dispatch fused",
    "fast/cpu/stem.py": "conditions fast dispatch fused",
    "fast/cpu/threads.py": "conditions fast dispatch",
    "fast/cpu/winograd.py": "conditions fast dispatch fused",
    "fast/fused.py": "conditions fused dispatch models",
    "fast/gpu/convolution.py": "gpu_conditions convolution_kernels cuda_path",
    "fast/gpu/descent.py": "gpu_conditions descent_kernels cuda_path",
    "fast/gpu/graph.py": "graph cuda_path",
    "fast/gpu/head.py": "gpu_conditions head_kernels cuda_path",
    "fast/gpu/launch.py": "gpu_conditions launch cuda_path",
    "fast/gpu/layout.py": "gpu_conditions convolution_kernels norm_kernels pool_kernels head_kernels cuda_path",
    "fast/gpu/norm.py": "gpu_conditions norm_kernels cuda_path",
    "fast/gpu/pool.py": "gpu_conditions pool_kernels cuda_path",
    "fast/gpu/stem.py": "gpu_conditions norm_kernels cuda_path",
    "files/atomic.py": "atomic",
    "files/weights.py": "weights pretrained",
    "inference.py": "inference scoring cli graph",
    "models/fcn.py": "models torch_reference",
    "models/resnet.py": "models torch_reference",
    "training/arena.py": "arena optim fit",
    "training/checkpoint.py": "checkpoint run",
    "training/parallel.py": "parallel",
    "training/parts.py": "arithmetic void before_the_first_step pretrained fit train_step run run_options cli",
    "training/pretrained.py": "pretrained",
    "training/report.py": "report void fit run run_options cli chapter",
    "training/run.py": "void run_on_gpu fit before_the_first_step checkpoint run run_options chapter pretrained cli",
    "training/scoring.py": "scoring void fit run run_options",
    "training/step.py": "train_step void fit run run_options parity graph cuda_path",
    "functional/batchnorm.py": "batchnorm odd_arguments torch_reference parallel",
    "functional/conv.py": mutate.TESTS["functional/conv.py"] + " dispatch",
    "training/optim.py": mutate.TESTS["training/optim.py"] + " run run_options",
    "nn/blocks.py": "blocks fast dispatch train_step",
}


def mutants(words=()):
    """A Mutant for every bug whose kind or file contains one of the words. Raises ValueError for a patch that does not fit."""
    for kind, bugs in BUGS.items():
        for file, old, new, shows in bugs:
            text = (mutate.ROOT / "minifcn" / file).read_text()
            if text.count(old) != 1:
                raise ValueError(f"planted bug no longer applies: {file} has {old!r} {text.count(old)} times")
            if not words or any(word in kind or word in file for word in words):
                key = f"{file} | {kind} | {new.strip()} | {shows}".replace("\n", " ")
                yield mutate.Mutant(file, key, text.replace(old, new))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("words", nargs="*", help="only bugs whose kind or file contains one of these")
    parser.add_argument("--list", action="store_true", help="print the bugs and stop")
    parser.add_argument("--jobs", type=int, default=2, help="children at a time")
    options = parser.parse_args()
    chosen, killers = list(mutants(options.words)), {}
    if options.list:
        print(*(bug.key for bug in chosen), sep="\n")
        return 0

    def report(bug, outcome, killer):
        killers[bug.key] = killer or outcome
        print(f"{'SURVIVED' if outcome == 'survived' else killer or outcome}: {bug.key}", flush=True)

    mutate.TESTS |= TESTS
    mutate.IN_PROCESSES |= {bug.key for bug in chosen if "| several processes |" in bug.key}       # tests run mpiexec
    mutate.run(chosen, options.jobs, None, report)
    print(f"\n{'kind':44} planted  noticed")
    kinds = [bug.key.split(" | ")[1] for bug in chosen]
    noticed = [kind for kind, bug in zip(kinds, chosen) if killers[bug.key] != "survived"]
    for kind in dict.fromkeys(kinds):
        print(f"{kind:44} {kinds.count(kind):7} {noticed.count(kind):8}")
    print(f"{'all planted bugs':44} {len(kinds):7} {len(noticed):8}")
    return int(len(noticed) < len(kinds))


if __name__ == "__main__":
    sys.exit(main())
