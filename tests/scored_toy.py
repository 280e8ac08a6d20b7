"""Features of three known classes, and every score as defined in its paper, in float64 NumPy."""

import jax.numpy as jnp
import numpy as np

from gradmix_jax import scores
from gradmix_jax.scores import odin as odin_lib

K, F, N = 3, 8, 180
# Classes of different sizes: the last one has half of the images.
LABELS = np.minimum(np.random.default_rng(1).permutation(np.arange(N) % 4), K - 1)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def logsumexp(x):
    return np.log(np.exp(x - x.max(axis=1, keepdims=True)).sum(axis=1)) + x.max(axis=1)


class Toy:
    """Features >= 0 around a center per known class, weaker ones between them as unknown; a nearest-center head."""

    rng = np.random.default_rng(0)
    centers = 3 * unit(np.abs(rng.normal(size=(K, F))))
    noise = lambda self, size: self.rng.normal(size=(size, F)) * 0.4

    def __init__(self):
        self.train = self.known(LABELS)
        self.validation = self.known(LABELS[:40])
        self.test = self.known(LABELS[:35])
        self.unknown = np.abs(0.4 * self.centers.mean(axis=0) + self.noise(35))
        self.head = self.centers.T, np.array([0.1, -0.3, 0.2])

    def known(self, labels):
        return np.abs(self.centers[labels] + self.noise(len(labels)))

    def logits(self, features):
        return features @ self.head[0] + self.head[1]

    def outputs(self, features, **perturbation):
        features, head = features.astype(np.float32), [np.float32(weights) for weights in self.head]
        # The model in ODIN's tests takes features as images.
        model = lambda x: jnp.tanh(x) @ head[0] + head[1][None]
        perturbed = odin_lib.perturbed_logits(model, jnp.asarray(features), **perturbation)
        return scores.Outputs(features, self.logits(features).astype(np.float32), perturbed)

    def reference(self):
        return scores.Reference(self.outputs(self.train), LABELS, K, self.head, self.outputs(self.validation))


toy = Toy()
MEANS = np.stack([toy.train[k == LABELS].mean(axis=0) for k in range(K)])
CENTERED = toy.train - MEANS[LABELS]
SHARED = CENTERED.T @ CENTERED / N


def class_sums(x, k=3):
    cosine = unit(x) @ unit(toy.train).T
    return np.stack([np.sort(cosine[:, c == LABELS], axis=1)[:, -k:].sum(axis=1) for c in range(K)], axis=1)


def mahalanobis(x, mean, covariance):
    return np.einsum("nf,fg,ng->n", x - mean, np.linalg.inv(covariance), x - mean)


def to_shared(x):
    return np.min([mahalanobis(x, mean, SHARED) for mean in MEANS], axis=0)


def relative(x):
    return mahalanobis(x, toy.train.mean(axis=0), np.cov(toy.train.T, bias=True)) - to_shared(x)


def per_class(x):
    own = [np.cov(toy.train[c == LABELS].T, bias=True) for c in range(K)]
    return -np.min([mahalanobis(x, MEANS[c], 0.9 * own[c] + 0.1 * SHARED) for c in range(K)], axis=0)


def mahalanobis_plus_plus(x):
    train, test = unit(toy.train), unit(x)
    means = np.stack([train[c == LABELS].mean(axis=0) for c in range(K)])
    centered = train - means[LABELS]
    return -np.min([mahalanobis(test, mean, centered.T @ centered / N) for mean in means], axis=0)


def kl_matching(x):
    p, held_out = softmax(toy.logits(x)), softmax(toy.logits(toy.validation))
    templates = [held_out[held_out.argmax(axis=1) == c].mean(axis=0) for c in range(K)]
    return -np.min([(p * np.log(p / template)).sum(axis=1) for template in templates], axis=0)


def entropy(x):
    p = softmax(toy.logits(x))
    return -np.log(-(p * np.log(p)).sum(axis=1))


def gen(x, gamma=0.1, largest=K):
    p = np.sort(softmax(toy.logits(x)), axis=1)[:, ::-1][:, :largest]
    return -np.log((p**gamma * (1 - p) ** gamma).sum(axis=1))


def ash(x, variant="s", percentile=90):
    kept = F - round(F * percentile / 100)
    shaped = []
    for feature in x:
        largest = np.argsort(-feature)[:kept]
        value = feature[largest]
        change = {"s": value * np.exp(feature.sum() / value.sum()), "b": feature.sum() / kept, "p": value}
        shaped.append(np.zeros(F))
        shaped[-1][largest] = change[variant]
    return logsumexp(toy.logits(np.array(shaped)))


def dice(x, percentile=90):
    kernel, bias = toy.head
    contribution = toy.train.mean(axis=0)[:, None] * kernel
    return logsumexp(x @ (kernel * (contribution > np.percentile(contribution, percentile))) + bias)


def she(x):
    correct = toy.logits(toy.train).argmax(axis=1) == LABELS
    pattern = np.stack([toy.train[correct & (c == LABELS)].mean(axis=0) for c in range(K)])
    return (x * pattern[toy.logits(x).argmax(axis=1)]).sum(axis=1)


def gradnorm(x):
    """From the gradient of the kernel, image by image; by the chain rule, x_F times d loss / d logit_K."""
    of_logits = softmax(toy.logits(x)) - 1 / K
    return np.array([np.abs(np.outer(feature, gradient)).sum() for feature, gradient in zip(x, of_logits)])


def nnguide(x, k=10, kept=slice(None)):
    bank = (unit(toy.train) * logsumexp(toy.logits(toy.train))[:, None])[kept]
    return np.sort(unit(x) @ bank.T, axis=1)[:, -k:].mean(axis=1) * logsumexp(toy.logits(x))


def odin(x, temperature=1000, noise=0.0014):
    """Of logits = tanh(x) @ kernel + bias; log p_max = logits_max / T - logsumexp(logits / T), its gradient by hand."""
    kernel, bias = toy.head
    logits = lambda x: np.tanh(x) @ kernel + bias
    p, top = softmax(logits(x) / temperature), logits(x).argmax(axis=1)
    gradient = (1 - np.tanh(x) ** 2) * (kernel[:, top].T - p @ kernel.T) / temperature
    return np.log(K * softmax(logits(x + noise * np.sign(gradient)) / temperature).max(axis=1))


def vim(x, dimension=F // 2):
    origin = -np.linalg.pinv(toy.head[0].T) @ toy.head[1]
    _, _, rows = np.linalg.svd(toy.train - origin)
    virtual = lambda features: np.linalg.norm((features - origin) @ rows[dimension:].T, axis=1)
    scale = toy.logits(toy.train).max(axis=1).sum() / virtual(toy.train).sum()
    return logsumexp(toy.logits(x)) - scale * virtual(x)


def z_scored(score, x):
    validation = score(toy.validation)
    return (score(x) - validation.mean()) / validation.std()


REFERENCES = {
    "topk_cosine": lambda x: class_sums(x).max(axis=1),
    "topk_cosine_normalized": lambda x: (class_sums(x) / class_sums(x).sum(axis=1, keepdims=True)).max(axis=1),
    "knn": lambda x: -np.sort(np.linalg.norm(unit(x)[:, None] - unit(toy.train), axis=2), axis=1)[:, 49],
    "class_mean_cosine": lambda x: np.max(
        unit(x) @ unit(np.stack([unit(toy.train[c == LABELS]).mean(axis=0) for c in range(K)])).T, axis=1
    ),
    "class_mean_l1": lambda x: -np.abs(x[:, None] - MEANS).sum(axis=2).min(axis=1),
    "mahalanobis": lambda x: -to_shared(x),
    "mahalanobis_per_class": per_class,
    "relative_mahalanobis": relative,
    "feature_norm": lambda x: np.sqrt((x**2).sum(axis=1)),
    "msp": lambda x: np.log(softmax(toy.logits(x)).max(axis=1) / (1 - softmax(toy.logits(x)).max(axis=1))),
    "max_logit": lambda x: toy.logits(x).max(axis=1),
    "energy": lambda x: logsumexp(toy.logits(x)),
    "entropy": entropy,
    "gen": gen,
    "gradnorm": gradnorm,
    "postmax": lambda x: toy.logits(x).max(axis=1) / np.sqrt((x**2).sum(axis=1)),
    "she": she,
    "nnguide": nnguide,
    "ash": ash,
    "dice": dice,
    "odin": odin,
    "mahalanobis_plus_plus": mahalanobis_plus_plus,
    "kl_matching": kl_matching,
    "react": lambda x: logsumexp(toy.logits(np.minimum(x, np.percentile(toy.train, 90)))),
    "vim": vim,
    "ensemble": lambda x: (z_scored(lambda y: class_sums(y).max(axis=1), x) + z_scored(relative, x)) / 2,
}
