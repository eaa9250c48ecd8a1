"""Options: what is refused."""


import pytest

from minifcn.training.options import Options


@pytest.mark.parametrize("name, value, message", [
    ("epochs", 0, "epochs is 0, must be at least 1"),
    ("model", "unet", "model is 'unet', must be one of fcn32s"),
    ("schedule", "cosine", "schedule is 'cosine', must be one of constant, poly, step"),
    ("reduction", "sum", "reduction is 'sum', must be one of mean, pytorch, mxnet"),
])
def test_options_refuse(name, value, message):
    with pytest.raises(ValueError, match=message):
        Options("data", **{name: value})
