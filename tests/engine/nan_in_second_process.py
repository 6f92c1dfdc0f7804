"""tools/train.py, where the second process's first image of step 2 is not finite."""

import runpy

from paddleseg_segformer.engine import distributed, trainer

step = trainer.Trainer._step


def spoiled_step(self, parts, meter):
    if distributed.rank() == 1 and self.iteration == 1:
        parts[0].arrays["img"][0] = float("nan")
        print(f"culprit {parts[0].files[0]}", flush=True)
    step(self, parts, meter)


trainer.Trainer._step = spoiled_step
runpy.run_path("tools/train.py", run_name="__main__")
