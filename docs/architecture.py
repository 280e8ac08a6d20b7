"""Draw docs/architecture.svg: one image from disk to AUROC, by folder, and what runs where.

python docs/architecture.py
"""

import pathlib

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

# Okabe and Ito's blue and orange, lightened: safe for color-blind readers.
DEVICE, HOST, INK = "#cfe3f2", "#f7dcc4", "#1c1e21"
WIDTH, HEIGHT, GAP = 1.62, 0.78, 0.42
# Rows of (folder, what it does with the image, runs on the device).
TRAINING = (
    ("data/", "read, split,\nkeep as uint8", False),
    ("augment/", "batch, two\nrandom views", True),
    ("models/", "clean forward\npass", True),
    ("method/", "map, mask,\nmix", True),
    ("objectives/", "clean and\nmixed loss", True),
    ("training/", "update,\ncheckpoint", True),
)
EVALUATION = (
    ("data/", "known, unknown\ntest images", False),
    ("corruptions/", "optional: noise,\nblur, weather", True),
    ("evaluation/", "features, leak\nguards", True),
    ("scores/", "known or\nunknown?", True),
    ("metrics/", "AUROC, OSCR,\nintervals", False),
    ("report/", "tables, plots,\none HTML page", False),
)


def _row(axis, entries, y, title):
    axis.text(0, y + HEIGHT + 0.13, title, fontsize=9, fontweight="bold", color=INK)
    for place, (folder, words, on_device) in enumerate(entries):
        x = place * (WIDTH + GAP)
        color = DEVICE if on_device else HOST
        box = FancyBboxPatch((x, y), WIDTH, HEIGHT, boxstyle="round,pad=0,rounding_size=0.08", fc=color, ec=INK, lw=0.8)
        axis.add_patch(box)
        middle = x + WIDTH / 2
        axis.text(middle, y + HEIGHT - 0.18, folder, ha="center", va="center", fontsize=8.5, family="monospace")
        axis.text(middle, y + 0.28, words, ha="center", va="center", fontsize=7.5, linespacing=1.15)
        if place:
            _arrow(axis, (x - GAP + 0.04, y + HEIGHT / 2), (x - 0.04, y + HEIGHT / 2))


def _arrow(axis, start, end, **options):
    axis.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=9, color=INK, lw=0.9, **options))


def draw() -> plt.Figure:
    """The figure: a row for the train step, a row for the evaluation, and a legend."""
    figure, axis = plt.subplots(figsize=(9.2, 3.1))
    _row(axis, TRAINING, 1.75, "Training: one XLA program per step")
    _row(axis, EVALUATION, 0.0, "Evaluation: of the newest checkpoint")
    # The mixed images go through the encoder too.
    x = 2.5 * WIDTH + 2 * GAP
    _arrow(axis, (x + WIDTH + GAP, 1.75 - 0.02), (x, 1.75 - 0.02), connectionstyle="arc3,rad=-0.22")
    axis.text(x + (WIDTH + GAP) / 2, 1.44, "mixed forward pass", ha="center", va="top", fontsize=7.5)
    for place, (color, words) in enumerate(((DEVICE, "on the device"), (HOST, "on the host"))):
        axis.add_patch(FancyBboxPatch((8.6 + 1.75 * place, 2.68), 0.22, 0.14, boxstyle="round,pad=0", fc=color, ec=INK))
        axis.text(8.92 + 1.75 * place, 2.75, words, va="center", fontsize=8)
    axis.set_xlim(-0.05, 6 * WIDTH + 5 * GAP + 0.05)
    axis.set_ylim(-0.08, 3.0)
    axis.set_aspect("equal")
    axis.axis("off")
    return figure


def main() -> None:
    plt.rcParams.update({"svg.hashsalt": "gradmix_jax", "font.family": "DejaVu Sans"})
    out = pathlib.Path(__file__).with_suffix(".svg")
    # White behind the drawing, so that it can be read on a dark page.
    draw().savefig(out, bbox_inches="tight", pad_inches=0.05, facecolor="white", metadata={"Date": None})
    print(out)


if __name__ == "__main__":
    main()
