"""tools/train.py with a NaN in the first image of step 2 in the second process."""

import runpy

from paddleseg_segformer.engine import distributed, trainer

train_step = trainer.Trainer._train_step


def spoiled_step(self, micro_batches, meter):
    if distributed.rank() == 1 and self.state.iteration == 1:
        micro_batches[0].arrays["img"][0] = float("nan")
        print(f"bad sample: {micro_batches[0].files[0]}", flush=True)
    train_step(self, micro_batches, meter)


trainer.Trainer._train_step = spoiled_step
runpy.run_path("tools/train.py", run_name="__main__")
