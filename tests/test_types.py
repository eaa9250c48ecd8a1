"""Public functions have annotations, so that an editor or mypy can tell a caller what fits; mypy checks them (.ci/run)."""

import importlib
import inspect

import pytest

# Packages: what they export. Modules: every function and class in them whose name has no underscore in front.
PACKAGES = ["minifcn", "minifcn.functional", "minifcn.nn", "minifcn.models", "minifcn.data", "minifcn.training"]
MODULES = ["core.absent", "core.backend", "core.dispatch", "core.gradcheck", "core.integers", "nn.init", "nn.summary",
           "data.classes", "data.masks", "training.optim", "training.checkpoint", "training.pretrained", "files.weights",
           "photos", "plotting", "convert"]
PARTS = {
    "core.tensor": ["Tensor", "record", "as_tensor", "recording", "no_grad", "float_dtype"],
    "inference": ["whole", "pad_and_crop", "tile_and_average", "predict", "image_logits", "predict_tiled"],
    "export": ["to_onnx", "write_onnx", "exports", "Graph"],
    "files.atomic": ["atomic"],
    "files.download": ["download"],
    "grade": ["grade", "tests"],
    "check": ["network_report", "installation", "environment", "gradcheck_table"],
}


def exported():
    for name in PACKAGES:
        package = importlib.import_module(name)
        yield from (getattr(package, name) for name in package.__all__)
    for name in MODULES:
        module = importlib.import_module(f"minifcn.{name}")
        yield from (thing for key, thing in vars(module).items()
                    if getattr(thing, "__module__", None) == module.__name__ and not key.startswith("_"))
    for name, parts in PARTS.items():
        yield from (getattr(importlib.import_module(f"minifcn.{name}"), part) for part in parts)


def functions():
    """(name, function) of every exported function, and of the public methods of every exported class."""
    for thing in exported():
        if inspect.isfunction(thing):
            yield f"{thing.__module__}.{thing.__name__}", thing
        elif inspect.isclass(thing):
            for key, method in vars(thing).items():
                inner = [getattr(method, name, None) for name in ("fget", "fset", "func", "__func__")]       # of properties
                for f in (method, *inner):
                    if inspect.isfunction(f) and f.__name__ != "<lambda>" and (key == "__init__" or not key.startswith("_")):
                        yield f"{thing.__module__}.{thing.__name__}.{key}", f


FUNCTIONS = list(functions())                    # a property may have two functions of one name


def lacking(function):
    """The arguments without annotation, and "return"; __init__ returns nothing, self needs none."""
    signature = inspect.signature(function)
    names = [name for name, p in signature.parameters.items() if p.annotation is p.empty and name not in ("self", "cls")]
    return names + ["return"] * (signature.return_annotation is signature.empty)


@pytest.mark.parametrize("name, function", FUNCTIONS, ids=[name for name, _ in FUNCTIONS])
def test_annotated(name, function):
    assert not lacking(function), f"{name}: no annotation for {', '.join(lacking(function))}"


def test_it_finds_them():
    """The walk sees functions, methods, and what is missing."""
    assert {"minifcn.functional.conv.conv2d", "minifcn.core.tensor.Tensor.backward"} <= dict(FUNCTIONS).keys()
    assert lacking(lambda x, y=0: None) == ["x", "y", "return"]
