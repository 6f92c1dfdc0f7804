import paddleseg_segformer

paddleseg_segformer.device.tune_cpu()
