"""What the devices say to each other in a step: read from the compiled program, no more than the algorithm needs."""

import communication
import hlo
import pytest


@pytest.mark.parametrize("recipe, devices", [("layer", 8), pytest.param("input", 4, marks=pytest.mark.slow)])
def test_the_step_says_no_more_than_it_has_to(recipe, devices):
    executable, program, state = communication.compile_step(recipe, devices=devices, width=4, batch=128)
    found = hlo.collectives(executable.as_text())
    purposes = communication.bytes_by_purpose(found, program, state)
    assert purposes.pop("other") == 0
    assert purposes.pop("scalars") < 100
    assert purposes == communication.needed(program, state, devices)
    kinds = [collective.kind for collective in found]
    assert kinds.count("all-gather") == 2, "projections and classes"
    assert kinds.count("reduce-scatter") == 2, "the cotangents of the map and of the training"
    # Batch norms wait for each other: 20 in each of four passes, 5 behind the map's first stage; the rest rides along.
    assert kinds.count("all-reduce") <= (88 if recipe == "layer" else 104)
