"""GradMix in a Flax NNX training loop: SupCon with mixed positives and LayerCAM maps of two tapped stages."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from sklearn.datasets import load_digits

from gradmix_jax import explain_and_mix, no_tap, objectives, scores


class CNN(nnx.Module):
    def __init__(self, rngs):
        sizes = ((1, 16, 1), (16, 32, 2), (32, 64, 1))
        self.convs = nnx.List([nnx.Conv(a, b, (3, 3), stride, rngs=rngs) for a, b, stride in sizes])
        self.head = nnx.Linear(64, 32, rngs=rngs)

    def __call__(self, images, tap=no_tap):
        x = images - 0.3
        for number, conv in enumerate(self.convs, start=1):
            x = tap(f"stage{number}", nnx.relu(conv(x)))
        z = self.head(jnp.mean(x, axis=(1, 2)))
        return z / jnp.linalg.norm(z, axis=1, keepdims=True)


graph, params = nnx.split(CNN(nnx.Rngs(0)), nnx.Param)
optimizer = optax.adam(3e-3)
forward = lambda params, images, tap=no_tap: nnx.merge(graph, params)(images, tap)


@jax.jit
def step(params, opt_state, key, images, labels):
    same_class = (labels[:, None] == labels[None, :]) & ~jnp.eye(len(labels), dtype=bool)

    def supcon(z, **mixed):
        return jnp.mean(objectives.contrastive(z, z, same_class, temperature=0.1, **mixed))

    options = dict(map="layer", stages=("stage2", "stage3"), mask="box", fill="partner_resized")  # the paper's
    mixing = explain_and_mix(key, forward, params, images, loss=supcon, **options)
    with_mixed = lambda z, mixed: supcon(z, positive_features_NxD=mixed, positive_weights_N=mixing.weight)
    value, gradient = mixing.value_and_grad(lambda z, mixed: supcon(z) + with_mixed(z, mixed))
    updates, opt_state = optimizer.update(gradient, opt_state)
    return optax.apply_updates(params, updates), opt_state, value


def main(steps=100):
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype("float32").reshape(-1, 8, 8, 1)
    state, key = (params, optimizer.init(params)), jax.random.key(1)
    for i in range(steps):
        batch = jax.random.choice(jax.random.fold_in(key, 2 * i), 1500, (64,), replace=False)
        *state, loss = step(*state, jax.random.fold_in(key, 2 * i + 1), images[batch], labels[batch])
    z = jax.jit(forward)(state[0], images)
    similarity = scores.topk_cosine(z[1500:], z[:1500], labels[:1500], num_classes=10)
    return float(loss), float(jnp.mean(similarity.argmax(1) == labels[1500:]))


if __name__ == "__main__":
    print("loss {:.3f}, accuracy of the nearest neighbors on 297 test images {:.3f}".format(*main()))
