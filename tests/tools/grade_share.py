"""How much does `minifcn grade` alone notice? It grades every mutant of the functions that it knows, and counts.

    python tests/tools/grade_share.py [words]         only files whose path contains one of the words

The mutants are those of mutate.py; each is put into the live functions of a forked child, which grades what depends on them
until something is wrong. Printed: killed by a level that counts, noticed by an advisory level only, survived (each listed),
and the names that were given: a name is wrong if the mutant and the catalogue's version differ on 300 cases that the
diagnosis has not seen. A catalogue share stands at the end: entries that are recognised when they are submitted.
"""

import argparse
import contextlib
import json
import os
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1] / "support")]

import mutate  # noqa: E402
import plant  # noqa: E402
from ours import FORMS, OURS  # noqa: E402

from minifcn.core.dispatch import readable_only  # noqa: E402
from minifcn.grade.call import Caller  # noqa: E402
from minifcn.grade.catalogue import ENTRIES, entries_of  # noqa: E402
from minifcn.grade.diagnosis import behaviour, diagnose, inputs_of, same  # noqa: E402
from minifcn.grade.judge import judge  # noqa: E402
from minifcn.grade.subjects import SUBJECTS  # noqa: E402

SECONDS = 60                                    # of the processor, for one mutant
UNSEEN = range(1000, 1075)                      # seeds of each stage that the diagnosis does not use

# file -> (subjects that depend on it, prefixes of the functions in it that they reach)
REACH = {
    "functional/basic.py": ("Tensor relu relu_grad", "unbroadcast add sub mul rectify_grad relu sum"),
    "functional/linear.py": ("Tensor", "matmul"),
    "functional/conv.py": ("conv2d conv2d_grad_x conv2d_grad_w conv2d_grad_b im2col col2im conv_transpose2d", ""),
    "functional/conv_forms.py": ("loops matrix conv_matrix", ""),
    "functional/conv_transpose.py": ("conv_transpose2d conv_transpose2d_grad_x conv_transpose2d_grad_w", ""),
    "functional/batchnorm.py": ("batch_norm batch_norm_grad", "batch_norm normalize normalize_grad scale_shift pixel_axes "
                                "per_channel move_running check_batch_norm"),
    "functional/pool.py": ("max_pool2d max_pool2d_grad avg_pool2d", "max_pool2d maximum avg_pool2d _arguments"),
    "functional/resize.py": ("interpolate", ""),
    "functional/loss.py": ("log_softmax cross_entropy cross_entropy_grad", "cross_entropy softmax_nll log_sum_exp _targets"),
    "functional/step.py": ("sgd_step", "descend"),
    "nn/init.py": ("bilinear_kernel", "bilinear_kernel"),
    "training/metrics.py": ("confusion_matrix mean_iou", "ConfusionMatrix.__init__ ConfusionMatrix.update "
                            "ConfusionMatrix.iou_per_class ConfusionMatrix.mean_iou"),
}


def graded(file):
    """(name, function) of what a mutant of the file is graded by."""
    for word in REACH[file][0].split():
        if word in FORMS:
            yield from FORMS[word]
        else:
            yield next(pair for pair in OURS if pair[0] == word)


def reached(mutant):
    """Whether the mutant lies in a function that the subjects call."""
    prefixes, function = REACH[mutant.file][1].split(), mutant.function[1]
    if function in ("module", "planted") or "together" in function:
        return function == "planted"
    return not prefixes or any(function.startswith(prefix) for prefix in prefixes)


def child(mutant, answer):
    """Grade one mutant and write the outcome as JSON; never returns."""
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_DATA, (4 * 2**30,) * 2)
    outcome = {"state": "survived", "name": None, "subject": None, "true": None}
    try:
        if not mutate.exchange(mutant):
            outcome["state"] = "elsewhere"
        else:
            with readable_only():
                outcome = verdict_on(mutant, outcome)
    except BaseException as error:
        outcome["state"] = f"no verdict: {error!r}"
    finally:
        answer.write_text(json.dumps(outcome))
        os._exit(0)


def verdict_on(mutant, outcome):
    for name, function in graded(mutant.file):
        verdict = judge(SUBJECTS[name], function)
        if verdict["state"] == "wrong":
            named = verdict["diagnosis"]
            return outcome | {"state": "killed", "name": named, "subject": name,
                              "true": named and truly(SUBJECTS[name], function, named)}
        if verdict["advice"]:
            outcome["state"] = "advisory"
    return outcome


def truly(subject, function, sentence):
    """Does the function behave like the version of that name on cases that the diagnosis has not seen?"""
    version = next(entry.function for entry in entries_of(subject.name) if entry.sentence == sentence)
    mine, other = Caller(subject, function), Caller(subject, version)
    return all(same(behaviour(subject, mine, a), behaviour(subject, other, a)) for a in inputs_of(subject, UNSEEN))


def run_all(mutants, jobs):
    """mutant -> outcome, `jobs` children at a time."""
    outcomes, running, waiting, start = {}, {}, list(mutants), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        while waiting or running:
            while waiting and len(running) < jobs:
                mutant = waiting.pop(0)
                answer = Path(folder, str(len(outcomes) + len(waiting)))
                sys.stdout.flush()
                pid = os.fork()
                if pid == 0:
                    null = os.open(os.devnull, os.O_WRONLY)
                    os.dup2(null, 1)
                    os.dup2(null, 2)
                    child(mutant, answer)
                running[pid] = mutant, answer
            try:
                pid, _ = os.wait()
            except KeyboardInterrupt:            # the summary is of what is done
                break
            mutant, answer = running.pop(pid)
            outcomes[mutant] = {"state": "killed", "name": None, "subject": None, "true": None}         # it hung or died
            with contextlib.suppress(OSError, ValueError):
                outcomes[mutant] = json.loads(answer.read_text())
            if outcomes[mutant]["state"] not in ("killed", "advisory", "elsewhere"):
                print(f"{outcomes[mutant]['state'].upper()}  {mutant.key}", flush=True)
            if outcomes[mutant]["true"] is False:
                print(f"MISNAMED  {mutant.key}: {outcomes[mutant]['name']}", flush=True)
            if len(outcomes) % 100 == 0:
                print(f"{len(outcomes)} of {len(mutants)}, {time.monotonic() - start:.0f} s", flush=True)
    return outcomes


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("words", nargs="*")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--sample", type=int, metavar="N", help="only N mutants, drawn from seed 0")
    options = parser.parse_args()
    os.chdir(mutate.ROOT)
    files = [f for f in REACH if not options.words or any(word in f for word in options.words)]
    known = mutate.equivalents()
    everything = [m for f in files for m in mutate.mutants_of(f)] + [m for m in plant.mutants() if m.file in files]
    mutants = [m for m in everything if m.key not in known and reached(m)]
    if options.sample and options.sample < len(mutants):
        mutants = random.Random(0).sample(mutants, options.sample)
    outcomes = run_all(mutants, options.jobs)

    print(f"\n{'file':<32} mutants  killed  advisory  survived  named  wrongly named")
    for file in [*files, "all"]:
        rows = [o for m, o in outcomes.items() if file in (m.file, "all") and o["state"] != "elsewhere"]
        states = Counter(o["state"] for o in rows)
        named = [o for o in rows if o["name"]]
        print(f"{file:<32} {len(rows):7} {states['killed']:7} {states['advisory']:9} {states['survived']:9} {len(named):6} "
              f"{sum(not o['true'] for o in named):14}")
    entries = [(name, entry) for name, versions in ENTRIES.items() for entry in versions]
    recognised = sum(diagnose(SUBJECTS[n], Caller(SUBJECTS[n], e.function)) == e.sentence for n, e in entries)
    print(f"catalogue: {recognised} of {len(entries)} wrong versions recognised")
    return 0


if __name__ == "__main__":
    sys.exit(main())
