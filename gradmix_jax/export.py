"""Write a trained run as a model that needs neither its training data nor this package.

python -m gradmix_jax.export runs/cifar10_0 --out=models/cifar10
python -m gradmix_jax.export runs/cifar10_0 --out=models/cifar10_torch --layout=torch
python -m gradmix_jax.export runs/cifar10_0 --out=models/cifar10_onnx --onnx
"""

import os
import sys

from absl import flags

from gradmix_jax import cli, stored
from gradmix_jax import config as config_lib
from gradmix_jax import workdir as workdir_lib
from gradmix_jax.portable import files, from_run, gallery, onnx_file
from gradmix_jax.workdir import storage


def export(
    workdir: str,
    out: str,
    *,
    layout: str = "ours",
    reduction: from_run.Reduction | None = None,
    onnx: bool = False,
) -> from_run.Classifier:
    """Write the newest checkpoint of a run and its headline score into the directory `out`.

    Args:
      workdir: workdir of a run.
      out: a directory that is empty or does not exist.
      layout: naming of the weights, one of `files.LAYOUTS`.
      reduction: which training features to keep; None: all.
      onnx: whether to write the model as ONNX too (packages jax2onnx, onnx, onnxruntime).

    Returns:
      The classifier that was written.

    Raises:
      ValueError: no checkpoint, neither cached features nor data, `out` is not empty, or the export disagrees.
    """
    files.check_out(out)
    if onnx:
        onnx_file.check_installed()
    classifier = from_run.load(workdir, reduction)
    has_results = storage.exists(workdir_lib.path(workdir, workdir_lib.RESULTS))
    results = stored.results(workdir) if has_results else None
    if results:
        stored.check_same_run(results, config_lib.read(workdir), workdir)
    files.write(classifier, out, layout=layout, results=results, onnx=onnx)
    return classifier


def main(argv: list[str]) -> None:
    if len(argv) != 2:
        raise ValueError(f"export takes one workdir of a run, got {len(argv) - 1} arguments.")
    options = flags.FLAGS
    per_class = options.gallery or None
    reduction = from_run.Reduction(per_class, options.gallery_rule, options.gallery_dtype)
    out = storage.expand(options.out, "--out", remote=False)
    how = dict(layout=options.layout, reduction=reduction, onnx=options.onnx)
    classifier = export(workdir_lib.resolve(argv[1], "the workdir"), out, **how)
    unfinished = from_run.unfinished(classifier.metadata)
    if unfinished:
        print(f"warning: {unfinished}", file=sys.stderr)
    for name in sorted(os.listdir(out)):
        print(f"{os.path.join(out, name)}  {os.path.getsize(os.path.join(out, name)):,} bytes")


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "New directory to write the model to.")
    flags.DEFINE_enum("layout", "ours", files.LAYOUTS, "Names of the weights; torch: torchvision's, timm's.")
    flags.DEFINE_boolean("onnx", False, "Write the model as ONNX too; needs jax2onnx, onnx and onnxruntime.")
    flags.DEFINE_integer("gallery", 0, "Training features to keep per class; 0: all.", lower_bound=0)
    flags.DEFINE_enum("gallery_rule", "k_center", list(gallery.RULES), "How to choose these training features.")
    flags.DEFINE_enum("gallery_dtype", "float32", ("float32", "float16"), "How to store the training features.")
    cli.run(main, required=("out",))
