"""Random sequences of faults against a training run: no saved state is lost or mixed up.

A sequence starts one run with ``--resume`` again and again until it has finished. A start may have
another batch size, gradient accumulation or number of processes than the one before, and may end by
SIGKILL, by SIGTERM, or on a full disk. Between two starts a file may be damaged. Afterwards, each
checkpoint has the state of a run without faults and with the same changes at the same iterations.

The environment variable ``SEQUENCES`` is their number, ``SEQUENCE_SEED`` the first one's seed.
"""

import contextlib
import os
import random
import re
import socket
import subprocess
from collections import Counter

import pytest
from fork_server import start
from training_runs import CONFIG, assert_same_weights, overrides, state

from paddleseg_segformer.engine import checkpoint, run_dir
from paddleseg_segformer.engine.checkpoint import DamagedError
from paddleseg_segformer.engine.metric_writer import read_lines

pytestmark = [pytest.mark.integration, pytest.mark.slow]
ITERS, KEEP, MAX_FAULTS, TIMEOUT = 6, 2, 12, 120
# Batch size, gradient accumulation, processes.
ARRANGEMENTS = ((2, 2, 1), (4, 1, 1), (1, 1, 1), (2, 1, 2))
FILES = ("model.pdparams", "ema_model.pdparams", "model.pdopt")
CODES = {"kill": (-9, 0), "term": (143, -15, -9, 0), "full disk": (1, 0), "none": (0,)}


def launch(scenes, save_dir, arrangement, *more, max_file_bytes=None):
    """Start the processes of a run; returns them, the first one first."""
    batch_size, accumulate, count = arrangement
    command = [
        *("tools/train.py", "--config", CONFIG, "--device", "cpu", "--iters", ITERS),
        *("--batch_size", batch_size, "--grad_accum_steps", accumulate, "--use_ema"),
        *("--save_interval", 1, "--log_iters", 1, "--save_dir", save_dir, *more),
        *("--opts", *overrides(scenes)),
    ]
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = ["{}:{}".format(*s.getsockname()) for s in sockets]
    for s in sockets:
        s.close()
    environments = [dict(os.environ) for _ in range(count)]
    for rank, environment in enumerate(environments if count > 1 else ()):
        environment |= {"PADDLE_TRAINER_ID": str(rank), "PADDLE_TRAINERS_NUM": str(count)}
        environment |= {"PADDLE_TRAINER_ENDPOINTS": ",".join(addresses)}
        environment |= {"PADDLE_CURRENT_ENDPOINT": addresses[rank]}
    return [start(*command, env=e, max_file_bytes=max_file_bytes) for e in environments]


def finish(processes, seconds=None, kill=True):
    """Wait for the processes, and kill or stop them after some seconds; returns code and output."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        processes[0].wait(seconds)
    if processes[0].poll() is None:
        for process in processes:
            process.kill() if kill else process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            processes[0].wait(10)
        processes[0].kill()  # like a launcher: one that waits for another gets no signal in Paddle
    processes[0].wait(TIMEOUT)
    for process in processes[1:]:  # they wait for a killed one
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10 if processes[0].returncode in (0, 143) else 1)
        process.kill()
    outputs = ["".join(process.communicate(TIMEOUT)) for process in processes]
    return processes[0].returncode, outputs[0], "".join(outputs)


def intact(save_dir):
    """The manifests of the intact checkpoints by iteration."""
    found = {}
    for folder in run_dir.list_checkpoints(save_dir) if save_dir.is_dir() else ():
        with contextlib.suppress(DamagedError):
            manifest = checkpoint.verify(folder)
            found[manifest["iteration"]] = manifest
    return found


class Sequence:
    """A run, and what is known of its checkpoints.

    Attributes:
        histories: By iteration of a checkpoint: the arrangement of each iteration up to it.
        best: History and file entry of the best model, or None.
    """

    def __init__(self, seed, scenes, folder):
        self.random, self.scenes, self.save_dir = random.Random(seed), scenes, folder
        self.changes, self.arrangement = seed % 2 == 1, ARRANGEMENTS[0]
        self.histories, self.best, self.log = {}, None, []

    def run(self):
        """Start the run until it has finished; returns the number of starts."""
        for starts in range(1, MAX_FAULTS + 2):
            if self.changes and self.random.random() < 0.5:
                self.arrangement = self.random.choice(ARRANGEMENTS)
            faults = ("kill", "kill", "term", "full disk") if starts < MAX_FAULTS else ("none",)
            fault = self.random.choice(faults)
            if self.start(fault) == 0 and ITERS in self.histories:
                return starts
            if self.random.random() < 0.3:
                self.damage()
        raise AssertionError("the run does not finish")

    def start(self, fault):
        """Start the run once, and check what it leaves."""
        before, limit, seconds = intact(self.save_dir), None, TIMEOUT
        first = max(before, default=0)
        if fault == "full disk":
            limit = self.random.choice((500, 3000, 60_000, 200_000, 500_000))
        elif fault != "none":
            seconds = self.random.uniform(0, 0.8 * self.arrangement[2])
        processes = launch(
            self.scenes,
            self.save_dir,
            self.arrangement,
            *("--resume", "--do_eval", "--keep_checkpoint_max", KEEP),
            max_file_bytes=limit,
        )
        code, log, everything = finish(processes, seconds, fault != "term")
        self.log.append(f"== {fault} {self.arrangement} limit {limit}: {code}\n{everything}")
        assert code in CODES[fault]
        assert "Traceback" not in log
        resumed = re.search(r"Resumed from .*/iter_(\d+) at iteration (\d+)", log)
        if resumed:
            assert int(resumed[1]) == int(resumed[2]) == first
        elif f"iteration 0 to {ITERS}" in log:
            assert first == 0
        after = intact(self.save_dir)
        for iteration, manifest in before.items():
            if iteration in after:
                assert after[iteration]["files"] == manifest["files"]
            else:
                assert sum(other > iteration for other in after) >= KEEP
        start = self.histories.get(first, ())
        self.histories = {i: h for i, h in self.histories.items() if i in after and i <= first}
        for iteration, manifest in after.items():
            if iteration > first:
                self.histories[iteration] = start + (self.arrangement,) * (iteration - first)
            images = sum(batch * steps * n for batch, steps, n in self.histories[iteration])
            assert manifest["samples"] == images
        self.check_best(start)
        iterations = [x["iteration"] for x in read_lines(self.save_dir) if x["kind"] == "train"]
        assert iterations == sorted(set(iterations))
        return code

    def check_best(self, start):
        """Check the best model after a start from a checkpoint of this history."""
        if not (self.save_dir / "best_model").exists():
            assert self.best is None
            return
        manifest = checkpoint.verify(self.save_dir / "best_model")
        iteration, files = manifest["best"]["iteration"], manifest["files"]
        if self.best is None or self.best[1] != files:
            # Not less: a checkpoint that was not evaluated is evaluated first.
            assert iteration >= len(start)
            self.best = start + (self.arrangement,) * (iteration - len(start)), files

    def damage(self):
        """Damage a file of the run; of two checkpoints only one."""
        checkpoints = intact(self.save_dir)
        paths = [self.save_dir / "train.jsonl"]
        if checkpoints:
            paths.append(self.save_dir / run_dir.RUN)
        if len(checkpoints) > 1:
            folder = self.save_dir / f"iter_{self.random.choice(sorted(checkpoints))}"
            paths += 2 * [folder / name for name in (*FILES, "manifest.json")]
        path = self.random.choice(paths)
        if not path.exists():
            return
        data, kind = bytearray(path.read_bytes()), self.random.choice(("cut", "flip", "remove"))
        if kind == "remove":
            path.unlink()
        else:
            position = self.random.randrange(len(data) or 1)
            if kind == "flip" and data:
                data[position] ^= 1 << self.random.randrange(8)
            path.write_bytes(data if kind == "flip" else data[:position])
        self.log.append(f"== {kind} {path}")


class Replays:
    """Runs without faults, each of which is run once."""

    def __init__(self, scenes, folder):
        self.scenes, self.folder, self.done = scenes, folder, {}

    def __call__(self, history):
        """The folder of the checkpoint after these arrangements."""
        *_, arrangement = history
        changed = next((i for i in range(len(history), 0, -1) if history[i - 1] != arrangement), 0)
        key = history[:changed], arrangement
        if key not in self.done:
            origin = ["--resume_model", self(history[:changed])] if changed else []
            save_dir = self.folder / f"replay_{len(self.done)}"
            flags = [*origin, "--keep_checkpoint_max", 0]
            code, _, log = finish(launch(self.scenes, save_dir, arrangement, *flags), TIMEOUT)
            assert code == 0, log
            self.done[key] = save_dir
        return self.done[key] / f"iter_{len(history)}"


def test_no_sequence_of_faults_loses_or_changes_a_state(scenes, tmp_path):
    first = int(os.environ.get("SEQUENCE_SEED", random.randrange(10**6)))
    replays = Replays(scenes, tmp_path)
    for seed in range(first, first + int(os.environ.get("SEQUENCES", 4))):
        sequence = Sequence(seed, scenes, tmp_path / f"run_{seed}")
        try:
            starts = sequence.run()
            for iteration, history in sequence.histories.items():
                for name in FILES:
                    folder = sequence.save_dir / f"iter_{iteration}"
                    assert_same_weights(state(folder, name), state(replays(history), name))
            if sequence.best is not None:
                best = sequence.save_dir / "best_model/model.pdparams"
                assert_same_weights(best, replays(sequence.best[0]) / "model.pdparams")
        except BaseException:
            print(f"SEQUENCE_SEED={seed}", *sequence.log, sep="\n")
            raise
        steps = dict(Counter(sequence.histories[ITERS]))
        print(f"{seed}: {starts} starts, steps {steps}, {len(replays.done)} replays", flush=True)
