"""GradMix in a Flax Linen training loop: a CNN with batch norm, cross-entropy and input maps, which need no taps."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

from gradmix_jax import explain_and_mix, objectives


class CNN(nn.Module):
    @nn.compact
    def __call__(self, images, train=True):
        x = images - 0.3
        for channels, stride in ((16, 1), (32, 2), (64, 1)):
            x = nn.Conv(channels, (3, 3), stride, use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(10)(jnp.mean(x, axis=(1, 2)))


model, optimizer = CNN(), optax.adam(3e-3)


def init(key, images):
    variables = model.init(key, images)
    return variables["params"], variables["batch_stats"], optimizer.init(variables["params"])


@jax.jit
def step(params, batch_stats, opt_state, key, images, labels):
    def forward(params, images):  # (outputs, aux): the running statistics change
        return model.apply({"params": params, "batch_stats": batch_stats}, images, mutable=["batch_stats"])

    cross_entropy = lambda logits, targets: jnp.mean(optax.softmax_cross_entropy(logits, targets))
    loss = lambda logits: cross_entropy(logits, jax.nn.one_hot(labels, 10))
    mixing = explain_and_mix(key, forward, params, images, loss=loss, has_aux=True)
    targets = objectives.mixed_targets(labels, mixing.weight, mixing.partner, num_classes=10)
    value, gradient = mixing.value_and_grad_shared(lambda logits: cross_entropy(logits, targets))
    updates, opt_state = optimizer.update(gradient, opt_state)
    return optax.apply_updates(params, updates), mixing.aux["batch_stats"], opt_state, value


def main(steps=100):
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype("float32").reshape(-1, 8, 8, 1)
    state, key = init(jax.random.key(0), images[:2]), jax.random.key(1)
    for i in range(steps):
        batch = jax.random.choice(jax.random.fold_in(key, 2 * i), 1500, (64,), replace=False)
        *state, loss = step(*state, jax.random.fold_in(key, 2 * i + 1), images[batch], labels[batch])
    logits = model.apply({"params": state[0], "batch_stats": state[1]}, images[1500:], train=False)
    return float(loss), float(jnp.mean(logits.argmax(1) == labels[1500:]))


if __name__ == "__main__":
    print("loss {:.3f}, accuracy on 297 test images {:.3f}".format(*main()))
