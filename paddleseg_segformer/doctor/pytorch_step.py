"""Time training steps of Hugging Face's SegFormer; a script, because it must not import Paddle.

Argument: JSON with ``config`` of ``SegformerConfig``, ``device``, ``bf16``, ``images``, ``size``,
``classes`` and the number of ``steps``. Prints JSON.
"""

import json
import sys
import time

import torch


def main(config, device, bf16, images, size, classes, steps):
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    on_gpu = device == "cuda"
    torch.manual_seed(0)
    for backend in (torch.backends.cuda.matmul, torch.backends.cudnn):
        backend.allow_tf32 = True  # as Paddle
    model = SegformerForSemanticSegmentation(SegformerConfig(**config)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), 6e-5)
    image = torch.randn([images, 3, size, size], device=device)
    label = torch.randint(0, classes, [images, size, size], device=device)

    def step():
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            loss = model(image, labels=label).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    try:
        for _ in range(steps):  # to warm up
            step()
        start = time.perf_counter()
        for _ in range(steps):
            loss = step()
        if on_gpu:
            torch.cuda.synchronize()
    except torch.cuda.OutOfMemoryError:
        return {"skip": f"{images} images do not fit into memory"}
    seconds = (time.perf_counter() - start) / steps
    peak = torch.cuda.max_memory_allocated() if on_gpu else 0
    versions = {"torch": torch.__version__}
    return {"images_per_second": images / seconds, "peak_bytes": peak, "loss": loss, **versions}


if __name__ == "__main__":
    options = json.loads(sys.argv[1])
    if options["device"] == "cuda" and not torch.cuda.is_available():
        print(json.dumps({"skip": "PyTorch finds no GPU"}))
    else:
        print(json.dumps(main(**options)))
