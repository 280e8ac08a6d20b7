"""What the devices say to each other in a step: read from the compiled program, no more than the algorithm needs."""

import communication
import pytest


@pytest.mark.parametrize("recipe, devices", [("layer", 8), pytest.param("input", 4, marks=pytest.mark.slow)])
def test_the_step_says_no_more_than_it_has_to(recipe, devices):
    executable, program, state = communication.compile_step(recipe, devices=devices, width=4, batch=128)
    found = communication.collectives(executable.as_text())
    purposes = communication.bytes_by_purpose(found, program, state)
    assert purposes.pop("other") == 0
    assert purposes.pop("scalars") < 100
    assert purposes == communication.needed(program, state, devices)
    kinds = [collective.kind for collective in found]
    assert kinds.count("all-gather") == 2, "projections and classes"
    assert kinds.count("reduce-scatter") == 2, "the cotangents of the map and of the training"
    # Batch norms wait for each other: 20 in each of four passes, 5 behind the map's first stage; the rest rides along.
    assert kinds.count("all-reduce") <= (88 if recipe == "layer" else 104)


def test_collectives_of_a_program_text():
    text = """
      %all-gather.1 = s32[128]{0} all-gather(%x), channel_id=1
      ROOT %ar = (f32[2,16]{1,0}, /*index=1*/f32[]) all-reduce(%a, %b), channel_id=2
      %start = (f32[4,8]{1,0}, f32[32,8]{1,0}) all-gather-start(%z), channel_id=3
      %done = f32[32,8]{1,0} all-gather-done(%start)
      %add = f32[32,8]{1,0} add(%done, %done)
    """
    gathered, reduced, asynchronous = communication.collectives(text)
    assert (gathered.kind, gathered.bytes) == ("all-gather", 512)
    assert (reduced.kind, reduced.bytes) == ("all-reduce", 2 * 16 * 4 + 4)
    assert (asynchronous.kind, asynchronous.bytes) == ("all-gather", 32 * 8 * 4)
