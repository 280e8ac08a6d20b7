"""Score stored features and logits of any model: known-or-unknown scores, metrics, tables, report.

python -m gradmix_jax.score outputs.npz                         print the table
python -m gradmix_jax.score a.npz b.safetensors --out=DIR       write results, scores per image, leaderboard, report

A file (.npz, .safetensors, or a folder of .npy) holds arrays <part>_<what>: parts train, validation, known, unknown and
unknown.NAME; what features [N, F], logits [N, K], perturbed_logits [N, K] (for ODIN), labels [N] or ids [N]. Optional:
head_kernel [F, K], head_bias [K], class_names [K]. Logits of known and unknown images are enough for scores of logits.

    from gradmix_jax.score import score
    results = score({"known_logits": known_NxK, "unknown_logits": unknown_MxK, "known_labels": labels_N})
"""

import contextlib
import csv
import itertools
import os
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import flags

from gradmix_jax import cli, report, stored
from gradmix_jax import config as config_lib
from gradmix_jax import workdir as workdir_lib
from gradmix_jax.evaluation import arrays as arrays_lib
from gradmix_jax.evaluation import headline, paired
from gradmix_jax.fields import one_line
from gradmix_jax.models import safetensors_file
from gradmix_jax.run import save_results

# Columns of the table on stdout.
SHOWN = {
    "auroc": "AUROC",
    "fpr95_known_positive": "FPR95",
    "average_precision_unknown": "AUPR unknown",
    "accuracy": "accuracy",
    "oscr": "OSCR",
}
LEADERBOARD, COMPARISON, IMAGES = "leaderboard.csv", "comparison.csv", "images.csv"
# Name of the dataset in a report's config, because the outputs do not name it.
DATASET = "stored outputs"


def score(arrays: Mapping[str, np.ndarray], **options: Any) -> dict[str, Any]:
    """Every score and metric that the arrays allow; the others are left out by name, with the reason.

    Args:
      arrays: arrays by name, `known_logits` for instance; see above.
      **options: `feature` and `score` of the headline; `names` of the scores to compute, ("all",) by default; `k`, 3 by
        default, the neighbors per class of topk_cosine; `options`, {score: {option: value}}.

    Returns:
      Metrics of the headline, such as "auroc", and "by_score" ({feature: {score: metrics}}), "left_out" ({feature:
      {score: reason}}), "intervals", "per_class" and "confusion".

    Raises:
      ValueError: arrays that do not fit, or a headline score that they do not allow; one line.
    """
    return {name: value for name, value in arrays_lib.measure(arrays, **options).items() if name != "scored"}


def read(path: str) -> dict[str, np.ndarray]:
    """The arrays of a file or folder.

    Raises:
      ValueError: it is missing, damaged, or of another format.
    """
    if not os.path.exists(path):
        raise ValueError(f"{path} does not exist.")
    try:
        if os.path.isdir(path):
            return _read_folder(path)
        if path.endswith(".safetensors"):
            return safetensors_file.read(path)
        if not path.endswith(".npz"):
            raise ValueError("give a .npz or .safetensors file, or a folder of .npy files")
        return stored.read_npz(path)
    except Exception as error:  # NumPy raises anything for a broken header
        if str(error).startswith(path):
            raise
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split()).rstrip('.')}.") from error


def _read_folder(path: str) -> dict[str, np.ndarray]:
    found = {}
    for name in sorted(each for each in os.listdir(path) if each.endswith(".npy")):
        try:
            found[name.removesuffix(".npy")] = np.lib.format.open_memmap(os.path.join(path, name), mode="r")
        except Exception as error:  # NumPy raises anything for a broken header
            raise ValueError(f"{name}: {error}") from error
    if not found:
        raise ValueError("it is a folder without .npy files")
    return found


def rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per score, the best AUROC first: feature, score, numbers of images, metrics."""
    counts = {"known": results["num_known"], "unknown": results["num_unknown"]}
    found = [
        {"feature": feature, "score": name, **counts, **metrics}
        for feature, by_score in results["by_score"].items()
        for name, metrics in by_score.items()
    ]
    return sorted(found, key=lambda row: -row["auroc"])


def table(name: str, results: dict[str, Any]) -> str:
    """Plain text: the scores of one file, further unknown sets, and what was left out, with the reason."""
    shown = {metric: max(6, len(SHOWN[metric])) + 2 for metric in SHOWN if metric in results}  # widths of columns
    head = f"{'score':<36}" + "".join(f"{SHOWN[metric]:>{width}}" for metric, width in shown.items())
    lines = [f"{name}: {results['num_known']} known images, {results['num_unknown']} unknown", head]
    for row in rows(results):
        own = (row["feature"], row["score"]) == (results["feature"], results["score_name"])
        called = f"{row['score']} of {row['feature']}{' *' if own else ''}"
        lines.append(f"{called:<36}" + "".join(f"{row[metric]:>{width}.4f}" for metric, width in shown.items()))
    for other, each in results["ood"]["other"].items():
        auroc = each["by_score"][results["feature"]][results["score_name"]]["auroc"]
        lines.append(f"AUROC of * against unknown.{other} ({each['n']} images): {auroc:.4f}")
    if "intervals" in results:
        low, high = results["intervals"]["auroc"]
        lines.append(f"AUROC of *: 95 % bootstrap interval over test images {low:.4f} to {high:.4f}")
    lines.append(f"* headline: {results['score']}")
    for feature, by_score in results["left_out"].items():
        for reason, names in _grouped(by_score).items():
            lines.append(f"left out of {feature}: {', '.join(names)}: {reason}")
    return "\n".join(map(one_line, lines))


def _grouped(by_score: Mapping[str, str]) -> dict[str, list[str]]:
    """{reason: scores}."""
    found: dict[str, list[str]] = {}
    for name, reason in by_score.items():
        found.setdefault(reason.removeprefix(f"{name} ").removeprefix(f"The score {name} "), []).append(name)
    return found


def compare(named: Mapping[str, dict[str, Any]], ids: Mapping[str, tuple]) -> list[dict[str, Any]]:
    """Paired tests of the headline of every two files, on the same images in the same order.

    Args:
      named: {name of a file: results}.
      ids: {name of a file: (known_ids, unknown_ids)}, None if there are none.

    Returns:
      One row per pair and metric: first, second, metric, difference, p_value, test; empty if images differ.
    """
    found = []
    for one, two in itertools.combinations(named, 2):
        first, second = named[one]["arrays"], named[two]["arrays"]
        sides = ("known_scores", "unknown_scores")
        same = all(len(first[side]) == len(second[side]) > 1 for side in sides)
        same = same and all(a is None or b is None or np.array_equal(a, b) for a, b in zip(ids[one], ids[two]))
        both = "labels" in first and "labels" in second
        if not same or (both and not np.array_equal(first["labels"], second["labels"])):
            continue
        tests = {"auroc": paired.auroc(*([each[side] for side in sides] for each in (first, second)))}
        if both:
            tests["accuracy"] = paired.accuracy(*(each["predicted"] == each["labels"] for each in (first, second)))
        found += [{"first": one, "second": two, "metric": name, **test._asdict()} for name, test in tests.items()]
    return found


def write(named: Mapping[str, tuple[Mapping[str, np.ndarray], dict[str, Any]]], out_dir: str) -> list[str]:
    """Write everything about {name of a file: (its arrays, the result of `measure`)}.

    Into `out_dir`: NAME/results.json, NAME/scores.npz, NAME/images.csv (scores of every image), leaderboard.csv (a row
    per score), comparison.csv (paired tests) and, of files with labels of known images, report.html with its tables.
    A comparison or page of an earlier call, of other files, is deleted.

    Returns:
      The paths that were written.
    """
    out_dir = workdir_lib.resolve(out_dir, "--out", remote=False)
    paths = []
    for earlier in (COMPARISON, *report.FILES):
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(out_dir, earlier))
    for name, (arrays, results) in named.items():
        directory = os.path.join(out_dir, name)
        os.makedirs(directory, exist_ok=True)
        config = config_lib.to_plain(config_lib.default_config()) | {"name": name}
        config["dataset"] = config["dataset"] | {"name": DATASET}
        save_results({key: value for key, value in results.items() if key != "scored"}, config, directory)
        paths += [os.path.join(directory, each) for each in (workdir_lib.RESULTS, workdir_lib.SCORES, IMAGES)]
        _write_images(paths[-1], arrays, results["scored"])
    board = [{"file": name, **row} for name, (_, results) in named.items() for row in rows(results)]
    paths.append(_write_csv(os.path.join(out_dir, LEADERBOARD), board))
    tests = compare(*_comparable(named))
    if tests:
        paths.append(_write_csv(os.path.join(out_dir, COMPARISON), tests))
    labeled = [name for name, (_, results) in named.items() if "accuracy" in results]
    if labeled:
        paths += report.write([os.path.join(out_dir, name) for name in labeled], out_dir)
    return paths


def _comparable(named):
    ids = {
        name: tuple(arrays.get(f"{side}_ids") for side in ("known", "unknown")) for name, (arrays, _) in named.items()
    }
    return {name: results for name, (_, results) in named.items()}, ids


def _write_csv(path: str, found: list[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(column for row in found for column in row))
    with workdir_lib.replacing(path) as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)
    return path


def _write_images(path: str, arrays: Mapping[str, np.ndarray], scored: headline.Scored) -> None:
    """A row for every test image: its part, id, label, prediction by each feature, and scores."""
    names = {headline.KNOWN: "known", headline.UNKNOWN: "unknown", headline.VALIDATION: "validation"}
    first = scored.scores[headline.KNOWN]
    columns = [(feature, name) for feature in first for name in first[feature]]
    with workdir_lib.replacing(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        heads = [f"predicted/{feature}" for feature in first] + [f"{feature}/{name}" for feature, name in columns]
        writer.writerow(["part", "id", "label", *heads])
        for part, by_feature in scored.scores.items():
            called = names.get(part, part)
            size = len(next(iter(scored.predicted[part].values())))
            ids, labels = (arrays.get(f"{called}_{what}") for what in ("ids", "labels"))
            values = [range(size) if ids is None else ids.tolist(), [""] * size if labels is None else labels.tolist()]
            values += [scored.predicted[part][feature].tolist() for feature in first]
            values += [[f"{value:.7g}" for value in by_feature[feature][name]] for feature, name in columns]
            writer.writerows(zip([called] * size, *values))


def names_of(paths: list[str]) -> list[str]:
    """Short distinct names of files: their names without the extension, numbered if two are equal."""
    stems = [os.path.splitext(os.path.basename(os.path.abspath(path)))[0] for path in paths]
    names: list[str] = []
    for index, stem in enumerate(stems, 1):
        name = stem if stems.count(stem) == 1 else f"{stem}_{index}"
        while name in names or (name != stem and name in stems):
            name += "_"
        names.append(name)
    return names


def main(argv: list[str]) -> None:
    if len(argv) < 2:
        raise ValueError("score needs one file or more: .npz, .safetensors, or folders of .npy.")
    given = flags.FLAGS
    if given.out:
        workdir_lib.resolve(given.out, "--out", remote=False)  # before anything is computed
    if not given.scores or not all(given.scores):
        raise ValueError(f"--scores must be names separated by commas, got {','.join(given.scores)!r}.")
    named = {}
    for name, path in zip(names_of(argv[1:]), argv[1:]):
        arrays = read(path)
        options = dict(feature=given.feature, score=given.score, names=tuple(given.scores), k=given.k)
        try:
            named[name] = arrays, arrays_lib.measure(arrays, **options)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        if {"train_features", "train_labels"} <= arrays.keys():
            names = named[name][1]["known_classes"]
            few = headline.fewer_images_than(given.k, arrays["train_labels"], names, key="--k")
            if few:
                print(f"warning: {path}: {few}", file=sys.stderr)
        print(table(name, named[name][1]), end="\n\n")
    for test in compare(*_comparable(named)):
        said = f"{test['difference']:+.4f}, p = {test['p_value']:.3g} ({test['test']})"
        print(f"{test['metric']}, {test['first']} minus {test['second']}: {said}")
    if given.out:
        print("\n".join(write(named, given.out)))
        unlabeled = [name for name, (_, results) in named.items() if "accuracy" not in results]
        if unlabeled:
            print(f"Not in report.html: {', '.join(unlabeled)}, without known_labels.")


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "Directory to write results, scores per image, leaderboard and report to.")
    flags.DEFINE_string("feature", None, "Array of the headline: features or logits; default: features if given.")
    flags.DEFINE_string("score", None, "Score of the headline; default: topk_cosine of features, max_logit of logits.")
    flags.DEFINE_list("scores", "all", "Scores to compute, by name; `gradmix list scores` lists them.")
    flags.DEFINE_integer("k", 3, "Neighbors per class of topk_cosine and of predictions by features.")
    cli.run(main)
