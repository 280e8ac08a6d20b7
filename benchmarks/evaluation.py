"""How long does an evaluation take once features exist? Every score, metric, probe and measure of diversity.

python benchmarks/evaluation.py [--repeats=3] [--scale=1.0] [--skip_reference]

The sizes are those of CIFAR-10 with 6 known and 4 unknown classes; `--scale` shrinks the numbers of images. The
features are made up: clusters, non-negative as after a ReLU, unit projections, a stage, and logits of a linear head.
Both sides do the same work from the same arrays and take turns. The script stops if their metrics differ.

The other side is efficient handwritten code: similarities are matrix products in blocks and
`np.partition` (faster here than `NearestNeighbors`), computed once for all scores that share them; SciPy provides
distances and softmax, scikit-learn the curves and the logistic regressions, each started from the previous weights.
"""

import argparse
import os
import time

import evaluation_numpy as by_numpy
import jax
import numpy as np
import scipy
import sklearn
from evaluation_data import (
    FEATURE,
    FEATURES,
    HEADLINE,
    KNOWN,
    LOGITS,
    OUTPUTS,
    PROJECTION,
    SCORED,
    STAGE,
    K,
    Scored,
    headline,
    make_data,
    named,
    probed,
    score_names,
)

from gradmix_jax.evaluation import open_set, probes
from gradmix_jax.metrics import diversity
from gradmix_jax.scores import fitted as fitted_lib

TOLERANCE = 1e-4
# Suffixes of the names of metrics that count images.
COUNTED = "accuracy", "fpr95_unknown_positive", "fpr95_known_positive", "01", "10", "macro_f1", "confusion"
COMPILED = "/jax/core/compile/backend_compile_duration"


# Ours


def our_scores(data, output):
    train, validation = data.parts["train"], data.parts["validation"]
    needed = ("features", LOGITS) if output == LOGITS else (output,)
    fitted = fitted_lib.fit_all(
        {name: train.outputs[name] for name in needed},
        train.labels,
        num_classes=KNOWN,
        features=() if output == LOGITS else (output,),
        names=score_names(output),
        k=K,
        head=data.head,
        validation=validation.outputs,
    )
    # As `evaluate` does: all images go through each score together.
    found = Scored(fitted.scores(data.together)[output], fitted.predict(output, data.together))
    return jax.block_until_ready((found, fitted.banks, fitted.states))[0]


def our_metrics(data, scored):
    known, unknown = data.parts["test_known"], data.parts["test_unknown"]
    found = {}
    for output in OUTPUTS:
        predicted = data.split(scored[output].predicted)["test_known"]
        for score, values in scored[output].by_score.items():
            of = data.split(values)
            sides = of["test_known"], of["test_unknown"]
            found |= named(f"{output} {score}", open_set.threshold_free_metrics(*sides, predicted, known.labels))
    judged = headline(data, scored[HEADLINE[0]])
    validation = data.split(scored[HEADLINE[0]].by_score[HEADLINE[1]])["validation"]
    at_threshold = open_set.threshold_metrics(*judged, known.labels, validation_V=validation, num_classes=KNOWN)
    names = {"classes_N": known.classes, "classes_M": unknown.classes}
    of_known, of_unknown = open_set.per_class(*judged[:2], judged.predicted_known == known.labels, **names)
    confusion = open_set.confusion(
        *judged, **names, known_names=tuple(sorted(set(known.classes))), threshold=at_threshold["threshold"]
    )
    for name, of in (of_known | of_unknown).items():
        found |= named(name, {metric: of[metric] for metric in ("auroc", "accuracy") if metric in of})
    found |= {name: at_threshold[name] for name in ("macro_f1", "threshold")}
    found["confusion"] = np.array(confusion["counts"]) / len(known.labels)
    return found | named("head", of_classifier(known.outputs[LOGITS], known.labels))


def of_classifier(logits, labels):
    """`open_set.classifier_metrics` without the bins behind "ece"."""
    found = open_set.classifier_metrics(logits, labels)
    return {name: value for name, value in found.items() if name != "reliability"}


def our_bootstrap(data, scored):
    judged = headline(data, scored[HEADLINE[0]])
    found = open_set.intervals(*judged[:2], judged.predicted_known == data.parts["test_known"].labels)
    return {name: found[name] for name in ("accuracy", "auroc", "oscr")}


def our_linear_probe(data, scored):
    linear = probes.linear(probed(data, "train"), probed(data, "validation"), num_classes=KNOWN)
    features, labels = probed(data, "test_known")
    return of_classifier(linear.logits(features), labels)


def our_knn_probe(data, scored):
    neighbors = probes.neighbors(probed(data, "train"), probed(data, "validation"), num_classes=KNOWN)
    features, labels = probed(data, "test_known")
    return {"accuracy": np.mean(neighbors.predict(features) == labels), "k": neighbors.k}


def our_diversity(data, scored):
    train, found = data.parts["train"], {}
    for name in FEATURES:
        found[f"{name} effective_rank"] = diversity.effective_rank(train.outputs[name])
        for label in range(KNOWN):
            own = train.outputs[name][train.labels == label]
            found[f"{name} dimension of {label}"] = diversity.intrinsic_dimension(own)
    return found


# Both


OURS = our_scores, our_metrics, our_bootstrap, our_linear_probe, our_knn_probe, our_diversity
REFERENCE = (
    by_numpy.scores_of,
    by_numpy.metrics,
    by_numpy.bootstrap,
    by_numpy.linear_probe,
    by_numpy.knn_probe,
    by_numpy.diversity,
)
NAMES = "metrics", "bootstrap", "linear probe", "kNN probe", "diversity"


def evaluate(data, sides):
    """({part: seconds}, {part: results}) of one whole evaluation for each side; they take turns, part by part."""
    runs = [({}, {}) for _ in sides]
    for index, part in enumerate((*(f"scores of {output}" for output in OUTPUTS), *NAMES)):
        for side, (seconds, results) in zip(sides, runs):
            started = time.perf_counter()
            if index < len(OUTPUTS):
                results[OUTPUTS[index]] = side[0](data, OUTPUTS[index])
            else:
                results[part] = side[index - len(OUTPUTS) + 1](data, results)
            seconds[part] = time.perf_counter() - started  # results are NumPy arrays, so nothing is still running
    for seconds, _ in runs:
        seconds["total"] = sum(seconds.values())
    return runs


def check(data, ours, theirs) -> None:
    """Print the largest difference of each kind; exit if one exceeds the limit of its kind."""
    class_size = min(np.unique(data.parts[part].classes, return_counts=True)[1].min() for part in SCORED[1:])
    allowed = {
        "areas, losses, thresholds": TOLERANCE,
        "shares of counted images": 2 / class_size,  # rounding can move an image across a threshold
        "linear probe": 2e-3,  # two solvers stop near the minimum
        "bootstrap limits, in widths of the interval": 0.15,  # other random draws
        "diversity, relative": 1e-3,
    }
    largest = dict.fromkeys(allowed, (-1.0, ""))
    for part in NAMES:
        for name, value in ours[part].items():
            expected = np.asarray(theirs[part][name])
            difference = float(np.abs(np.asarray(value) - expected).max())
            kind = "shares of counted images" if name.endswith(COUNTED) else "areas, losses, thresholds"
            if part == "linear probe":
                kind = part
            if part == "bootstrap":
                kind, difference = "bootstrap limits, in widths of the interval", difference / np.ptp(expected)
            if part == "diversity":
                kind, difference = "diversity, relative", difference / expected
            if not difference <= allowed[kind]:
                raise SystemExit(
                    f"{part}, {name}: {value}, but {expected} by NumPy; allowed difference: {allowed[kind]}"
                )
            largest[kind] = max(largest[kind], (difference, f"{part}, {name}"))
    print("\nLargest difference between the sides:")
    for kind, (difference, name) in largest.items():
        print(f"  {kind}: {difference:.1e} ({name}); allowed: {allowed[kind]:.1e}")


def count_programs() -> list:
    """Seconds that XLA spends on each program it compiles from now on."""
    found: list[float] = []
    jax.config.update("jax_enable_compilation_cache", False)  # a cached program would hide its cost
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: found.append(seconds) if event == COMPILED else None
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the images, 0.1 or more")
    parser.add_argument("--skip_reference", action="store_true", help="time our side only")
    given = parser.parse_args()
    if given.repeats < 1 or not 0.1 <= given.scale <= 1:
        parser.error("--repeats must be at least 1 and --scale from 0.1 (a covariance needs images) to 1.")
    data = make_data(given.scale)
    compiling = count_programs()
    ((first, results),) = evaluate(data, [OURS])
    programs, compile_seconds = len(compiling), sum(compiling)
    sides = [OURS] if given.skip_reference else [OURS, REFERENCE]
    repeats = [evaluate(data, sides) for _ in range(given.repeats)]
    ours = [repeat[0][0] for repeat in repeats]
    theirs = [] if given.skip_reference else [repeat[1][0] for repeat in repeats]

    print("| part | ours, first call | ours, median (quartiles) | NumPy + scikit-learn, median | ratio |")
    print("|---|---|---|---|---|")
    for part in first:
        low, middle, high = np.quantile([seconds[part] for seconds in ours], [0.25, 0.5, 0.75])
        row = f"| {part} | {first[part]:.2f} s | {middle:.3f} s ({low:.3f} to {high:.3f})"
        if theirs:
            reference = np.median([seconds[part] for seconds in theirs])
            print(f"{row} | {reference:.3f} s | {reference / middle:.1f} x |")
        else:
            print(f"{row} | not timed | |")
    counts = ", ".join(f"{name} {len(part.labels)}" for name, part in data.parts.items())
    columns = ", ".join(f"{len(score_names(output))} of {output}" for output in OUTPUTS)
    print(
        f"\n{counts}; features {FEATURE}, projections {PROJECTION}, stage3 {STAGE}, logits {KNOWN}; scores: {columns}"
    )
    later = len(compiling) - programs
    print(f"{programs} programs compiled in {compile_seconds:.1f} s in the first call, {later} later")
    versions = ", ".join(f"{module.__name__} {module.__version__}" for module in (jax, np, scipy, sklearn))
    print(f"{jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores, {versions}, {given.repeats} repeats")
    if theirs:
        check(data, results, repeats[-1][1][1])


if __name__ == "__main__":
    main()
