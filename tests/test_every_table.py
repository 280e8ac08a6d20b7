"""Every entry of the package's tables has a reference test; a new entry without one fails here.

Tables of `method` have theirs in `method/test_tables.py`, objectives in `objectives/test_published_losses.py`, and
scores in `scores/test_scores.py`.
"""

import ast
import pathlib

import pytest

from gradmix_jax import augment, corruptions, data, models
from gradmix_jax.training import mapping

HERE = pathlib.Path(__file__).parent
MODELS, PRETRAINED = "models/test_models.py", "models/test_pretrained.py"
# In NumPy, or on the weights and images of PyTorch's libraries.
ENCODERS = {
    "small_cnn": (MODELS, "test_small_cnn_and_head_match_numpy"),
    **dict.fromkeys(("resnet18", "resnet34", "resnet50"), (MODELS, "test_resnet_matches_numpy")),
    **dict.fromkeys(
        ("preact_resnet18", "wide_resnet28", "wide_resnet40"), (MODELS, "test_preact_resnet_matches_numpy")
    ),
    "classifier32": (MODELS, "test_classifier32_matches_numpy"),
    **dict.fromkeys(("vit_tiny", "vit_small", "vit_base"), (MODELS, "test_transformer_matches_numpy")),
    **dict.fromkeys(
        ("vit_tiny_token", "dinov2_small", "dinov2_base", "dinov2_small_registers", "dinov2_base_registers"),
        (PRETRAINED, "test_activations_agree_with_pytorch"),
    ),
}
PREPARED, LAYOUTS = "data/test_datasets_prepared.py", "data/test_layouts.py"
READERS = {
    "digits": (PREPARED, "test_digits_are_all_of_scikit_learns_digits"),
    **dict.fromkeys(
        ("mnist", "fashion_mnist", "svhn_cropped", "cifar10"),
        (PREPARED, "test_an_official_name_is_read_from_its_files"),
    ),
    "cifar100": (PREPARED, "test_cifar_plus_finds_cifar100_by_itself"),
    "cifar10_corrupted": (PREPARED, "test_corrupted_cifar10"),
    "imagenet2012": (PREPARED, "test_imagenet_is_tested_on_its_validation_part"),
    "folder": ("data/test_datasets_files.py", "test_which_files_are_images"),
    "csv": ("data/test_folder_layouts.py", "test_csv_lists"),
    "idx": ("data/test_datasets_files.py", "test_idx_files"),
    **dict.fromkeys(("cub", "aircraft", "cars"), (LAYOUTS, "test_a_fine_grained_dataset_as_unpacked")),
    "imagenet": (LAYOUTS, "test_imagenet_in_every_layout"),
    "imglist": (LAYOUTS, "test_image_lists"),
    "hf": ("data/test_hub.py", "test_parts_labels_and_images"),
    "noise": ("data/test_datasets.py", "test_noise_has_the_named_distribution"),
}
IMAGES = "corruptions/test_corruptions.py"
CORRUPTIONS = {
    "gaussian_noise": (IMAGES, "test_gaussian_noise_has_its_mean_and_std"),
    "shot_noise": (IMAGES, "test_shot_noise_is_poisson"),
    "impulse_noise": (IMAGES, "test_impulse_noise_changes_its_share_to_black_and_white"),
    "defocus_blur": (IMAGES, "test_defocus_blur_is_correlation_with_a_disk"),
    "glass_blur": (IMAGES, "test_glass_blur_is_the_sequential_loop_over_pixels"),
    "motion_blur": (IMAGES, "test_motion_blur_is_half_a_gaussian_along_a_line"),
    "zoom_blur": (IMAGES, "test_zoom_blur_is_the_mean_of_scipy_zooms"),
    "snow": (IMAGES, "test_snow_whitens_and_falls_steeply"),
    "frost": (IMAGES, "test_frost_adds_a_weighted_texture"),
    "fog": (IMAGES, "test_fog_is_diamond_square_noise"),
    "brightness": (IMAGES, "test_brightness_shifts_the_value_of_hsv"),
    "contrast": (IMAGES, "test_contrast_scales_the_distance_to_the_mean_of_each_channel"),
    "elastic_transform": (IMAGES, "test_elastic_transform_is_an_affine_map_and_a_smooth_displacement"),
    "pixelate": (IMAGES, "test_pixelate_is_pillows_box_resize"),
    "jpeg_compression": (IMAGES, "test_jpeg_is_pillows"),
}
VIEWS = "augment/test_augment_policies.py"
POLICIES = {
    "standard": ("augment/test_augment.py", "test_jitter_in_every_order_matches_the_formulas"),
    "randaugment": (VIEWS, "test_operations_match_pillow"),
    "augmix": (VIEWS, "test_augmix_is_the_papers_algorithm"),
}
MAPPINGS = dict.fromkeys(
    ("pmap", "shard_map", "sharded"), ("training/test_mapping.py", "test_eight_devices_agree_with_one")
)
TABLES = {
    "ENCODERS": (models.ENCODERS, ENCODERS),
    "READERS": (data.READERS, READERS),
    "CORRUPTIONS": (corruptions.CORRUPTIONS, CORRUPTIONS),
    "POLICIES": (augment.POLICIES, POLICIES),
    "MAPPINGS": (mapping.MAPPINGS, MAPPINGS),
}


@pytest.mark.parametrize("name", TABLES)
def test_every_entry_has_a_reference_test(name):
    table, tests = TABLES[name]
    assert set(table) == set(tests)
    for file, test in set(tests.values()):
        functions = [node.name for node in ast.parse((HERE / file).read_text()).body if hasattr(node, "name")]
        assert test in functions, f"{file} has no {test}"
