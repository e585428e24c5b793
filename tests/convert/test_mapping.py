"""Names in a checkpoint to paths in a model: every array filled once, every tensor used or ignored for a reason."""

from pathlib import Path

import pytest

from moejax._convert import CheckpointError, Ignore, TensorInfo, TensorPlan, plan
from tests.messages import refuses, says

FILE = Path("/c/model.safetensors")
NAMES = {
    "embed": ("embed.weight", "wte.weight"),
    "layers.0.norm": ("layers.0.norm.weight",),
    "layers.10.norm": ("layers.10.norm.weight",),
    "layers.0.0.gate": ("layers.0.experts.0.w1.weight",),
    "layers.0.1.gate": ("layers.0.experts.1.w1.weight",),
    "head": ("head.weight",),
}
IGNORES = [Ignore("layers.{layer}.inv_freq", "computed"), Ignore("head.weight", "tied to the embedding")]
EXPECTED = {
    "embed": (8, 2),
    "layers.0.norm": (2,),
    "layers.10.norm": (2,),
    "layers.0.0.gate": (4, 2),
    "layers.0.1.gate": (4, 2),
}
SHAPES = {
    "layers.0.experts.1.w1.weight": (4, 2),
    "layers.0.experts.0.w1.weight": (4, 2),
    "layers.10.norm.weight": (2,),
    "layers.0.norm.weight": (2,),
    "embed.weight": (8, 2),
    "layers.0.inv_freq": (1,),
}


def info(name: str, shape: tuple[int, ...], dtype: str = "BF16") -> TensorInfo:
    return TensorInfo(name=name, shape=shape, dtype=dtype, file=FILE, stored_name=name)


def planned(
    changes: dict[str, tuple[int, ...] | None] | None = None, expected: dict[str, tuple[int, ...]] = EXPECTED
) -> TensorPlan:
    """The plan for SHAPES with `changes` (None removes a tensor)."""
    shapes = SHAPES | (changes or {})
    names = NAMES | {path: (f"{path}.weight",) for path in expected if path not in NAMES}
    tensors = {name: info(name, shape) for name, shape in shapes.items() if shape is not None}
    return plan(names, IGNORES, tensors, expected)


def refusal(
    changes: dict[str, tuple[int, ...] | None],
    expected: dict[str, tuple[int, ...]] = EXPECTED,
) -> str:
    with pytest.raises(CheckpointError) as caught:
        planned(changes, expected)
    return str(caught.value)


def test_every_path_has_its_tensor_in_the_order_expected() -> None:
    made = planned()
    assert list(made.sources.items()) == [
        ("embed", "embed.weight"),
        ("layers.0.norm", "layers.0.norm.weight"),
        ("layers.10.norm", "layers.10.norm.weight"),
        ("layers.0.0.gate", "layers.0.experts.0.w1.weight"),
        ("layers.0.1.gate", "layers.0.experts.1.w1.weight"),
    ]
    assert dict(made.ignored) == {"layers.0.inv_freq": "computed"}


def test_a_tensor_is_ignored_only_where_its_path_is_not_expected() -> None:
    head: dict[str, tuple[int, ...] | None] = {"head.weight": (8, 2)}
    says(planned(head).ignored["head.weight"], "tied")
    untied = planned(head, EXPECTED | {"head": (8, 2)})
    assert untied.sources["head"] == "head.weight"
    assert "head.weight" not in untied.ignored


def test_names_missing_tensors_as_the_checkpoint_would() -> None:
    says(refusal({"layers.0.experts.1.w1.weight": None}), "/c lacks 'layers.0.experts.1.w1.weight'", "config.json")
    more = {f"layers.{layer}.norm": (2,) for layer in range(1, 6)}
    first = [f"'layers.{layer}.norm.weight'" for layer in (1, 2, 3)]
    says(refusal({}, expected=EXPECTED | more), "/c lacks", *first, "2 more", "config.json")


def test_names_tensors_that_nothing_uses() -> None:
    # A layer that the config does not have, an unknown name, and numbers that are written in no checkpoint.
    says(refusal({"layers.7.norm.weight": (2,)}), "/c holds 'layers.7.norm.weight'", "config.json")
    odd = [
        "bias",
        "layers.00.norm.weight",
        "layers.-1.norm.weight",
        "layers.0.norm.weight.absmax",
        "layers.٠.norm.weight",
    ]
    first = [repr(name) for name in odd[:3]]
    says(refusal({name: (2,) for name in odd}), "/c holds", *first, "2 more", "config.json")


def test_a_renamed_tensor_is_missing_and_unused_in_one_message() -> None:
    message = refusal({"embed.weight": None, "word.weight": (8, 2)})
    says(message, "/c lacks 'embed.weight'", "holds 'word.weight'", "config.json")


def test_a_pattern_is_no_regular_expression() -> None:
    assert "holds 'embedXweight'" in refusal({"embedXweight": (8, 2)})


def test_names_the_wrong_shape() -> None:
    message = refusal({"layers.10.norm.weight": (3,)})
    says(message, "/c/model.safetensors", "'layers.10.norm.weight'", "got [3]", "expected [2]", "config.json")
    # As many elements, transposed: the error that would go unnoticed longest.
    message = refusal({"layers.0.experts.0.w1.weight": (2, 4), "embed.weight": (8, 2, 1)})
    says(message, "/c/model.safetensors", "'embed.weight'", "1 more", "got [8, 2, 1]", "expected [8, 2]", "config.json")


def test_names_a_dtype_that_is_no_weight() -> None:
    tensors = {"embed.weight": info("embed.weight", (8, 2), "I8"), "layers.0.inv_freq": info("f", (1,), "I64")}
    with refuses(CheckpointError, "'embed.weight'", "I8", "BF16", "F16", "F32", "F64"):
        plan(NAMES, IGNORES, tensors, {"embed": (8, 2)})


def test_refuses_two_tensors_for_one_path() -> None:
    message = refusal({"wte.weight": (8, 2)})
    says(message, "/c/model.safetensors", "'embed.weight'", "'wte.weight'", "'embed'", "remove one")
    # Either spelling alone will do.
    assert planned({"wte.weight": (8, 2), "embed.weight": None}).sources["embed"] == "wte.weight"


def test_an_empty_checkpoint_lacks_everything() -> None:
    with refuses(CheckpointError, "lacks 'embed.weight'", "'layers.0.norm.weight'"):
        plan(NAMES, IGNORES, {}, EXPECTED)


def test_a_name_of_two_paths_is_no_checkpoint_error() -> None:
    with refuses(ValueError, "'embed.weight'", "'embed'", "'head'") as caught:
        plan({"embed": ("embed.weight",), "head": ("embed.weight",)}, [], {}, {"embed": (8, 2)})
    assert not isinstance(caught.value, CheckpointError)
