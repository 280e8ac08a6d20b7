"""Recipes: named sets of config keys, chosen after the colon in `--config=configs/cifar_osr.py:layer`."""

RECIPES = {
    # The project's default: jax.grad with respect to the images, thresholded masks, the partner's own pixels.
    "input": {
        "mix": {"method": "gradmix", "mask": "threshold", "fill": "partner"},
        "attribution": {"method": "input"},
    },
    # The paper's: LayerCAM of the chosen stages, boxes, the whole partner resized into the box.
    "layer": {
        "mix": {"method": "gradmix", "mask": "box", "fill": "partner_resized"},
        "attribution": {"method": "layer"},
    },
    # The choices of the authors' released code: noise in the box, the first view only, one draw and scale per batch.
    "released": {
        "mix": {
            "method": "gradmix",
            "mask": "box",
            "fill": "noise",
            "mixed_views": "first",
            "keep_draw": "batch",
        },
        "attribution": {"method": "layer", "norm": "batch", "sign": 1},
    },
    # The paper's masks and fill, with Grad-CAM in place of LayerCAM.
    "grad_cam": {
        "mix": {"method": "gradmix", "mask": "box", "fill": "partner_resized"},
        "attribution": {"method": "grad_cam"},
    },
    # For transformers: a map on tokens, whole patches masked, so that no token sees pixels of two images.
    "tokens": {
        "mix": {"method": "gradmix", "mask": "patches", "fill": "partner"},
        "attribution": {"method": "token"},
        "model": {"name": "vit_tiny_token"},
    },
    # Like "input", with masks that fade over two pixels on each side.
    "smooth": {
        "mix": {"method": "gradmix", "mask": "threshold", "fill": "partner", "border": 2},
        "attribution": {"method": "input"},
    },
    # Like "input", with other maps.
    "integrated_gradients": {
        "mix": {"method": "gradmix", "mask": "threshold", "fill": "partner"},
        "attribution": {"method": "integrated_gradients"},
    },
    "smoothgrad": {
        "mix": {"method": "gradmix", "mask": "threshold", "fill": "partner"},
        "attribution": {"method": "smoothgrad"},
    },
    # Like "layer", without a gradient.
    "eigen_cam": {
        "mix": {"method": "gradmix", "mask": "box", "fill": "partner_resized"},
        "attribution": {"method": "eigen_cam"},
    },
    # Like "tokens", without a gradient.
    "rollout": {
        "mix": {"method": "gradmix", "mask": "patches", "fill": "partner"},
        "attribution": {"method": "rollout"},
        "model": {"name": "vit_tiny_token"},
    },
    # The map the other way round: exchanges backgrounds.
    "backmix": {
        "mix": {"method": "backmix", "mask": "threshold", "fill": "partner"},
        "attribution": {"method": "input"},
    },
    # Other uses of the map.
    "attentive_cutmix": {
        "mix": {"method": "attentive_cutmix", "fill": "partner"},
        "attribution": {"method": "input"},
    },
    "puzzlemix": {"mix": {"method": "puzzlemix", "fill": "partner"}, "attribution": {"method": "input"}},
    "keep_cutout": {"mix": {"method": "keep_cutout", "fill": "mean"}, "attribution": {"method": "input"}},
    # For transformers.
    "tokenmix": {
        "mix": {"method": "tokenmix", "fill": "partner"},
        "attribution": {"method": "token"},
        "model": {"name": "vit_tiny_token"},
    },
    "transmix": {"mix": {"method": "transmix", "fill": "partner"}, "model": {"name": "vit_tiny_token"}},
    # Baselines for those three.
    "vit_none": {"mix": {"method": "none"}, "model": {"name": "vit_tiny_token"}},
    "vit_cutmix": {
        "mix": {"method": "cutmix", "mask": "box", "fill": "partner"},
        "model": {"name": "vit_tiny_token"},
    },
    # Baselines on the same step.
    "none": {"mix": {"method": "none"}},
    "cutmix": {"mix": {"method": "cutmix", "mask": "box", "fill": "partner"}},
    "saliencymix": {"mix": {"method": "saliencymix", "mask": "box", "fill": "partner"}},
    "fmix": {"mix": {"method": "fmix", "mask": "threshold", "fill": "partner"}},
    "resizemix": {"mix": {"method": "resizemix", "mask": "box", "fill": "partner_resized"}},
    "mixup": {"mix": {"method": "mixup"}},
    "manifold_mixup": {"mix": {"method": "manifold_mixup"}},
    # The published zeros are those of normalized images, that is, the mean color.
    "cutout": {"mix": {"method": "cutmix", "mask": "box", "fill": "mean"}},
    # Baselines without mixing, with other views.
    "randaugment": {"mix": {"method": "none"}, "augment": {"policy": "randaugment"}},
    "augmix": {"mix": {"method": "none"}, "augment": {"policy": "augmix"}},
    # The control that shows whether the map matters.
    "random": {
        "mix": {"method": "gradmix", "mask": "threshold", "fill": "partner"},
        "attribution": {"method": "random"},
    },
}
