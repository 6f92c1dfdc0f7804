"""Report time and peak memory of predict on GeoTIFFs of growing size, and check a part of each.

Draws the rasters from synthetic scenes. Needs Linux or macOS, and rasterio.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import paddle
import rasterio

from paddleseg_segformer import MixVisionTransformer, Predictor, SegFormer
from paddleseg_segformer.cli import common
from paddleseg_segformer.data.scenes import draw_scene

COORDINATES = {"crs": "EPSG:32633", "transform": rasterio.Affine(0.5, 0, 5e5, 0, -0.5, 5e6)}
CROP, STRIDE = 1024, 768
SCENE = 512  # pixels per side
# The part that is compared: four rows and columns of windows without those at the raster's borders,
# and in these, the pixels that no other window overlaps.
START, PART = STRIDE, 3 * STRIDE + CROP
INNER = slice(CROP - STRIDE, PART - (CROP - STRIDE))


def main():
    parser = common.plain_parser(__doc__, "--sizes 7000 10000 20000")
    sizes = {"type": common.positive_int, "nargs": "+", "metavar": "N"}
    parser.add_argument(
        "--sizes", **sizes, default=[7000, 10000, 20000], help="pixels per side, from 4900"
    )
    parser.add_argument(
        "--model_path", metavar="PATH", help="default: a tiny model with random weights"
    )
    args = parser.parse_args()
    print("pixels | peak memory, MB | seconds | equal part | coordinates | classes", flush=True)
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            measure(size, args.model_path or tiny_model(Path(folder)), Path(folder))


def measure(size, model_path, folder):
    raster = folder / "raster.tif"
    draw_raster(raster, size)
    windows = {"is_slide": True, "crop_size": [CROP, CROP], "stride": [STRIDE, STRIDE]}
    command = [sys.executable, "tools/predict.py", "--model_path", model_path, "--device", "cpu"]
    command += ["--image_path", raster, "--save_dir", folder / "result", "--is_slide"]
    command += ["--crop_size", CROP, CROP, "--stride", STRIDE, STRIDE]
    start = time.perf_counter()
    process = subprocess.Popen(list(map(str, command)))
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        sys.exit("predict failed")
    peak = usage.ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
    part = ((START, START + PART), (START, START + PART))
    result = folder / "result/label_map/raster.tif"
    with rasterio.open(result) as labels, rasterio.open(raster) as image:
        found, pixels = labels.read(1, window=part), image.read(window=part).transpose(1, 2, 0)
        kept = labels.crs == image.crs and labels.transform == image.transform
    expected = Predictor(model_path, device="cpu", **windows)(np.ascontiguousarray(pixels))
    equal = (found == expected.label_map)[INNER, INNER]
    cells = f"{size}x{size}", f"{peak:.0f}", f"{seconds:.0f}"
    cells += f"{equal.mean():.6%}", "kept" if kept else "lost", str(len(np.unique(found)))
    print(" | ".join(cells), flush=True)


def tiny_model(folder):
    paddle.seed(0)
    model = SegFormer(5, MixVisionTransformer(embed_dims=[8, 16, 40, 64], depths=[1] * 4), 32)
    weight = model.linear_pred.weight
    weight.set_value(paddle.randn(weight.shape))  # so that all classes occur
    paddle.save(model.state_dict(), str(folder / "model.pdparams"))
    return folder / "model.pdparams"


def draw_raster(path, size):
    """Write an RGB raster that repeats 64 scenes in random order."""
    rng = np.random.default_rng(0)
    scenes = [draw_scene(rng, (SCENE, SCENE))[0].transpose(2, 0, 1) for _ in range(64)]
    options = {"driver": "GTiff", "width": size, "height": size, "count": 3, "dtype": "uint8"}
    options |= {"tiled": True, "blockxsize": SCENE, "blockysize": SCENE, "compress": "deflate"}
    with rasterio.open(path, "w", **options, **COORDINATES) as file:
        for _, window in file.block_windows():
            scene = scenes[rng.integers(len(scenes))]
            file.write(scene[:, : window.height, : window.width], window=window)


if __name__ == "__main__":
    main()
