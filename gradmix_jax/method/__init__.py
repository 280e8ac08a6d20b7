"""GradMix in three files: attribution maps, masks, mixing."""
