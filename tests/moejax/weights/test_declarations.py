"""What is declared without JAX is what the modules have: every path, shape and axis, on random models and meshes."""

from dataclasses import replace

from moejax.loading import abstract_model, make_parallel
from moejax.model.placement import param_placements
from moejax.moe.experts import BACKENDS
from moejax.moe.split import DISPATCHES
from moejax.weights.declarations import declared_placement, model_params
from tests.moejax.moe.test_split import cases, refusal


def test_declared_parameters_are_those_of_the_modules() -> None:
    seen = set()
    for number, (config, mesh, dispatch) in enumerate(cases(180, seed=5)):
        if refusal(config, mesh):
            continue
        config = replace(config, num_layers=1 + number % 3)
        parallel = make_parallel(config, mesh.abstract(), dispatch)
        backend = ("blocked", "dense")[number % 2]
        layout = BACKENDS[backend].layout
        _, abstract = abstract_model(config, backend, "bfloat16", parallel)
        declared = model_params(config, layout, parallel.rules.parts("experts"))
        placements = [declared_placement(path, one, "bfloat16", parallel.rules) for path, one in declared.items()]
        in_modules = param_placements(abstract, parallel.rules)
        assert sorted(placements, key=lambda one: one.path) == sorted(in_modules, key=lambda one: one.path)
        seen.add((dispatch, layout, config.tie_embeddings))
    assert len(seen) == len(DISPATCHES) * 2 * 2
