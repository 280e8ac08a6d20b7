"""GradMix and its relatives: attribution maps, masks, fills, mixing."""
