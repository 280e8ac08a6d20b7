"""Generates images for `launch/accelerator.sh --miniature`: 10 classes like CIFAR-10's and 200 like TinyImageNet's.

python launch/miniature.py FOLDER

Each class has its own color and stripe, with noise, so that two epochs learn something.
"""

import pathlib
import sys

import numpy as np
from PIL import Image

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TINY_IMAGENET = tuple(map(str, range(200)))  # the places of the classes in the benchmark's list
SIZE = 16
# {folder: (classes, {part: images per class})}
DATA = {
    "cifar10": (CIFAR10, {"train": 40, "test": 10}),
    "tiny_imagenet": (TINY_IMAGENET, {"train": 8, "val": 2}),
}


def main(folder: pathlib.Path) -> None:
    random = np.random.default_rng(0)
    for name, (classes, parts) in DATA.items():
        for label in classes:
            color, row = random.integers(40, 216, 3), random.integers(0, SIZE - 4)
            for part, count in parts.items():
                place = folder / name / part / label
                place.mkdir(parents=True, exist_ok=True)
                for number in range(count):
                    image = random.normal(color, 30, (SIZE, SIZE, 3))
                    image[row : row + 4] = 255 - image[row : row + 4]
                    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(place / f"{number}.png")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
