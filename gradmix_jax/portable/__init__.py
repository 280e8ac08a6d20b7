"""A trained run as functions of arrays, for `predict` and `export`.

`functions` has the model, the headline score and its explanation as JAX functions; `from_run` makes a `Classifier` of a
workdir, `files` writes one as StableHLO and safetensors and reads it back, `card` describes it for its users.
"""
