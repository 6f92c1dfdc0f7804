"""Random synthetic landscapes in ADE20K's layout, on which the quick start trains.

They need no download, and a model learns them from scratch in minutes on a CPU. A scene is drawn
from back to front on a canvas with ``OVERSAMPLING`` times the resolution. The image is the canvas
downsampled by averaging, for antialiased edges; the label map is subsampled, for exact labels.
"""

from pathlib import Path

import cv2
import numpy as np

from ..fs import cleanup_on_error

OVERSAMPLING = 2
JPEG_QUALITY = (cv2.IMWRITE_JPEG_QUALITY, 95)

# ADE20K's class indices. Annotations have the index + 1, because 0 is unlabeled.
CLASSES = {
    "building": 1,
    "sky": 2,
    "tree": 4,
    "road": 6,
    "grass": 9,
    "mountain": 16,
    "car": 20,
    "water": 21,
    "field": 29,
}
BUILDING, SKY, TREE, ROAD, GRASS, MOUNTAIN, CAR, WATER, FIELD = (i + 1 for i in CLASSES.values())
UNLABELED = 0

# RGB of the classes in color masks, in which unlabeled pixels are black.
MASK_COLORS = {
    "building": (196, 70, 60),
    "sky": (120, 190, 250),
    "tree": (20, 110, 50),
    "road": (90, 90, 110),
    "grass": (140, 210, 80),
    "mountain": (150, 120, 170),
    "car": (250, 60, 200),
    "water": (30, 80, 220),
    "field": (240, 200, 60),
}

# RGB of the sky at the zenith and at the horizon, and the factors of the light on the ground.
DAYTIMES = (
    ((150, 188, 226), (252, 230, 206), (1.00, 0.96, 0.90)),  # morning
    ((78, 146, 218), (206, 230, 244), (1.03, 1.03, 1.00)),  # noon
    ((110, 176, 226), (226, 238, 236), (1.00, 1.00, 0.97)),  # afternoon
    ((96, 104, 168), (252, 186, 136), (1.05, 0.88, 0.74)),  # evening
    ((150, 162, 176), (216, 220, 222), (0.84, 0.88, 0.92)),  # overcast
)
ROCKS = ((104, 104, 122), (122, 106, 104), (84, 102, 104))
MEADOWS = ((112, 160, 62), (132, 166, 76), (96, 146, 66))
CORN = ((226, 186, 84), (214, 164, 72), (230, 200, 112))
WALLS = ((226, 208, 176), (198, 110, 84), (232, 226, 214), (214, 170, 110), (168, 178, 186))
ROOFS = ((150, 66, 50), (112, 78, 66), (84, 84, 94))
LEAVES = ((52, 98, 48), (36, 82, 56), (76, 110, 40), (92, 120, 48), (182, 104, 40))
PAINTS = ((206, 40, 40), (36, 84, 180), (240, 196, 40), (236, 236, 236), (30, 140, 130))

# Polygons of the right half of a car seen from behind, in car widths: x from its center, y up from
# the road. A color of None is the paint of the car.
CAR_PARTS = (
    ((20, 20, 24), ((0, 0.04), (0.42, 0.04), (0.42, 0.2), (0, 0.2))),
    ((34, 34, 40), ((0.24, -0.02), (0.45, -0.02), (0.45, 0.2), (0.24, 0.2))),
    (None, ((0, 0.1), (0.5, 0.1), (0.5, 0.42), (0.44, 0.5), (0.32, 0.82), (0, 0.82))),
    ((96, 96, 104), ((0, 0.1), (0.5, 0.1), (0.5, 0.19), (0, 0.19))),
    ((70, 90, 110), ((0, 0.52), (0.36, 0.52), (0.28, 0.76), (0, 0.76))),
    ((224, 50, 40), ((0.31, 0.29), (0.47, 0.29), (0.47, 0.4), (0.31, 0.4))),
    ((226, 226, 216), ((0, 0.25), (0.14, 0.25), (0.14, 0.34), (0, 0.34))),
)


class Scene:
    """A canvas with the geometry and light of a scene. Lengths are in pixels of the canvas.

    Attributes:
        image: float32 ``[h, w, 3]``, RGB.
        label: uint8 ``[h, w]``, annotation values.
    """

    def __init__(self, rng, size):
        width, height = OVERSAMPLING * size[0], OVERSAMPLING * size[1]
        self.rng = rng
        self.image = np.zeros((height, width, 3), np.float32)
        self.label = np.zeros((height, width), np.uint8)
        self.width, self.height = width, height
        self.unit = min(width, height)  # of the sizes of objects
        self.horizon = int(height * rng.uniform(0.34, 0.5))
        self.vanishing = width * rng.uniform(0.25, 0.75)  # x of the vanishing point
        self.sun = width * rng.uniform(0.08, 0.92)
        zenith, haze, light = np.float32(DAYTIMES[rng.integers(len(DAYTIMES))])
        self.zenith, self.haze = (c + np.float32(rng.normal(0, 8, 3)) for c in (zenith, haze))
        self.light = light * rng.uniform(0.85, 1.06) + np.float32(rng.normal(0, 0.02, 3))
        self.rows = np.arange(height, dtype=np.float32)[:, None]
        self.columns = np.arange(width, dtype=np.float32)[None]
        self.ground = self.rows > self.horizon
        self.near = np.clip(self.depth(self.rows), 0, 1)[..., None]

    def depth(self, y):
        """0 at the horizon to 1 at the bottom of the image."""
        return (y - self.horizon) / (self.height - self.horizon)

    def shade(self, *colors, y=None):
        """A random one of the colors, jittered, in the light of the scene; with haze at row y."""
        color = np.float32(colors[self.rng.integers(len(colors))] + self.rng.normal(0, 6, 3))
        color = color * self.rng.uniform(0.92, 1.08) * self.light
        return color if y is None else mix(color, self.haze, 0.4 * (1 - self.depth(y)))

    def noise(self, across, down):
        """Smooth noise in -1 to 1, float32 ``[h, w, 1]``, with this many cells per unit."""
        cells = (2 + self.height * down // self.unit, 2 + self.width * across // self.unit)
        coarse = self.rng.uniform(-1, 1, cells).astype(np.float32)
        return cv2.resize(coarse, (self.width, self.height))[..., None]

    def fill(self, mask, texture, value):
        """Draw a texture ``[h, w, 3]`` and a label where the mask, bool ``[h, w]``, is True."""
        np.copyto(self.image, texture, where=mask[..., None])
        self.label[mask] = value

    def polygon(self, points, color, value):
        points = [np.round(points).astype(np.int32)]
        cv2.fillPoly(self.image, points, [float(c) for c in color])
        cv2.fillPoly(self.label, points, value)

    def box(self, x0, y0, x1, y1, color, value):
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], color, value)

    def disc(self, x, y, radius, color, value):
        center, radius = (round(x), round(y)), round(radius)
        cv2.circle(self.image, center, radius, [float(c) for c in color], -1)
        cv2.circle(self.label, center, radius, value, -1)

    def shadow(self, x, y, rx, ry):
        """A soft shadow on the ground, away from the sun; labels are unchanged."""
        x += 0.35 * rx * np.sign(x - self.sun)
        down = slice(max(int(y - ry), self.horizon), int(y + ry))
        across = slice(max(int(x - rx), 0), max(int(x + rx), 0))
        away = ((self.columns[:, across] - x) / rx) ** 2 + ((self.rows[down] - y) / ry) ** 2
        self.image[down, across] *= 1 - 0.45 * np.clip(1.5 * (1 - away), 0, 1)[..., None]

    def free_spot(self, width, max_depth):
        """A random (x, y) on grass or field for an object of this width; None if not found."""
        for _ in range(20):
            x = self.rng.uniform(0, self.width - 1)
            y = mix(self.horizon, self.height - 1, self.rng.uniform(0.04, max_depth))
            feet = slice(max(int(x - width / 2), 0), int(x + width / 2) + 1)
            if np.isin(self.label[int(y), feet], (GRASS, FIELD)).all():
                return x, y
        return None


def mix(a, b, weight):
    return a + (b - a) * weight


def draw_scene(rng, size):
    """Draw one landscape.

    Args:
        rng: NumPy ``Generator``; the scene depends only on it.
        size: (width, height) of the image, each at least 96.

    Returns:
        The image, uint8 ``[H, W, 3]`` RGB, and the annotation, uint8 ``[H, W]``: class index + 1,
        or 0 for unlabeled pixels.
    """
    scene = Scene(rng, size)
    draw_sky(scene)
    draw_clouds(scene)
    if rng.random() < 0.8:
        draw_mountains(scene)
    draw_meadow(scene)
    for side in (-1, 1):
        if rng.random() < 0.5:
            draw_field(scene, side)
    if rng.random() < 0.6:
        draw_lake(scene)
    cars = draw_road(scene) if rng.random() < 0.8 else []

    objects = [(draw_car, car) for car in cars]
    for draw, count, width, max_depth in (
        (draw_house, rng.integers(1, 4), 0.4, 0.35),
        (draw_tree, rng.integers(2, 8), 0.12, 1),
        (draw_boulder, rng.integers(0, 3), 0.1, 1),
    ):
        spots = [scene.free_spot(width * scene.unit, max_depth) for _ in range(count)]
        objects += [(draw, spot) for spot in spots if spot]
    for draw, spot in sorted(objects, key=lambda item: item[1][1]):  # from far to near
        draw(scene, *spot)
    return render(scene)


def draw_sky(scene):
    sky = mix(scene.zenith, scene.haze, np.clip(scene.rows / scene.horizon, 0, 1)[..., None] ** 0.8)
    scene.fill(np.ones_like(scene.label, bool), sky, SKY)
    if scene.rng.random() < 0.6:
        y = scene.horizon * scene.rng.uniform(0.15, 0.6)
        distance = np.hypot(scene.columns - scene.sun, scene.rows - y)[..., None] / scene.unit
        glow = np.maximum(0.5 * np.exp(-6 * distance), distance < 0.05)
        scene.image = mix(scene.image, np.float32((255, 246, 214)), glow)


def draw_clouds(scene):
    rng, puffs = scene.rng, np.zeros_like(scene.label)
    for _ in range(rng.integers(0, 5)):
        x, y = rng.uniform(0, scene.width), scene.horizon * rng.uniform(0.1, 0.75)
        length = scene.unit * rng.uniform(0.08, 0.22)
        for offset in rng.uniform(-1, 1, 9):
            radius = length * (0.45 - 0.3 * abs(offset)) * rng.uniform(0.7, 1.1)
            cv2.circle(puffs, (int(x + offset * length), int(y - radius)), int(radius), 255, -1)
    puffs = cv2.GaussianBlur(puffs, (0, 0), scene.unit / 80)[..., None] / np.float32(255)
    alpha = 0.85 * puffs * (0.9 + 0.1 * scene.noise(12, 20))
    scene.image = mix(scene.image, mix(np.float32(255), scene.haze, 0.35), alpha)


def draw_mountains(scene):
    """Two mountain ranges, brighter on the sides towards the sun, with mist at the bottom."""
    rng, xs = scene.rng, scene.columns[0]
    relief = (scene.noise(8, 12) + 0.5 * scene.noise(24, 30))[..., 0]
    snow_line = scene.horizon * rng.uniform(0.2, 0.6) + 0.05 * scene.unit * relief
    rock, snow = scene.shade(*ROCKS), 246 * scene.light
    for haze, tallest in ((0.45, rng.uniform(0.6, 0.9)), (0.2, rng.uniform(0.3, 0.55))):
        height = 0.12
        for peaks, size in ((4, 0.6), (11, 0.28), (37, 0.1)):
            knots = np.linspace(0, scene.width, peaks + 1)
            height = height + size * np.interp(xs, knots, rng.random(peaks + 1))
        ridge = np.float32(scene.horizon * (1 - tallest * height))
        turned = np.tanh(np.gradient(ridge) * np.sign(xs - scene.sun) * -2)
        seen = np.clip(scene.columns + 0.03 * scene.unit * relief, 0, scene.width - 1).astype(int)
        slope = np.where((scene.rows < snow_line)[..., None], snow, rock)
        slope = slope * (1 + 0.16 * turned[seen] + 0.05 * relief)[..., None]
        mist = np.clip((scene.rows - ridge) / (scene.horizon - ridge), 0, 1)[..., None]
        slope = mix(slope, scene.haze, haze + 0.3 * mist)
        scene.fill((scene.rows > ridge) & ~scene.ground, slope, MOUNTAIN)


def draw_meadow(scene):
    blades = 0.13 * scene.noise(140, 50) * (0.4 + scene.near)
    green = mix(scene.shade(*MEADOWS), scene.haze, 0.3 * (1 - scene.near) ** 2)
    meadow = green * (1 + blades + 0.1 * scene.noise(3, 12))
    scene.fill(np.repeat(scene.ground, scene.width, 1), meadow, GRASS)


def draw_field(scene, side):
    """A corn field on one side of the vanishing point, with furrows towards it."""
    rng, near = scene.rng, scene.near[..., 0]
    bearing = scene.columns - scene.vanishing
    bearing = side * bearing / np.maximum(scene.rows - scene.horizon, 1)
    left, far = rng.uniform(0.3, 1.1), rng.uniform(0.03, 0.2)
    mask = (left < bearing) & (bearing < left + rng.uniform(1.6, 5))
    mask &= (far < near) & (near < far + rng.uniform(0.4, 1.2))
    furrows = np.sin(bearing * rng.uniform(16, 26))[..., None] * np.clip(3 * scene.near, 0, 1)
    gold = mix(scene.shade(*CORN), scene.haze, 0.3 * (1 - scene.near))
    scene.fill(mask, gold * (1 + 0.14 * furrows + 0.1 * scene.noise(120, 70)), FIELD)


def draw_lake(scene):
    """A lake in the colors of the sky, with an unlabeled sandy shore."""
    rng = scene.rng
    x, y = rng.uniform(0, scene.width), mix(scene.horizon, scene.height, rng.uniform(0.1, 0.6))
    away = ((scene.columns - x) / (scene.width * rng.uniform(0.35, 0.65))) ** 2
    away = away + ((scene.rows - y) / (scene.unit * rng.uniform(0.11, 0.22))) ** 2
    away += 0.25 * scene.noise(4, 12)[..., 0]
    scene.fill((away < 1.15) & scene.ground, scene.shade((206, 188, 148)), UNLABELED)
    mirrored = mix(scene.haze, scene.zenith, np.clip(1.4 * scene.near, 0, 1))
    water = mix(mirrored, scene.shade((34, 96, 130)), 0.55)
    ripples = 0.12 * scene.noise(10, 110) + 0.08 * scene.noise(4, 50)
    scene.fill((away < 1) & scene.ground, water * (1 + ripples), WATER)


def draw_road(scene):
    """A road with two lanes. Returns the cars, at most one per lane, as (x, y, width)."""
    rng = scene.rng
    start = mix(scene.width / 2, scene.vanishing, rng.uniform(-0.6, 0.8))
    broad, bend = scene.unit * rng.uniform(0.28, 0.42), scene.width * rng.uniform(-0.3, 0.3)

    def lane(near):
        middle = mix(scene.vanishing, start, near) + bend * near * (1 - near)
        return middle, broad * (near + 0.02)

    middle, lane_width = lane(scene.near[..., 0])
    across = (scene.columns - middle) / lane_width
    asphalt = mix(scene.shade((112, 112, 118)), scene.haze, 0.35 * (1 - scene.near) ** 2)
    asphalt = asphalt * (1 + 0.09 * scene.noise(150, 150) + 0.06 * scene.noise(6, 20))
    scene.fill((abs(across) < 1) & scene.ground, asphalt, ROAD)
    # Dashes of equal length on the ground, where distance is proportional to 1 / depth.
    dashes = np.sin(6 / (scene.near[..., 0] + 0.08) + rng.uniform(0, 6)) > 0
    marks = (abs(across) < 0.03) & dashes | (abs(abs(across) - 0.92) < 0.025)
    scene.fill(marks & scene.ground, scene.shade((236, 232, 214)), ROAD)

    cars = []
    for side in (-0.5, 0.5):
        near = rng.uniform(0.5, 1)
        middle, lane_width = lane(near)
        if 0.8 * lane_width > 0.18 * scene.unit:  # large enough to be learned
            y = mix(scene.horizon, scene.height, near)
            cars.append((middle + side * lane_width, y, 0.8 * lane_width))
    return cars


def draw_house(scene, x, y):
    rng, scale = scene.rng, scene.unit * mix(0.55, 1, scene.depth(y))
    w, h = scale * rng.uniform(0.24, 0.42), scale * rng.uniform(0.2, 0.5)
    left, right, top = x - w / 2, x + w / 2, y - h
    wall, roof = scene.shade(*WALLS, y=y), scene.shade(*ROOFS, y=y)
    glass = scene.shade((66, 84, 108), y=y)
    scene.shadow(x, y, 0.75 * w, 0.06 * scale)
    scene.box(left, top, right, y, wall, BUILDING)
    corner, end = (mix(left, right, 0.72), right) if scene.sun < x else (left, left + 0.28 * w)
    scene.box(corner, top, end, y, 0.84 * wall, BUILDING)
    if h < 0.3 * scale:
        gable = np.array([(-0.6, 0), (-0.25, -0.35), (0.25, -0.35), (0.6, 0)])
        scene.polygon((x, top) + w * gable, roof, BUILDING)
    else:
        scene.box(x - 0.53 * w, top - 0.025 * scale, x + 0.53 * w, top, roof, BUILDING)
    pane = scale * rng.uniform(0.02, 0.027)
    columns, floors = int(w / (3.7 * pane)), int(h / (4.3 * pane))
    for cx in left + w * (np.arange(columns) + 0.5) / columns:
        for cy in top + h * (np.arange(floors) + 0.5) / floors:
            window = (cx - pane, cy - 1.2 * pane, cx + pane, cy + 1.2 * pane)
            scene.box(*window, glass * rng.uniform(0.85, 1.25), BUILDING)


def draw_tree(scene, x, y):
    rng = scene.rng
    h = scene.unit * mix(0.5, 1, scene.depth(y)) * rng.uniform(0.26, 0.46)
    leaf, sunward = scene.shade(*LEAVES, y=y), np.sign(scene.sun - x)
    scene.shadow(x, y, 0.42 * h, 0.1 * h)
    scene.box(x - 0.05 * h, y - 0.4 * h, x + 0.05 * h, y, scene.shade((98, 74, 54), y=y), TREE)
    if rng.random() < 0.3:
        for k in range(4):
            base, half = y - (0.12 + 0.2 * k) * h, (0.3 - 0.055 * k) * h
            tip = (x, base - 0.36 * h)
            scene.polygon([(x - half, base), tip, (x + half, base)], 0.8 * leaf, TREE)
            scene.polygon([(x + sunward * half, base), tip, (x, base)], 1.05 * leaf, TREE)
        return
    for shade, shift, spread in ((0.72, 0, 1), (0.95, 0.05, 0.85), (1.2, 0.12, 0.55)):
        for _ in range(9):
            angle, reach = rng.uniform(0, 2 * np.pi), 0.22 * spread * rng.random()
            cx = x + h * (reach * np.cos(angle) + 0.8 * shift * sunward)
            cy = y + h * (reach * np.sin(angle) - 0.62 - 0.7 * shift)
            radius = h * spread * rng.uniform(0.12, 0.19)
            scene.disc(cx, cy, radius, shade * leaf, TREE)


def draw_boulder(scene, x, y):
    """An unlabeled object, as in real annotations."""
    stone, r = scene.shade((150, 146, 140), y=y), scene.unit * mix(0.015, 0.06, scene.depth(y))
    outline = np.array([(-1.2, 0), (-1, -0.6), (-0.3, -1.1), (0.5, -0.9), (1.1, -0.4), (1.2, 0)])
    scene.shadow(x, y, 1.8 * r, 0.7 * r)
    scene.polygon((x, y) + r * outline, 0.8 * stone, UNLABELED)
    scene.polygon((x, y - 0.25 * r) + 0.7 * r * outline, stone, UNLABELED)


def draw_car(scene, x, y, width):
    """A car with a thin unlabeled outline."""
    paint = scene.shade(*PAINTS)
    scene.shadow(x, y, 0.68 * width, 0.16 * width)
    halves = []
    for color, half in CAR_PARTS:
        color = paint if color is None else color * scene.light
        halves += [(color, (x, y) + width * np.array((side, -1)) * half) for side in (-1, 1)]
    for _, points in halves:
        cv2.polylines(scene.label, [np.int32(points)], True, UNLABELED, 2 * OVERSAMPLING)
    for color, points in halves:
        scene.polygon(points, color, CAR)


def render(scene):
    """Downsample the canvas to the image and the label map."""
    leaves = 1 + 0.22 * scene.noise(100, 100)
    np.multiply(scene.image, leaves, out=scene.image, where=(scene.label == TREE)[..., None])
    size = (scene.width // OVERSAMPLING, scene.height // OVERSAMPLING)
    image = cv2.resize(scene.image, size, interpolation=cv2.INTER_AREA)
    image += scene.rng.normal(0, scene.rng.uniform(1.5, 4), image.shape)
    label = scene.label[::OVERSAMPLING, ::OVERSAMPLING].copy()
    return np.clip(np.round(image), 0, 255).astype(np.uint8), label


def write_scenes(root, train=240, val=40, size=(192, 144), seed=0, color_masks=False):
    """Write scenes in ADE20K's layout, or as a custom dataset with color masks.

    Args:
        root: Folder to write ``images`` and ``annotations`` in.
        train, val: Number of scenes; scene k of a split does not depend on it.
        size: (width, height).
        seed: Random seed.
        color_masks: Whether to write ``images`` and ``colored`` without subfolders, and labels.txt
            with ``MASK_COLORS``.

    Raises:
        ValueError: A side is below 96 pixels.
        RunError: A file cannot be written.
    """
    if min(size) < 96:
        raise ValueError(f"scenes must be at least 96 pixels a side, not {size[0]}x{size[1]}")
    root, palette = Path(root), np.zeros((256, 3), np.uint8)
    if color_masks:
        palette[[CLASSES[name] + 1 for name in MASK_COLORS]] = list(MASK_COLORS.values())
        write_labels(root / "labels.txt")
    splits = (("training", "train", train), ("validation", "val", val))
    for split, (folder, short, count) in enumerate(splits):
        for k in range(1, count + 1):
            image, label = draw_scene(np.random.default_rng((seed, split, k)), size)
            if color_masks:
                save(root / f"images/{short}_{k:04d}.jpg", image[..., ::-1])
                save(root / f"colored/{short}_{k:04d}.png", palette[label][..., ::-1])
            else:
                name = f"{folder}/scene_{short}_{k:08d}"
                save(root / f"images/{name}.jpg", image[..., ::-1])
                save(root / f"annotations/{name}.png", label)


def write_labels(path):
    lines = (" ".join(map(str, (name, *color))) + "\n" for name, color in MASK_COLORS.items())
    with cleanup_on_error(path):
        path.write_text("".join(lines), encoding="utf-8")


def save(path, pixels):
    _, encoded = cv2.imencode(path.suffix, pixels, JPEG_QUALITY)
    with cleanup_on_error(path):
        path.write_bytes(encoded)
