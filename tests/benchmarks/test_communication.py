"""Devices exchange no more in a step than the algorithm needs, according to the compiled program."""

import communication
import hlo
import pytest
from marks import slow

from gradmix_jax.training import cost, mapping


@pytest.mark.parametrize("recipe, devices", [("layer", 8), slow("input", 4)])
def test_the_step_exchanges_only_what_it_needs(recipe, devices):
    executable, program, state = communication.compile_step(recipe, devices=devices, width=4, batch=128)
    found = hlo.collectives(executable.as_text())
    purposes = communication.bytes_by_purpose(found, program, state)
    assert purposes.pop("other") == 0
    assert purposes.pop("scalars") < 100
    assert purposes == communication.needed(program, state, devices)
    kinds = [collective.kind for collective in found]
    assert kinds.count("all-gather") == 2, "projections and classes"
    assert kinds.count("reduce-scatter") == 2, "the cotangents of the map and of the training"
    # Batch norms wait for each other: 20 in each of four passes and 5 behind the map's first stage; the rest is merged.
    assert kinds.count("all-reduce") <= (88 if recipe == "layer" else 104)


@pytest.mark.slow
def test_the_work_is_shared_under_every_mapping():
    size = dict(devices=8, width=8, batch=128)
    flops = {}
    for name in mapping.MAPPINGS:
        executable, _, state = communication.compile_step("layer", mapping_name=name, **size)
        flops[name] = cost.of(executable).flops
    assert flops["shard_map"] == pytest.approx(flops["pmap"], rel=0.05)
    assert flops["sharded"] == pytest.approx(flops["pmap"], rel=0.05), "a device computes its share of the batch"
    whole = communication.state_bytes("pmap", state, 8)
    assert communication.state_bytes("shard_map", state, 8) == whole
    assert whole / 8 < communication.state_bytes("sharded", state, 8) < whole / 7
