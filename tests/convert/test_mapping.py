"""Names in a checkpoint to paths in a model: every array filled once, every tensor used or ignored for a reason."""

from pathlib import Path

import pytest

from convert import CheckpointError, Ignore, TensorInfo, TensorPlan, plan

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
    assert planned(head).ignored["head.weight"] == "tied to the embedding"
    untied = planned(head, EXPECTED | {"head": (8, 2)})
    assert untied.sources["head"] == "head.weight"
    assert "head.weight" not in untied.ignored


ADVICE = "; config.json does not describe these weights, or a file is missing: download both again"


def test_names_missing_tensors_as_the_checkpoint_would() -> None:
    assert refusal({"layers.0.experts.1.w1.weight": None}) == f"/c lacks 'layers.0.experts.1.w1.weight'{ADVICE}"
    more = {f"layers.{layer}.norm": (2,) for layer in range(1, 6)}
    assert refusal({}, expected=EXPECTED | more) == (
        "/c lacks 'layers.1.norm.weight', 'layers.2.norm.weight', 'layers.3.norm.weight' and 2 more" + ADVICE
    )


def test_names_tensors_that_nothing_uses() -> None:
    # A layer that the config does not have, an unknown name, and numbers that are written in no checkpoint.
    assert refusal({"layers.7.norm.weight": (2,)}) == f"/c holds 'layers.7.norm.weight', which nothing uses{ADVICE}"
    odd = [
        "bias",
        "layers.00.norm.weight",
        "layers.-1.norm.weight",
        "layers.0.norm.weight.absmax",
        "layers.٠.norm.weight",
    ]
    assert refusal({name: (2,) for name in odd}) == (
        "/c holds 'bias', 'layers.00.norm.weight', 'layers.-1.norm.weight' and 2 more, which nothing uses" + ADVICE
    )


def test_a_renamed_tensor_is_missing_and_unused_in_one_message() -> None:
    assert refusal({"embed.weight": None, "word.weight": (8, 2)}) == (
        f"/c lacks 'embed.weight' and holds 'word.weight', which nothing uses{ADVICE}"
    )


def test_a_pattern_is_no_regular_expression() -> None:
    assert "holds 'embedXweight'" in refusal({"embedXweight": (8, 2)})


def test_names_the_wrong_shape() -> None:
    advice = "; config.json and the weights disagree: use the two that belong together"
    assert refusal({"layers.10.norm.weight": (3,)}) == (
        f"/c/model.safetensors: tensor 'layers.10.norm.weight' has the wrong shape: got [3], expected [2]{advice}"
    )
    # As many elements, transposed: the error that would go unnoticed longest.
    assert refusal({"layers.0.experts.0.w1.weight": (2, 4), "embed.weight": (8, 2, 1)}) == (
        "/c/model.safetensors: tensor 'embed.weight' has the wrong shape, as have 1 more: "
        f"got [8, 2, 1], expected [8, 2]{advice}"
    )


def test_names_a_dtype_that_is_no_weight() -> None:
    tensors = {"embed.weight": info("embed.weight", (8, 2), "I8"), "layers.0.inv_freq": info("f", (1,), "I64")}
    with pytest.raises(
        CheckpointError, match="tensor 'embed.weight' has dtype I8, expected one of BF16, F16, F32, F64"
    ):
        plan(NAMES, IGNORES, tensors, {"embed": (8, 2)})


def test_refuses_two_tensors_for_one_path() -> None:
    assert refusal({"wte.weight": (8, 2)}) == (
        "/c/model.safetensors: tensors 'embed.weight' and 'wte.weight' are both 'embed'; remove one of them"
    )
    # Either spelling alone will do.
    assert planned({"wte.weight": (8, 2), "embed.weight": None}).sources["embed"] == "wte.weight"


def test_an_empty_checkpoint_lacks_everything() -> None:
    with pytest.raises(CheckpointError, match="^the checkpoint lacks 'embed.weight', 'layers.0.norm.weight', "):
        plan(NAMES, IGNORES, {}, EXPECTED)


def test_a_name_of_two_paths_is_no_checkpoint_error() -> None:
    with pytest.raises(ValueError, match="'embed.weight'.*'embed', 'head'") as caught:
        plan({"embed": ("embed.weight",), "head": ("embed.weight",)}, [], {}, {"embed": (8, 2)})
    assert not isinstance(caught.value, CheckpointError)
