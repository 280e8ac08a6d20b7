"""GradMix for a vision transformer of plain functions: token maps, masks of whole patches, cross-entropy."""

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

from gradmix_jax import explain_and_mix, no_tap, objectives

PATCH, WIDTH, HEADS, BLOCKS = 2, 64, 4, 2
optimizer = optax.adam(2e-3)


def init(key, tokens=16):
    shapes = {"embed": (PATCH**2, WIDTH), "positions": (tokens, WIDTH), "head": (WIDTH, 10)}
    block = {"qkv": (WIDTH, 3 * WIDTH), "out": (WIDTH, WIDTH), "up": (WIDTH, 4 * WIDTH), "down": (4 * WIDTH, WIDTH)}
    shapes |= {f"{name}{i}": shape for i in range(BLOCKS) for name, shape in block.items()}
    keys = jax.random.split(key, len(shapes))
    return {name: jax.random.normal(k, s) * s[0] ** -0.5 for k, (name, s) in zip(keys, shapes.items())}


def forward(params, images, tap=no_tap):
    batch, side = len(images), images.shape[1] // PATCH
    normed = lambda x: jax.nn.standardize(x, axis=-1)
    patches = images.reshape(batch, side, PATCH, side, PATCH).swapaxes(2, 3).reshape(batch, side**2, -1)
    x = (patches - 0.3) @ params["embed"] + params["positions"][None]
    for i in range(BLOCKS):
        q, k, v = jnp.split((normed(x) @ params[f"qkv{i}"]).reshape(batch, side**2, HEADS, -1), 3, axis=-1)
        x = x + jax.nn.dot_product_attention(q, k, v).reshape(x.shape) @ params[f"out{i}"]
        x = x + jax.nn.gelu(normed(x) @ params[f"up{i}"]) @ params[f"down{i}"]
        x = tap(f"block{i}", x.reshape(batch, side, side, -1)).reshape(x.shape)  # tokens as a grid
    return jnp.mean(normed(x), axis=1) @ params["head"]


@jax.jit
def step(params, opt_state, key, images, labels):
    cross_entropy = lambda logits, targets: jnp.mean(optax.softmax_cross_entropy(logits, targets))
    loss = lambda logits: cross_entropy(logits, jax.nn.one_hot(labels, 10))
    options = dict(map="token", stages=("block0", "block1"), mask="patches", patch_size=PATCH)
    mixing = explain_and_mix(key, forward, params, images, loss=loss, **options)
    targets = objectives.mixed_targets(labels, mixing.weight, mixing.partner, num_classes=10)
    value, gradient = mixing.value_and_grad_shared(lambda logits: cross_entropy(logits, targets))
    updates, opt_state = optimizer.update(gradient, opt_state)
    return optax.apply_updates(params, updates), opt_state, value


def main(steps=100):
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype("float32").reshape(-1, 8, 8, 1)
    params, key = init(jax.random.key(0)), jax.random.key(1)
    state = params, optimizer.init(params)
    for i in range(steps):
        batch = jax.random.choice(jax.random.fold_in(key, 2 * i), 1500, (64,), replace=False)
        *state, loss = step(*state, jax.random.fold_in(key, 2 * i + 1), images[batch], labels[batch])
    return float(loss), float(jnp.mean(jax.jit(forward)(state[0], images[1500:]).argmax(1) == labels[1500:]))


if __name__ == "__main__":
    print("loss {:.3f}, accuracy on 297 test images {:.3f}".format(*main()))
