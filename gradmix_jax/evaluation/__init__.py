"""From a checkpoint to metrics: features, scores, leak guards, results."""
