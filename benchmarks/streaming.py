"""How many images per second does storage "stream" read, and how many CPU cores does that take?

python benchmarks/streaming.py [--workers=1,2,4] [--seconds=5] [--needed=26000]

Batches are read as training reads them, and thrown away; nothing is computed. "decoded" reads images for the first
time, "kept" those that stay in memory (`train.cache_gigabytes`). Images are made here, smooth ones that compress like
photographs: PNG of 32 pixels, JPEG of 64, and JPEG of 500 x 375 that are resized to 224; or --dataset=folder:... and
the like, with --image_size. Cores are the CPU seconds of this process per second. A step of --needed images/s at 32
pixels needs fewer in proportion to the pixels of larger ones; the last column is the cores for that.
"""

import argparse
import itertools
import os
import pathlib
import tempfile
import time
from typing import NamedTuple

import jax
import numpy as np
from PIL import Image

from gradmix_jax import config as config_lib
from gradmix_jax import data as data_lib
from gradmix_jax.data.source import Source

BATCH = 256


class Kind(NamedTuple):
    """Stored width and height, file name extension, size in the step, number of images."""

    stored: tuple[int, int]
    extension: str
    image_size: int
    number: int


KINDS = {
    "PNG, 32 pixels": Kind((32, 32), "png", 32, 2048),
    "JPEG, 64 pixels": Kind((64, 64), "jpg", 64, 2048),
    "JPEG, 500 x 375 to 224": Kind((500, 375), "jpg", 224, 512),
}


def write_images(root: pathlib.Path, kind: Kind) -> str:
    """An image folder of two classes; returns its name for a config."""
    random = np.random.default_rng(0)
    for part, number in (("train", kind.number), ("test", 2)):
        for index in range(number):
            folder = root / part / f"class{index % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            smooth = np.asarray(coarse.resize(kind.stored, Image.Resampling.BICUBIC), np.int16)
            grain = random.integers(-8, 9, smooth.shape)
            Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(folder / f"{index}.{kind.extension}")
    return f"folder:{root}"


def open_source(name: str, image_size: int) -> Source:
    """The training images of a dataset, all classes known."""
    section = config_lib.to_plain(config_lib.default_config())["dataset"]
    changes = dict(name=name, unknown_name="noise:uniform", benchmark="all", image_size=image_size, channels=3)
    return data_lib.open_set(data_lib.Spec(**section | changes)).train


def rate(source: Source, workers: int, seconds: float, *, kept: bool) -> tuple[float, float]:
    """(images per second, cores) of reading; with `kept`, after every image has been read once."""
    cache_bytes = 1e12 if kept else 0
    batches = data_lib.host_batches(
        source, seed=0, start_step=0, batch_size=BATCH, workers=workers, cache_bytes=cache_bytes
    )
    # Use up the batches that were read before the clock starts.
    epochs = 3 if kept else 0
    for _ in itertools.islice(batches, epochs * (len(source) // BATCH) + 3 * workers):
        pass
    images, started, busy = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - started < seconds:
        images += len(next(batches)[0])
    passed = time.perf_counter() - started
    batches.close()
    return images / passed, (time.process_time() - busy) / passed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", default="1,2,4")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--needed", type=float, default=26_000, help="images/s of the step at 32 pixels")
    parser.add_argument("--dataset", help="as dataset.name in a config, in place of made images")
    parser.add_argument("--image_size", type=int, default=32)
    arguments = parser.parse_args()
    print(f"batches of {BATCH}, {os.cpu_count()} CPU cores, jax {jax.__version__}, numpy {np.__version__}\n")
    print("| images | read | workers | images/s | cores | images/s a core | needed images/s | cores for them |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        sources = {}
        if arguments.dataset:
            sources[arguments.dataset] = open_source(arguments.dataset, arguments.image_size)
        for name, kind in {} if arguments.dataset else KINDS.items():
            written = write_images(pathlib.Path(folder) / kind.extension / str(kind.image_size), kind)
            sources[name] = open_source(written, kind.image_size)
        for (name, source), kept in itertools.product(sources.items(), (False, True)):
            for workers in map(int, arguments.workers.split(",")):
                images, cores = rate(source, workers, arguments.seconds, kept=kept)
                row = f"{workers} | {images:.0f} | {cores:.2f} | {images / cores:.0f}"
                needed = arguments.needed * (32 / source.image_size) ** 2
                row += f" | {needed:.0f} | {needed / (images / cores):.2f}"
                print(f"| {name} | {'kept' if kept else 'decoded'} | {row} |", flush=True)


if __name__ == "__main__":
    main()
