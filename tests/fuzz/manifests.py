"""Any manifest with a fitting checksum is refused, or can be resumed from and predicted with."""

import copy
import json
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["paddleseg_segformer"], enable_loader_override=False):
    from paddleseg_segformer.engine import checkpoint, resume, run_dir
    from paddleseg_segformer.engine.trainer import TrainerState, log_summary
    from paddleseg_segformer.errors import InputError
    from paddleseg_segformer.inference.model_source import resolve_model

from fuzzing import check_error, fuzz

from configs import TREES, VALUES, positions

sys.path.insert(0, str(Path(__file__).parents[1]))
import valid_manifest

ROOT = Path(tempfile.mkdtemp())
FOLDER = ROOT / "iter_4"
FOLDER.mkdir()
(FOLDER / "model.pdparams").write_bytes(b"weights")
VALID = {
    **valid_manifest.VALID,
    "config": TREES[0],
    "classes": [str(i) for i in range(150)],
    "palette": [[i, i, i] for i in range(150)],
    "files": {},
}
VALUES = [v for v in VALUES if not isinstance(v, bytes)] + [10**30, -(10**30), 1 << 63, {"a": {}}]


def one_input(data):
    choose = atheris.FuzzedDataProvider(data)
    if choose.ConsumeIntInRange(0, 7) == 0:
        (FOLDER / "manifest.json").write_bytes(choose.ConsumeBytes(1 << 20))
    else:
        (FOLDER / "manifest.json").write_text(mutated(choose), encoding="utf-8")
    (ROOT / run_dir.RUN).write_bytes(choose.ConsumeBytes(100))
    run_dir.read_run(ROOT)
    try:
        resolve_model(FOLDER)
    except InputError as error:
        check_error(error)
    try:
        manifest = checkpoint.verify(FOLDER)
        resume.check_iterations(10**30, (FOLDER, manifest))
    except InputError as error:
        check_error(error)
        return
    except checkpoint.DamagedError as error:
        check_error(InputError(str(error)))
        return
    state = TrainerState()
    state.restore(manifest)
    assert 0 <= state.iteration < 1 << 63 and 0 <= state.samples < 1 << 63
    state.total_seconds()
    log_summary(state, ROOT)
    resume._flatten({**manifest["config"], **manifest["arrangement"]})
    run_dir.prune_checkpoints(ROOT, 1, manifest)
    assert FOLDER.exists()


def mutated(choose):
    """The text of a manifest with some entries changed, and a fitting checksum."""
    manifest = copy.deepcopy(VALID)
    for _ in range(choose.ConsumeIntInRange(0, 3)):
        parent, key = choose.PickValueInList(list(positions(manifest)))
        change = choose.ConsumeIntInRange(0, 4)
        if change == 0:
            del parent[key]
        elif change == 1:
            parent[key] = choose.ConsumeInt(8)
        elif change == 2:
            parent[key] = choose.ConsumeUnicodeNoSurrogates(8)
        elif change == 3:
            parent[key] = choose.ConsumeFloat()
        else:
            parent[key] = copy.deepcopy(choose.PickValueInList(VALUES))
    try:
        manifest = json.loads(json.dumps(manifest, default=str))
        return json.dumps({**manifest, "checksum": checkpoint.checksum(manifest)})
    except (TypeError, ValueError):  # keys of several types, or too many digits
        return ""


if __name__ == "__main__":
    fuzz(one_input, [bytes([i] * 40) for i in range(0, 256, 16)])
