"""What is static about a step."""

import dataclasses

import pytest
from programs import NUM_IMAGES, small_program


def test_an_epoch_has_whole_batches_and_at_least_one():
    _, program = small_program("none")
    assert dataclasses.replace(program, num_images=NUM_IMAGES - 1).steps_per_epoch == NUM_IMAGES // 32 - 1
    with pytest.raises(ValueError, match=r"train\.batch_size is 32; allowed: 1 to 31, the number of training images"):
        _ = dataclasses.replace(program, num_images=31).steps_per_epoch
