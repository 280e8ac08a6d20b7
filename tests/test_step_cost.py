"""What the map costs: XLA's FLOPs and temporary memory of the GradMix step against random CutMix boxes.

The programs are compiled, not run. Width and batch are small, the graph is that of ResNet-18 at 32 x 32.
"""

import functools
import re

import pytest
import step_cost

from gradmix_jax import cost


@functools.cache
def program_text(recipe, overrides):
    return step_cost.compiled(recipe, dict(overrides), width=4, batch=64, dtype="float32")[0].as_text()


@functools.cache
def cost_of(recipe, overrides):
    executable, _ = step_cost.compiled(recipe, dict(overrides), width=16, batch=64, dtype="float32")
    return cost.of(executable)


@pytest.mark.parametrize(
    "name, most_flops, most_memory",
    [
        ("layer, stages 3 and 4", 1.04, 1.10),
        ("input", 1.18, 1.10),
        pytest.param("layer, threshold, partner", 1.04, 1.10, marks=pytest.mark.slow),
        pytest.param("layer, detached anchors", 1.02, 0.75, marks=pytest.mark.slow),
        pytest.param("input, detached anchors", 1.02, 0.75, marks=pytest.mark.slow),
    ],
)
def test_the_map_costs_next_to_nothing(name, most_flops, most_memory):
    recipe, overrides = step_cost.VARIANTS[name]
    shared = {key: value for key, value in overrides.items() if key in step_cost.DETACHED}
    own, base = cost_of(recipe, tuple(overrides.items())), cost_of("cutmix", tuple(shared.items()))
    assert base.flops > 10e9, "the analysis saw the whole step"
    assert own.flops <= most_flops * base.flops
    # A detached step is held against the attached CutMix step: its clean residuals are freed early.
    assert own.temporary_bytes <= most_memory * cost_of("cutmix", ()).temporary_bytes


@pytest.mark.parametrize(
    "recipe, overrides", [("layer", ()), pytest.param("layer", (("mix.mask", "threshold"),), marks=pytest.mark.slow)]
)
def test_nothing_in_the_step_sorts_pixels_or_loops_over_images(recipe, overrides):
    text = program_text(recipe, overrides)
    # The partners within the 4 groups of 16 images.
    sorts = re.findall(r"= \(?\w+\[([\d,]+)\].* sort\(", text)
    assert sorted(sorts) == ["4,16"]
    # The rounds of the random generator.
    trips = [int(count) for count in re.findall(r'known_trip_count":\{"n":"(\d+)"', text)]
    assert trips and max(trips) <= 5 and len(trips) == len(re.findall(r" while\(", text))
