"""The model card of an export: README.md, with the code that uses it."""

from collections.abc import Collection, Mapping
from typing import Any

from gradmix_jax.fields import escape_markdown

# What results.json has of these is listed, in this order.
METRICS = {
    "accuracy": "closed set accuracy",
    "auroc": "AUROC, known against unknown",
    "oscr": "OSCR",
    "fpr95_unknown_positive": "FPR at 95 % TPR, unknown positive",
    "fpr95_known_positive": "FPR at 95 % TPR, known positive",
    "macro_f1": "macro-F1 with the class unknown",
}
CODE = """\
import json, pathlib, sys
import jax, numpy as np
from PIL import Image, ImageOps

HERE = pathlib.Path(sys.argv[1])  # this directory
TYPES = {"F64": "f8", "F32": "f4", "F16": "f2", "I64": "i8", "I32": "i4", "BOOL": "?"}

def arrays_of(name, wanted):
    raw = (HERE / name).read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    read = lambda entry: np.frombuffer(raw[start:][slice(*entry["data_offsets"])], TYPES[entry["dtype"]])
    return {key: read(header[key]).reshape(header[key]["shape"]) for key in wanted}

meta = json.loads((HERE / "metadata.json").read_text())
size, channels = meta["image"]["size"], meta["image"]["channels"]
weights = arrays_of("model.safetensors", meta["model"]["weights"])
learned = arrays_of("score.safetensors", meta["score"]["arrays"])
program = lambda name: jax.jit(jax.export.deserialize(bytearray((HERE / name).read_bytes())).call)
model, score = program("model.stablehlo"), program("score.stablehlo")

def pixels(file):
    image = ImageOps.exif_transpose(Image.open(file))
    if image.mode.startswith("I"):  # 16-bit gray
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8))
    elif image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, tuple(meta["image"]["background_color"]))
        opaque.alpha_composite(image.convert("RGBA"))
        image = opaque
    image = image.convert("L" if channels == 1 else "RGB")
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR)).reshape(size, size, channels)

outputs = model(weights, np.stack([pixels(file) for file in sys.argv[2:]]))
with jax.enable_x64(meta["score"]["float64"]):
    found = score(learned, {name: outputs[name] for name in meta["score"]["inputs"]})
"""
DECISION = {
    True: """\
calibration = np.array(meta["calibration_scores"], np.float32)
p = (1 + np.searchsorted(calibration, found["score"], side="right")) / (len(calibration) + 1)
accepted = p > 0.05  # rejects at most 5 % of known images
""",
    False: """\
THRESHOLD = -np.inf  # the run kept no validation images to choose one with: set it
accepted = np.asarray(found["score"]) >= THRESHOLD
""",
}
PRINT = """\
for file, known, label, value in zip(sys.argv[2:], accepted, found["class"], found["score"]):
    print(file, meta["class_names"][label] if known else "unknown", f"{value:.6f}", sep="\\t")
"""


def text(metadata: Mapping[str, Any], results: Mapping[str, Any] | None, names: Collection[str]) -> str:
    """Markdown.

    Args:
      metadata: of the export.
      results: the run's results.json, or None.
      names: the files of the export.
    """
    config, score = metadata["config"], metadata["score"]
    title = f"{config['name'] or config['model']['name']} on {config['dataset']['name']}"
    parts = [
        f"# {escape_markdown(title)}: open set classifier",
        f"Names one of {len(metadata['class_names'])} known classes or says *unknown*. Trained with gradmix_jax "
        f"(GradMix, arXiv 2505.12803); needs neither that package nor the training data.",
        *_warnings(metadata, results),
        f"Known classes: {', '.join(map(escape_markdown, metadata['class_names']))}.",
        "## Use",
        "Needs Python 3.11 or newer, `pip install jax flatbuffers numpy pillow` (made with jax "
        f"{metadata['packages']['jax']}; a newer one reads it for at least six months, by JAX's promise for exported "
        "programs). `python use.py THIS_DIRECTORY IMAGE...` with `use.py`:",
        f"```python\n{CODE}{DECISION[metadata['calibration_scores'] is not None]}{PRINT}```",
        "With gradmix_jax: `gradmix predict THIS_DIRECTORY IMAGE...`",
        *_data(config),
        *_decisions(metadata, score),
        *_results(results, metadata),
        *_limits(metadata),
        *_files(metadata, names),
    ]
    return "\n\n".join(parts) + "\n"


def _warnings(metadata, results):
    if metadata["step"] < metadata["steps"]:
        yield (
            f"**Unfinished:** these are the weights of step {metadata['step']} of {metadata['steps']}; training was "
            "not over."
        )
    if results is not None and results.get("checkpoint") != metadata["checkpoint"]:
        yield "**The results below are of another checkpoint** of the run than these weights."


def _data(config):
    dataset, model, mix = config["dataset"], config["model"], config["mix"]
    yield "## Data and training"
    epochs = ", ".join(f"{phase['epochs']} epochs {escape_markdown(phase['name'])}" for phase in config["phases"])
    rows = {
        "dataset": escape_markdown(dataset["name"]),
        "unknown classes of": escape_markdown(dataset["unknown_name"] or dataset["name"]),
        "split": f"{dataset['benchmark']}, trial {dataset['trial']}",
        "images": f"{dataset['image_size']} x {dataset['image_size']}, {'gray' if dataset['channels'] == 1 else 'RGB'}",
        "encoder": f"{model['name']}, width {model['width'] or 'as published'}, stem {model['stem']}",
        "mixing": f"{mix['method']}, mask {mix['mask']}, fill {mix['fill']}; map: {config['attribution']['method']}",
        "phases": f"{epochs}, batch size {config['train']['batch_size']}, seed {config['seed']}",
    }
    yield _table(("", ""), rows.items())
    yield "The whole config is in metadata.json."


def _decisions(metadata, score):
    yield "## Score and threshold"
    gallery = metadata["gallery"]
    lines = [f"Score: `{score['name']}` of `{score['feature']}`; {score['orientation']}."]
    if gallery is not None:
        lines.append(
            f"Predictions compare with {gallery['features']} of {gallery['of']} training features "
            f"({gallery['dtype']}; {gallery['rule']})."
        )
    change = (gallery or {}).get("change")
    if change:
        auroc, accuracy = change["auroc"], change["accuracy"]
        lines.append(
            f"Against all of them in float32, on {change['images']} validation images of known classes: "
            f"{change['same_class']:.2%} equal predictions, accuracy {accuracy[0]:.4f} -> {accuracy[1]:.4f}, AUROC "
            f"{auroc[0]:.4f} -> {auroc[1]:.4f} (mean over the known classes, each taken for unknown in turn)."
        )
    elif gallery is not None and (gallery["features"] < gallery["of"] or gallery["dtype"] != "float32"):
        lines.append("What that changes was not measured: the run kept no validation images.")
    if metadata["calibration_scores"] is None:
        lines.append("There is no threshold: the run kept no validation images (dataset.validation_fraction 0).")
    else:
        count, at = len(metadata["calibration_scores"]), metadata["threshold"]
        at = "none: there are too few to reject any" if at is None else f"{at:.6g}"
        lines.append(f"Threshold at {count} validation scores: {at}; {metadata['threshold_rule']}.")
    yield " ".join(lines)


def _results(results, metadata):
    yield "## Results"
    if results is None:
        yield "None: this run has not been evaluated."
        return
    low_high = results.get("intervals") or {}
    rows = []
    for name, what in METRICS.items():
        value = results.get(name)
        if value is not None:
            interval = low_high.get(name)
            rows.append((what, f"{value:.4f}", f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else ""))
    yield _table(("metric", "value", "95 % bootstrap over test images"), rows)
    devices = results.get("environment", {}).get("devices") or ["an unknown device"]
    negative = f" and {results['num_negative']} negative" if results.get("num_negative") else ""
    yield (
        f"One run, so no spread over seeds: n = 1, seed {metadata['config']['seed']}, trial "
        f"{metadata['config']['dataset']['trial']}; {results.get('num_known')} known and {results.get('num_unknown')} "
        f"unknown test images, {results.get('num_train')}{negative} training images; evaluated on {devices[0]}, commit "
        f"{results.get('environment', {}).get('commit') or 'unknown'}. Measured with all training features in float32."
    )


def _limits(metadata):
    yield "## Limits"
    yield (
        "- The bound on rejected known images holds on average over validation sets, for images like those of the "
        "validation set; it says nothing of unknown images that are accepted, nor of images of another source.\n"
        "- Unknown classes were those of the split above; others may score higher.\n"
        "- A score is no probability, and a p-value is not the probability of being known.\n"
        f"- Images are resized to {metadata['image']['size']} pixels without keeping the aspect ratio."
    )


def _files(metadata, names):
    yield "## Files"
    platforms = ", ".join(metadata["model"]["platforms"])
    rows = [
        ("model.stablehlo", f"weights, images -> outputs; any batch size; lowered for {platforms}, run on CPU only"),
        ("model.safetensors", f"weights, layout {metadata['model']['layout']}"),
        ("score.stablehlo", "learned arrays, outputs -> score, class, class_scores"),
        ("score.safetensors", "what the score has learned, and of which training images (`gallery/place_M`)"),
        ("gallery_paths.txt", "the training images in the gallery, a path in the folder of the dataset each line"),
        ("explain.stablehlo", "weights, learned arrays, images -> map in [0, 1], the gradient of the score"),
        ("model.onnx", "weights and model for ONNX: images -> outputs; any batch size"),
        (
            "metadata.json",
            "class names, image size and resizing, score, threshold, calibration scores, config, versions",
        ),
        ("SHA256SUMS", "the digest of every file; check them with `sha256sum -c SHA256SUMS`"),
    ]
    yield _table(("file", "holds"), [row for row in rows if row[0] in names])


def _table(header, rows):
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
