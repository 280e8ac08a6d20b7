"""Every entry of the tables of `method` has a reference test; a new entry without one fails here."""

import ast
import pathlib

import pytest

from gradmix_jax.method import attribution, fills, masks, mix

HERE = pathlib.Path(__file__).parent
MIX, MIXERS = "test_mix.py", "test_mixers.py"
METHODS = {
    "none": (MIX, "test_invalid_calls_say_why"),
    "gradmix": (MIX, "test_pixels_outside_the_mask_stay_and_inside_are_the_partners"),
    "backmix": (MIXERS, "test_backmix_exchanges_what_is_background_in_both"),
    "attentive_cutmix": (MIXERS, "test_attentive_cutmix_pastes_the_partners_most_attended_cells"),
    "puzzlemix": (MIXERS, "test_puzzlemix_matches_a_search_image_by_image"),
    "keep_cutout": (MIXERS, "test_keep_cutout_cuts_where_the_map_is_small"),
    "cutmix": (MIX, "test_cutmix_boxes_are_rectangles_all_over_the_image"),
    "resizemix": (MIXERS, "test_resizemix_boxes_lie_inside_and_have_the_drawn_sides"),
    "saliencymix": (MIX, "test_saliencymix_puts_the_box_on_the_partners_most_salient_point"),
    "fmix": (MIX, "test_fmix_holes_are_smooth_patches_of_exactly_the_drawn_share"),
    "tokenmix": (MIXERS, "test_tokenmix_masks_blocks_of_tokens_and_weighs_by_the_maps"),
    "transmix": (MIXERS, "test_attended_share_against_numpy"),
    "mixup": (MIX, "test_mixup_is_a_weighted_mean_with_beta_weights"),
    "manifold_mixup": (MIXERS, "test_manifold_mixup_blends_at_one_of_its_stages"),
}
MASKS = {
    "box": ("test_masks.py", "test_box_matches_a_loop_over_pixels"),
    "threshold": ("test_masks.py", "test_threshold_takes_what_a_stable_sort_takes"),
    "patches": (MIXERS, "test_patches_mask_whole_tokens_where_their_mean_is_largest"),
}
FILLS = dict.fromkeys(
    ("partner", "noise", "mean", "zeros", "ones"), ("test_fills.py", "test_a_mask_blends_by_its_share")
)
FILLS["partner_resized"] = (MIX, "test_partner_resized_is_the_whole_partner_as_pillow_shrinks_it")
MORE_MAPS = "test_more_maps.py"
MAPS = {
    **dict.fromkeys(("input", "gradient_x_input"), ("test_attribution.py", "test_input_gradient_matches_numpy")),
    **dict.fromkeys(("layer", "grad_cam"), ("test_attribution.py", "test_cams_match_numpy")),
    "token": (MORE_MAPS, "test_token_map_matches_numpy"),
    "rollout": (MORE_MAPS, "test_attention_rollout_matches_numpy"),
    "eigen_cam": (MORE_MAPS, "test_eigen_cam_matches_the_singular_value_decomposition"),
    "integrated_gradients": (MORE_MAPS, "test_integrated_gradients_match_numpy_and_sum_to_the_difference"),
    "smoothgrad": (MORE_MAPS, "test_smoothgrad_matches_numpy"),
    "random": ("test_attribution.py", "test_random_map_is_a_different_lattice_for_every_key"),
}
TABLES = [(mix.METHODS, METHODS), (masks.MASKS, MASKS), (fills.FILLS, FILLS), (attribution.MAPS, MAPS)]


@pytest.mark.parametrize("table, tests", TABLES, ids=["METHODS", "MASKS", "FILLS", "MAPS"])
def test_every_entry_has_a_reference_test(table, tests):
    assert list(tests.keys() ^ table.keys()) == []
    for file, name in tests.values():
        functions = [node.name for node in ast.parse((HERE / file).read_text()).body if hasattr(node, "name")]
        assert name in functions, f"{file} has no {name}"
