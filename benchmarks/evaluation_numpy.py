"""The other side of `evaluation.py`: the same work with NumPy, SciPy and scikit-learn."""

import numpy as np
import scipy
import scipy.special
import sklearn
import sklearn.linear_model
import sklearn.metrics
import sklearn.neighbors
import sklearn.preprocessing
from evaluation_data import (
    FEATURE,
    FEATURES,
    HEADLINE,
    KNOWN,
    LOGITS,
    OUTPUTS,
    UNKNOWN,
    K,
    Scored,
    headline,
    named,
    probed,
)
from scipy.spatial.distance import cdist

from gradmix_jax.evaluation import open_set, probes

BLOCK, RESAMPLES = 1000, 1000


def norm(features):
    return np.linalg.norm(features, axis=1, keepdims=True)


def unit(features):
    return features / norm(features)


def blocks(count):
    return [slice(start, start + BLOCK) for start in range(0, count, BLOCK)]


def class_means(features, labels):
    return np.stack([features[labels == label].mean(axis=0) for label in range(KNOWN)])


def covariance(centered):
    centered = centered.astype(np.float64)
    return centered.T @ centered / len(centered)


def whitening(matrix):
    """W with W W^T = pseudo-inverse, without the directions that float64 cannot resolve."""
    values, vectors = np.linalg.eigh(matrix)
    kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
    return vectors[:, kept] / np.sqrt(values[kept])


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
    neighbors = min(50, len(train))
    nearest = np.concatenate(
        [np.partition(unit_images[at] @ unit_train.T, -neighbors)[:, -neighbors] for at in blocks(len(images))]
    )
    means = class_means(train, labels)
    centered = train - means[labels]
    shared = covariance(centered)
    to_shared = squared_distances(images, means, whitening(shared)).min(axis=1)
    unit_means = class_means(unit_train, labels)
    to_unit = squared_distances(unit_images, unit_means, whitening(covariance(unit_train - unit_means[labels])))
    per_class = [0.9 * covariance(centered[labels == label]) + 0.1 * shared for label in range(KNOWN)]
    to_own = np.stack(
        [squared_distances(images, means[i : i + 1], whitening(per_class[i]))[:, 0] for i in range(KNOWN)]
    )
    mean = train.mean(axis=0, keepdims=True)
    to_all = squared_distances(images, mean, whitening(covariance(train - mean)))[:, 0]
    found = {
        "topk_cosine": sums.max(axis=1),
        "topk_cosine_normalized": (sums / sums.sum(axis=1, keepdims=True)).max(axis=1),
        "knn": -np.sqrt(np.maximum(2 - 2 * nearest, 0)),
        "class_mean_cosine": (unit_images @ unit(unit_means).T).max(axis=1),
        "class_mean_l1": -cdist(images, means, "cityblock").min(axis=1),
        "mahalanobis": -to_shared,
        "mahalanobis_per_class": -to_own.min(axis=0),
        "mahalanobis_plus_plus": -to_unit.min(axis=1),
        "relative_mahalanobis": to_all - to_shared,
    }
    if output != "projection":
        found["feature_norm"] = np.linalg.norm(images, axis=1)
    members = np.stack([found["topk_cosine"], found["relative_mahalanobis"]]).astype(np.float64)
    of_validation = members[:, : data.ends[0]]
    center, spread = of_validation.mean(axis=1, keepdims=True), of_validation.std(axis=1, keepdims=True)
    found["ensemble"] = ((members - center) / spread).mean(axis=0)
    return Scored(found, sums.argmax(axis=1))


def logit_scores(data, output):
    train, images, logits = data.parts["train"].outputs, data.together["features"], data.together[LOGITS]
    energy = lambda values: scipy.special.logsumexp(values, axis=1)
    log_p = scipy.special.log_softmax(logits.astype(np.float64), axis=1)
    p = np.exp(log_p)
    held_out = data.parts["validation"].outputs[LOGITS]
    predicted, posterior = held_out.argmax(axis=1), scipy.special.softmax(held_out, axis=1)
    templates = np.stack([posterior[predicted == label].mean(axis=0) for label in np.unique(predicted)])
    log_templates = np.log(np.maximum(templates, np.finfo(np.float32).tiny))
    kernel, bias = data.head
    labels, right = data.parts["train"].labels, train[LOGITS].argmax(axis=1) == data.parts["train"].labels
    patterns = class_means(train["features"][right], labels[right])
    bank = unit(train["features"]) * energy(train[LOGITS])[:, None]
    guide = np.concatenate(
        [np.partition(unit(images[at]) @ bank.T, -10)[:, -10:].mean(axis=1) for at in blocks(len(images))]
    )
    contribution = train["features"].mean(axis=0)[:, None] * kernel
    sparse = kernel * (contribution > np.percentile(contribution, 90))
    kept = np.where(images >= np.partition(images, -(FEATURE // 10), axis=1)[:, [-(FEATURE // 10)]], images, 0)
    shaped = kept * np.exp(images.sum(axis=1, keepdims=True) / kept.sum(axis=1, keepdims=True))
    clipped = np.minimum(images, np.percentile(train["features"], 90))
    origin = -np.linalg.pinv(kernel.T.astype(np.float64)) @ bias
    centered = train["features"] - origin
    residual = np.linalg.eigh(centered.T @ centered)[1][:, : FEATURE - FEATURE // 2]
    length = lambda centered: np.linalg.norm(centered @ residual, axis=1)
    weight = (train["features"] @ kernel + bias).max(axis=1).mean() / length(centered).mean()
    found = {
        "msp": log_p.max(axis=1),
        "max_logit": logits.max(axis=1),
        "energy": energy(logits),
        "entropy": (p * log_p).sum(axis=1),
        "gen": -((p * (1 - p)) ** 0.1).sum(axis=1),
        "kl_matching": -((p * log_p).sum(axis=1, keepdims=True) - p @ log_templates.T).min(axis=1),
        "react": energy(clipped @ kernel + bias),
        "vim": energy(images @ kernel + bias) - weight * length(images - origin),
        "ash": energy(shaped @ kernel + bias),
        "dice": energy(images @ sparse + bias),
        "she": (images * patterns[logits.argmax(axis=1)]).sum(axis=1),
        "nnguide": guide * energy(logits),
        "gradnorm": np.abs(images).sum(axis=1) * np.abs(p - 1 / KNOWN).sum(axis=1),
        "postmax": logits.max(axis=1) / np.linalg.norm(images, axis=1),
    }
    return Scored(found, logits.argmax(axis=1))


def scores_of(data, output):
    return (logit_scores if output == LOGITS else feature_scores)(data, output)


def pair_metrics(known, unknown, correct):
    """The same as `open_set.threshold_free_metrics`."""
    is_known, values = np.repeat([1, 0], [len(known), len(unknown)]), np.concatenate([known, unknown])
    accepted_wrongly, accepted, _ = sklearn.metrics.roc_curve(is_known, values, drop_intermediate=False)
    rejected_wrongly, rejected, _ = sklearn.metrics.roc_curve(1 - is_known, -values, drop_intermediate=False)
    sorted_unknown, right = np.sort(unknown), known[correct]
    below = [np.searchsorted(sorted_unknown, right, side) for side in ("left", "right")]

    # The released OSCR, with running sums for its loop over thresholds.
    order = np.argsort(values, kind="stable")
    is_right = np.concatenate([correct, np.zeros(len(unknown), bool)])[order]
    above = np.append(np.cumsum(is_right[::-1])[::-1][1:], 0) / len(known)
    from_here = np.cumsum((1 - is_known[order])[::-1])[::-1] / len(unknown)
    compat = np.sum((from_here[:-1] - from_here[1:]) * (above[:-1] + above[1:]) / 2) + from_here[-1] * above[-1] / 2

    def right_at(fpr):
        """Share of known images that are correct and above the first unknown image to be rejected."""
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


def metrics(data, scored):
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


def bootstrap_samples(random, known, unknown, correct, resamples):
    """Accuracy, AUROC and OSCR of each bootstrap sample, from ranks of all images."""
    distinct, rank = np.unique(np.concatenate([known, unknown]), return_inverse=True)
    known, unknown = np.split(rank, [len(known)])
    count = lambda ranks: np.bincount(ranks, minlength=len(distinct))
    samples = []
    for _ in range(resamples):
        at = random.integers(0, len(known), len(known))
        drawn, right = known[at], correct[at]
        of_unknown = count(unknown[random.integers(0, len(unknown), len(unknown))])
        won = np.cumsum(of_unknown) - of_unknown / 2  # unknown images below each rank, ties one half
        pairs = len(known) * len(unknown)
        samples.append([right.mean(), won[drawn].sum() / pairs, won[drawn[right]].sum() / pairs])
    return samples


def bootstrap(data, scored):
    judged = headline(data, scored[HEADLINE[0]])
    correct = judged.predicted_known == data.parts["test_known"].labels
    samples = bootstrap_samples(np.random.default_rng(0), *judged[:2], correct, RESAMPLES)
    low, high = np.quantile(samples, [0.025, 0.975], axis=0)
    return {name: [low[i], high[i]] for i, name in enumerate(("accuracy", "auroc", "oscr"))}


def linear_probe(data, scored):
    scaler = sklearn.preprocessing.StandardScaler()
    (train, labels), (validation, truth) = probed(data, "train"), probed(data, "validation")
    train, validation = scaler.fit_transform(train), scaler.transform(validation)
    model = sklearn.linear_model.LogisticRegression(tol=probes.TOLERANCE, max_iter=probes.MAX_STEPS, warm_start=True)
    best, logits = -1.0, None
    features, test_labels = probed(data, "test_known")
    features = scaler.transform(features)
    for l2 in sorted(probes.L2, reverse=True):
        model.set_params(C=1 / (l2 * len(labels))).fit(train, labels)
        accuracy = model.score(validation, truth)
        if accuracy > best:
            best, logits = accuracy, model.decision_function(features)
    return head_metrics(logits, test_labels)


def knn_probe(data, scored):
    (train, labels), (validation, truth) = probed(data, "train"), probed(data, "validation")
    unit_train = unit(train)
    ks = [k for k in probes.NEIGHBORS if k <= len(train)]

    def votes(images, ks):
        """Predicted classes for every k, [N, len(ks)]."""
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


def diversity(data, scored):
    train, found = data.parts["train"], {}
    for name in FEATURES:
        features = train.outputs[name]
        singular = np.linalg.svd(features - features.mean(axis=0), compute_uv=False)
        singular = singular[singular > singular[0] * max(features.shape) * np.finfo(np.float32).eps]
        share = singular / singular.sum()
        found[f"{name} effective_rank"] = np.exp(-np.sum(share * np.log(share)))
        for label in range(KNOWN):
            own = features[train.labels == label]
            nearest = sklearn.neighbors.NearestNeighbors(n_neighbors=11, algorithm="brute").fit(own).kneighbors(own)[0]
            found[f"{name} dimension of {label}"] = 1 / np.log(nearest[:, -1:] / nearest[:, 1:-1]).mean()
    return found
