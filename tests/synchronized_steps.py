"""Training steps with synchronized BatchNorm in the processes of paddle.distributed.launch.

Argument: a folder for what ``steps`` returns in each process, ``steps_RANK.npz``, and for the
branches that it has taken, ``steps_RANK.json``.
"""

import json
import sys
from pathlib import Path

import gpu_branches
import numpy as np
import paddle
from small_models import SMALLEST

from paddleseg_segformer import CrossEntropyLoss, MixVisionTransformer, SegFormer
from paddleseg_segformer.engine import distributed
from paddleseg_segformer.engine.options import TrainOptions
from paddleseg_segformer.engine.train_step import TrainStep

MICRO_BATCHES, IMAGES, STEPS = 2, 4, 3


def steps():
    """Do steps of micro-batches that all processes share; losses, norms, weights, statistics.

    The numbers of valid pixels differ between images.
    """
    paddle.seed(0)
    backbone = MixVisionTransformer(**SMALLEST, drop_path_rate=0.0)
    model = SegFormer(5, backbone, 16, "conv_bn_relu", dropout=0.0)
    before = {name: id(value) for name, value in model.state_dict().items()}
    optimizer = paddle.optimizer.SGD(0.1, parameters=model.parameters())
    losses = {"types": [CrossEntropyLoss(weight=[0.1, 1.0, 2.0, 5.0, 0.5])], "coef": [1.0]}
    options = TrainOptions(grad_accum_steps=MICRO_BATCHES, num_workers=0)
    step = TrainStep(model, losses, optimizer, options, None)
    after = {name: id(value) for name, value in step.model.state_dict().items()}
    layers = [type(layer).__name__ for layer in step.model.sublayers()]
    unsynchronized = []
    if distributed.world_size() > 1:
        no_sync = step.parallel_model.no_sync
        step.parallel_model.no_sync = lambda: unsynchronized.append(1) or no_sync()
    rng, results = np.random.default_rng(0), []
    share = slice(distributed.rank(), None, distributed.world_size())
    for i in range(STEPS):
        micro_batches = []
        for _ in range(MICRO_BATCHES):
            images = rng.normal(size=[IMAGES, 3, 64, 64]).astype("float32")
            labels = rng.integers(0, 5, [IMAGES, 64, 64]).astype("uint8")
            for n in range(IMAGES):
                labels[n, : 15 * n] = 255
            arrays = {"img": images[share], "label": labels[share]}
            micro_batches.append({name: paddle.to_tensor(a) for name, a in arrays.items()})
        result = step(micro_batches, i + 1)
        results.append([*result.losses, result.norm])
    return {
        "results": results,
        "same_parameters": before == after,
        "synchronized_layers": layers.count("SyncBatchNorm"),
        "batch_norm_layers": layers.count("SyncBatchNorm") + layers.count("BatchNorm2D"),
        "unsynchronized_backward_passes": len(unsynchronized),
        **{f"weights {name}": value.numpy() for name, value in step.model.state_dict().items()},
    }


if __name__ == "__main__":
    paddle.set_device("cpu")
    gpu_branches.install()
    distributed.start()
    file = Path(sys.argv[1]) / f"steps_{distributed.rank()}"
    np.savez(file.with_suffix(".npz"), **steps())
    file.with_suffix(".json").write_text(json.dumps(list(gpu_branches.visited)))
