"""What is declared without JAX is what the modules have: every path, shape and axis, on random models and meshes."""

from dataclasses import replace

from moejax.families.table import weights_of
from moejax.model.structure import make_parallel, make_structure
from moejax.moe.split import DISPATCHES
from moejax.weights.counts import stacked
from moejax.weights.params import declared_values
from moejax.weights.weight import logical_tensors
from tests.moejax.moe.test_split import cases, refusal


def test_declared_weights_are_those_of_the_modules() -> None:
    seen = set()
    for number, (config, mesh, dispatch) in enumerate(cases(240, seed=5)):
        if refusal(config, mesh):
            continue
        config = replace(config, num_layers=1 + number % 3)
        backend = ("blocked", "dense")[number % 2]
        structure = make_structure(config, backend, "bfloat16", make_parallel(config, mesh.abstract(), dispatch))
        declared = {weight.parameter: weight for weight in weights_of(config)}
        in_modules = declared_values(structure.abstract)
        assert set(declared) == set(in_modules)
        for path, weight in declared.items():
            shape, axes = stacked(weight, structure.parallel.rules)
            assert in_modules[path].shape == shape and len(axes) == len(shape), path
        assert [one.path for one in structure.placements()] == list(declared)
        seen.add((dispatch, backend, config.tie_embeddings))
    assert len(seen) == len(DISPATCHES) * 2 * 2


def test_every_logical_tensor_has_a_name_and_a_place_of_its_own() -> None:
    for config, _, _ in cases(20, seed=7):
        tensors = logical_tensors(weights_of(config)).values()
        names = [name for tensor in tensors for name in tensor.names]
        places = [(tensor.item, tensor.weight.key) for tensor in tensors]
        assert len(set(names)) == len(names) and len(set(places)) == len(places)
