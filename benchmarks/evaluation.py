"""How long an evaluation takes once features exist: every score, metric and probe against NumPy and scikit-learn.

python benchmarks/evaluation.py [--repeats=3] [--scale=1.0] [--skip_reference]

The sizes are those of CIFAR-10 with 6 known and 4 unknown classes; `--scale` shrinks the numbers of images. The
features are made up: clusters, non-negative as after a ReLU, unit projections, and logits of a linear head. Both sides
do the same work from the same arrays and take turns. The script stops if their metrics differ.

The other side is written as one would by hand, but not slowly: similarities are matrix products in blocks and
`np.partition` (faster here than `NearestNeighbors`), computed once for all scores that need the same ones; SciPy has
distances and softmax, scikit-learn the curves and the logistic regression, each fitted from the last one's weights.
"""

import argparse
import os
import time
from typing import NamedTuple

import jax
import numpy as np
import scipy
import scipy.special
import sklearn
import sklearn.linear_model
import sklearn.metrics
import sklearn.preprocessing
from scipy.spatial.distance import cdist

from gradmix_jax import open_set, probe, scores
from gradmix_jax.scores import fitted as fitted_lib
from gradmix_jax.scores.fitted import LOGITS

KNOWN, UNKNOWN, FEATURE, PROJECTION, K = 6, 4, 512, 128, 3
# Of CIFAR-10's 60,000 images, the 20,000 training images of the unknown classes are never used.
COUNTS = {"train": 27000, "validation": 3000, "test_known": 6000, "test_unknown": 4000}
SCORED = ("validation", "test_known", "test_unknown")
OUTPUTS = ("features", "projection", LOGITS)
HEADLINE = "features", "topk_cosine"
BLOCK, RESAMPLES = 1000, 1000
TOLERANCE = 1e-4
# Endings of the names of metrics that count images.
COUNTED = "accuracy", "fpr95_unknown_positive", "fpr95_known_positive", "01", "10", "macro_f1", "confusion"
COMPILED = "/jax/core/compile/backend_compile_duration"


class Part(NamedTuple):
    outputs: dict[str, np.ndarray]
    labels: np.ndarray
    classes: np.ndarray


class Data(NamedTuple):
    """The parts, the images to score as one array of each output, where their parts end, and the head."""

    parts: dict[str, Part]
    together: dict[str, np.ndarray]
    ends: np.ndarray
    head: tuple[np.ndarray, np.ndarray]

    def split(self, values):
        return dict(zip(SCORED, np.split(values, self.ends)))


def make_data(scale: float) -> Data:
    random = np.random.default_rng(0)
    normal = lambda *shape: random.normal(size=shape).astype(np.float32)
    centres = 0.2 * normal(KNOWN + UNKNOWN, FEATURE)
    centres[KNOWN:] += (centres[:UNKNOWN] + centres[1 : UNKNOWN + 1]) / 2  # unknown classes lie between known ones
    to_projection = normal(FEATURE, PROJECTION)
    kernel, bias = centres[:KNOWN].T.copy(), -np.square(centres[:KNOWN]).sum(axis=1) / 2
    parts = {}
    for name, count in COUNTS.items():
        count = round(scale * count)
        first, number = (KNOWN, UNKNOWN) if name == "test_unknown" else (0, KNOWN)
        classes = first + np.arange(count) % number
        features = np.maximum(centres[classes] + normal(count, FEATURE), 0)
        projection = features @ to_projection
        outputs = {"features": features, "projection": projection / norm(projection), LOGITS: features @ kernel + bias}
        labels = np.where(classes < KNOWN, classes, -1).astype(np.int32)
        parts[name] = Part(outputs, labels, np.array([f"class {index}" for index in classes]))
    together = {name: np.concatenate([parts[part].outputs[name] for part in SCORED]) for name in OUTPUTS}
    return Data(parts, together, np.cumsum([len(parts[part].labels) for part in SCORED])[:-1], (kernel, bias))


def score_names(output: str) -> tuple[str, ...]:
    """The norm of a unit projection is rounding noise, so neither side computes it."""
    names = (name for name in scores.SCORES if fitted_lib.works_on_logits(name) == (output == LOGITS))
    return tuple(name for name in names if (output, name) != ("projection", "feature_norm"))


class Scored(NamedTuple):
    """{score: score_N} of all images together, and class_N."""

    by_score: dict[str, np.ndarray]
    predicted: np.ndarray


class Headline(NamedTuple):
    known: np.ndarray
    unknown: np.ndarray
    predicted_known: np.ndarray
    predicted_unknown: np.ndarray


def named(name, values):
    return {f"{name} {metric}": value for metric, value in values.items()}


def headline(data, scored) -> Headline:
    by_part, predicted = data.split(scored.by_score[HEADLINE[1]]), data.split(scored.predicted)
    sides = "test_known", "test_unknown"
    return Headline(*(by_part[side] for side in sides), *(predicted[side] for side in sides))


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
    return found | named("head", open_set.classifier_metrics(known.outputs[LOGITS], known.labels))


def our_bootstrap(data, scored):
    judged = headline(data, scored[HEADLINE[0]])
    found = open_set.intervals(*judged[:2], judged.predicted_known == data.parts["test_known"].labels)
    return {name: found[name] for name in ("accuracy", "auroc", "oscr")}


def probed(data, name):
    return data.parts[name].outputs["features"], data.parts[name].labels


def our_linear_probe(data, scored):
    linear = probe.linear(probed(data, "train"), probed(data, "validation"), num_classes=KNOWN)
    features, labels = probed(data, "test_known")
    return open_set.classifier_metrics(linear.logits(features), labels)


def our_knn_probe(data, scored):
    neighbours = probe.neighbours(probed(data, "train"), probed(data, "validation"), num_classes=KNOWN)
    features, labels = probed(data, "test_known")
    return {"accuracy": np.mean(neighbours.predict(features) == labels), "k": neighbours.k}


# NumPy, SciPy and scikit-learn


def norm(features):
    return np.linalg.norm(features, axis=1, keepdims=True)


def unit(features):
    return features / norm(features)


def blocks(count):
    return [slice(start, start + BLOCK) for start in range(0, count, BLOCK)]


def class_means(features, labels):
    return np.stack([features[labels == label].mean(axis=0) for label in range(KNOWN)])


def covariance(centred):
    return centred.T @ centred / len(centred)


def whitening(matrix):
    """W with W W^T = pseudo-inverse, without the directions that float32 cannot resolve."""
    values, vectors = np.linalg.eigh(matrix.astype(np.float64))
    kept = values > values[-1] * len(values) * np.finfo(np.float32).eps
    return (vectors[:, kept] / np.sqrt(values[kept])).astype(np.float32)


def squared_distances(images, means, white):
    return cdist(images @ white, means @ white, "sqeuclidean")


def feature_scores(data, output):
    train, labels, images = data.parts["train"].outputs[output], data.parts["train"].labels, data.together[output]
    unit_train, unit_images = unit(train), unit(images)
    of_class = [unit_train[labels == label] for label in range(KNOWN)]
    sums = np.concatenate(
        [
            np.stack([np.partition(unit_images[at] @ own.T, -K)[:, -K:].sum(axis=1) for own in of_class], axis=1)
            for at in blocks(len(images))
        ]
    )
    neighbours = min(50, len(train))
    nearest = np.concatenate(
        [np.partition(unit_images[at] @ unit_train.T, -neighbours)[:, -neighbours] for at in blocks(len(images))]
    )
    means = class_means(train, labels)
    centred = train - means[labels]
    shared = covariance(centred)
    to_shared = squared_distances(images, means, whitening(shared)).min(axis=1)
    per_class = [0.9 * covariance(centred[labels == label]) + 0.1 * shared for label in range(KNOWN)]
    to_own = np.stack(
        [squared_distances(images, means[i : i + 1], whitening(per_class[i]))[:, 0] for i in range(KNOWN)]
    )
    mean = train.mean(axis=0, keepdims=True)
    to_all = squared_distances(images, mean, whitening(covariance(train - mean)))[:, 0]
    found = {
        "topk_cosine": sums.max(axis=1),
        "topk_cosine_normalized": (sums / sums.sum(axis=1, keepdims=True)).max(axis=1),
        "knn": -np.sqrt(np.maximum(2 - 2 * nearest, 0)),
        "class_mean_cosine": (unit_images @ unit(class_means(unit_train, labels)).T).max(axis=1),
        "class_mean_l1": -cdist(images, means, "cityblock").min(axis=1),
        "mahalanobis": -to_shared,
        "mahalanobis_per_class": -to_own.min(axis=0),
        "relative_mahalanobis": to_all - to_shared,
    }
    if output == "features":
        found["feature_norm"] = np.linalg.norm(images, axis=1)
    members = np.stack([found["topk_cosine"], found["relative_mahalanobis"]]).astype(np.float64)
    of_validation = members[:, : data.ends[0]]
    centre, spread = of_validation.mean(axis=1, keepdims=True), of_validation.std(axis=1, keepdims=True)
    found["ensemble"] = ((members - centre) / spread).mean(axis=0)
    return Scored(found, sums.argmax(axis=1))


def logit_scores(data, output):
    train, images, logits = data.parts["train"].outputs, data.together["features"], data.together[LOGITS]
    energy = lambda values: scipy.special.logsumexp(values, axis=1)
    log_p = scipy.special.log_softmax(logits.astype(np.float64), axis=1)
    p = np.exp(log_p)
    predicted, posterior = train[LOGITS].argmax(axis=1), scipy.special.softmax(train[LOGITS], axis=1)
    templates = np.stack([posterior[predicted == label].mean(axis=0) for label in np.unique(predicted)])
    log_templates = np.log(np.maximum(templates, np.finfo(np.float32).tiny))
    kernel, bias = data.head
    clipped = np.minimum(images, np.percentile(train["features"], 90))
    origin = -np.linalg.pinv(kernel.T.astype(np.float64)) @ bias
    centred = train["features"] - origin.astype(np.float32)
    vectors = np.linalg.eigh((centred.T @ centred).astype(np.float64))[1]
    residual = vectors[:, : FEATURE - FEATURE // 2].astype(np.float32)
    length = lambda centred: np.linalg.norm(centred @ residual, axis=1)
    weight = (train["features"] @ kernel + bias).max(axis=1).mean() / length(centred).mean()
    found = {
        "msp": log_p.max(axis=1),
        "max_logit": logits.max(axis=1),
        "energy": energy(logits),
        "entropy": (p * log_p).sum(axis=1),
        "kl_matching": -((p * log_p).sum(axis=1, keepdims=True) - p @ log_templates.T).min(axis=1),
        "react": energy(clipped @ kernel + bias),
        "vim": energy(images @ kernel + bias) - weight * length(images - origin.astype(np.float32)),
    }
    return Scored(found, logits.argmax(axis=1))


def reference_scores(data, output):
    return (logit_scores if output == LOGITS else feature_scores)(data, output)


def pair_metrics(known, unknown, correct):
    """What `open_set.threshold_free_metrics` gives."""
    is_known, values = np.repeat([1, 0], [len(known), len(unknown)]), np.concatenate([known, unknown])
    accepted_wrongly, accepted, _ = sklearn.metrics.roc_curve(is_known, values, drop_intermediate=False)
    rejected_wrongly, rejected, _ = sklearn.metrics.roc_curve(1 - is_known, -values, drop_intermediate=False)
    sorted_unknown, right = np.sort(unknown), known[correct]
    below = [np.searchsorted(sorted_unknown, right, side) for side in ("left", "right")]

    # The released OSCR, its loop over thresholds as running sums.
    order = np.argsort(values, kind="stable")
    is_right = np.concatenate([correct, np.zeros(len(unknown), bool)])[order]
    above = np.append(np.cumsum(is_right[::-1])[::-1][1:], 0) / len(known)
    from_here = np.cumsum((1 - is_known[order])[::-1])[::-1] / len(unknown)
    compat = np.sum((from_here[:-1] - from_here[1:]) * (above[:-1] + above[1:]) / 2) + from_here[-1] * above[-1] / 2

    def right_at(fpr):
        """Share of known images that are right and above the first unknown image that may not come in."""
        return np.mean(correct & (known > sorted_unknown[-1 - int(fpr * len(unknown) + 1e-9)]))

    return {
        "accuracy": correct.mean(),
        "auroc": sklearn.metrics.roc_auc_score(is_known, values),
        "fpr95_unknown_positive": rejected_wrongly[np.argmax(rejected >= 0.95)],
        "fpr95_known_positive": accepted_wrongly[np.argmax(accepted >= 0.95)],
        "average_precision_known": sklearn.metrics.average_precision_score(is_known, values),
        "average_precision_unknown": sklearn.metrics.average_precision_score(1 - is_known, -values),
        "oscr": sum(map(np.sum, below)) / 2 / (len(known) * len(unknown)),
        "oscr_compat": compat,
        "ccr_at_fpr_01": right_at(0.01),
        "ccr_at_fpr_10": right_at(0.1),
    }


def head_metrics(logits, labels):
    p = scipy.special.softmax(logits.astype(np.float64), axis=1)
    correct, confidence = p.argmax(axis=1) == labels, p.max(axis=1)
    bins = np.clip(np.ceil(confidence * 15).astype(int) - 1, 0, 14)
    gaps = [np.abs((correct[bins == i] - confidence[bins == i]).sum()) for i in range(15)]
    return {
        "accuracy": correct.mean(),
        "ece": sum(gaps) / len(labels),
        "nll": sklearn.metrics.log_loss(labels, p, labels=range(KNOWN)),
        "brier": np.square(p - np.eye(KNOWN)[labels]).sum(axis=1).mean(),
    }


def reference_metrics(data, scored):
    known, unknown = data.parts["test_known"], data.parts["test_unknown"]
    found = {}
    for output in OUTPUTS:
        correct = data.split(scored[output].predicted)["test_known"] == known.labels
        for score, values in scored[output].by_score.items():
            of = data.split(values)
            found |= named(f"{output} {score}", pair_metrics(of["test_known"], of["test_unknown"], correct))
    judged = headline(data, scored[HEADLINE[0]])
    descending = np.sort(data.split(scored[HEADLINE[0]].by_score[HEADLINE[1]])["validation"])[::-1]
    threshold = descending[int(np.ceil(open_set.KEEP * len(descending))) - 1]
    decided = np.concatenate(
        [
            np.where(judged.known >= threshold, judged.predicted_known, KNOWN),
            np.where(judged.unknown >= threshold, judged.predicted_unknown, KNOWN),
        ]
    )
    truth = np.concatenate([known.labels, np.full(len(unknown.labels), KNOWN)])
    classes = np.concatenate([known.classes, unknown.classes])
    rows = np.unique(classes, return_inverse=True)[1]
    confusion = sklearn.metrics.confusion_matrix(rows, decided, labels=range(KNOWN + UNKNOWN))[:, : KNOWN + 1]
    correct = judged.predicted_known == known.labels
    auroc = lambda known, unknown: sklearn.metrics.roc_auc_score(
        np.repeat([1, 0], [len(known), len(unknown)]), np.concatenate([known, unknown])
    )
    for name in np.unique(known.classes):
        at = known.classes == name
        found |= named(name, {"auroc": auroc(judged.known[at], judged.unknown), "accuracy": correct[at].mean()})
    for name in np.unique(unknown.classes):
        found |= named(name, {"auroc": auroc(judged.known, judged.unknown[unknown.classes == name])})
    found |= {"macro_f1": sklearn.metrics.f1_score(truth, decided, average="macro"), "threshold": threshold}
    found["confusion"] = confusion / len(known.labels)
    return found | named("head", head_metrics(known.outputs[LOGITS], known.labels))


def reference_bootstrap(data, scored):
    judged, random = headline(data, scored[HEADLINE[0]]), np.random.default_rng(0)
    correct = judged.predicted_known == data.parts["test_known"].labels
    distinct, rank = np.unique(np.concatenate(judged[:2]), return_inverse=True)
    known, unknown = np.split(rank, [len(judged.known)])
    count = lambda ranks: np.bincount(ranks, minlength=len(distinct))
    samples = []
    for _ in range(RESAMPLES):
        at = random.integers(0, len(known), len(known))
        drawn, right = known[at], correct[at]
        of_unknown = count(unknown[random.integers(0, len(unknown), len(unknown))])
        won = np.cumsum(of_unknown) - of_unknown / 2  # unknown images below each rank, ties one half
        pairs = len(known) * len(unknown)
        samples.append([right.mean(), won[drawn].sum() / pairs, won[drawn[right]].sum() / pairs])
    low, high = np.quantile(samples, [0.025, 0.975], axis=0)
    return {name: [low[i], high[i]] for i, name in enumerate(("accuracy", "auroc", "oscr"))}


def reference_linear_probe(data, scored):
    scaler = sklearn.preprocessing.StandardScaler()
    (train, labels), (validation, truth) = probed(data, "train"), probed(data, "validation")
    train, validation = scaler.fit_transform(train), scaler.transform(validation)
    model = sklearn.linear_model.LogisticRegression(tol=probe.TOLERANCE, max_iter=probe.MAX_STEPS, warm_start=True)
    best, logits = -1.0, None
    features, test_labels = probed(data, "test_known")
    features = scaler.transform(features)
    for l2 in sorted(probe.L2, reverse=True):
        model.set_params(C=1 / (l2 * len(labels))).fit(train, labels)
        accuracy = model.score(validation, truth)
        if accuracy > best:
            best, logits = accuracy, model.decision_function(features)
    return head_metrics(logits, test_labels)


def reference_knn_probe(data, scored):
    (train, labels), (validation, truth) = probed(data, "train"), probed(data, "validation")
    unit_train = unit(train)
    ks = [k for k in probe.NEIGHBOURS if k <= len(train)]

    def votes(images, ks):
        """Predicted classes of every k, [N, len(ks)]."""
        most, found = max(ks), []
        for at in blocks(len(images)):
            cosine = unit(images[at]) @ unit_train.T
            nearest = np.argpartition(cosine, -most)[:, -most:]
            order = np.argsort(-np.take_along_axis(cosine, nearest, axis=1), axis=1)
            votes = np.cumsum(np.eye(KNOWN, dtype=int)[labels[np.take_along_axis(nearest, order, axis=1)]], axis=1)
            found.append(votes[:, np.array(ks) - 1].argmax(axis=2))
        return np.concatenate(found)

    k = ks[int((votes(validation, ks) == truth[:, None]).mean(axis=0).argmax())]
    images, test_labels = probed(data, "test_known")
    return {"accuracy": np.mean(votes(images, [k])[:, 0] == test_labels), "k": k}


# Both


OURS = our_scores, our_metrics, our_bootstrap, our_linear_probe, our_knn_probe
REFERENCE = reference_scores, reference_metrics, reference_bootstrap, reference_linear_probe, reference_knn_probe
NAMES = "metrics", "bootstrap", "linear probe", "kNN probe"


def evaluate(data, sides):
    """({part: seconds}, {part: results}) of one whole evaluation by each side; they take turns, part by part."""
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
    """Prints the largest difference of each kind; stops where one is more than its kind allows."""
    class_size = min(np.unique(data.parts[part].classes, return_counts=True)[1].min() for part in SCORED[1:])
    allowed = {
        "areas, losses, thresholds": TOLERANCE,
        "shares of counted images": 2 / class_size,  # rounding can move an image across a threshold
        "linear probe": 2e-3,  # two solvers stop near the minimum
        "bootstrap limits, in widths of the interval": 0.15,  # other random draws
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
            if not difference <= allowed[kind]:
                raise SystemExit(
                    f"{part}, {name}: {value}, but {expected} by NumPy; allowed difference: {allowed[kind]}"
                )
            largest[kind] = max(largest[kind], (difference, f"{part}, {name}"))
    print("\nLargest difference between the sides:")
    for kind, (difference, name) in largest.items():
        print(f"  {kind}: {difference:.1e} ({name}); allowed: {allowed[kind]:.1e}")


def count_programs() -> list:
    """Seconds that XLA takes for each program it compiles from now on."""
    found: list[float] = []
    jax.config.update("jax_enable_compilation_cache", False)  # a program from a file would not show its cost
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
        parser.error("allowed: one repeat or more, and a scale from 0.1 (a covariance needs images) to 1")
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
    print(f"\n{counts}; features {FEATURE}, projections {PROJECTION}, logits {KNOWN}; scores: {columns}")
    later = len(compiling) - programs
    print(f"{programs} programs compiled in {compile_seconds:.1f} s in the first call, {later} later")
    versions = ", ".join(f"{module.__name__} {module.__version__}" for module in (jax, np, scipy, sklearn))
    print(f"{jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores, {versions}, {given.repeats} repeats")
    if theirs:
        check(data, results, repeats[-1][1][1])


if __name__ == "__main__":
    main()
