"""The Semantic Shift Benchmark: unknown classes that are easy, medium or hard to tell from the known ones.

python -m gradmix_jax.main --config=configs/ssb.py:cub --config.dataset.root=DATA --workdir=runs/ssb_cub
python -m gradmix_jax.main --config=configs/ssb.py:aircraft,layer --config.dataset.root=DATA --workdir=runs/ssb_aircraft

DATA holds CUB_200_2011, fgvc-aircraft-2013b, stanford_cars, imagenet, imagenet21k_resized as unpacked (layouts:
docs/protocols.md). After the colon: cub (default), aircraft, cars, imagenet or imagenet_w21, then a recipe of
configs/cifar_osr.py or a method of docs/methods.md. cub,mls, aircraft,mls, cub,arpl and aircraft,arpl have the
published settings; their published runs start from a ResNet-50 pretrained on Places, so give such weights as
model.init_from. `per_unknown_group` in results.json has each group; the headline covers all unknown classes.

CUB and Aircraft are trained as by the authors of GradMix (arXiv 2505.12803), and Cars likewise; the authors have no
recipe for ImageNet.
Not yet run at this size: it needs an accelerator.
"""

from gradmix_jax.config import RIVALS, apply_recipe, default_config, phase, variant_of
from gradmix_jax.data.protocols import PROTOCOLS

VARIANTS = ("cub", "aircraft", "cars", "imagenet", "imagenet_w21")


def get_config(variant: str = "cub"):
    name, recipe = variant_of(variant, VARIANTS)
    protocol, large = PROTOCOLS[f"ssb_{name}"], name.startswith("imagenet")
    c = default_config()
    c.dataset.name = protocol.name
    c.dataset.unknown_name = protocol.unknown_name
    c.dataset.benchmark = protocol.benchmark
    c.dataset.image_size = 224
    c.dataset.channels = 3
    c.dataset.validation_fraction = 0.0
    c.dataset.storage = "stream"
    c.normalization.mean = (0.485, 0.456, 0.406)
    c.normalization.std = (0.229, 0.224, 0.225)
    c.model.name = "resnet50" if large else "resnet18"
    c.model.stem = "imagenet"
    c.attribution.stages = ("stage3",)
    c.train.batch_size = 256
    c.train.checkpoint_every_epochs = 20
    c.phases = (phase("joint", epochs=100 if large else 600, supcon=1.0, ssl=1.2),)
    # Some images of birds and cars are in a dataset twice.
    c.evaluate.duplicates = "drop"
    return apply_recipe(c, recipe, at_scale=recipe in RIVALS and protocol.benchmark in RIVALS[recipe].published)
