import paddleseg_segformer

paddleseg_segformer.runtime.tune_cpu()
