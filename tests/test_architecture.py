"""The rules about imports and files that no other test would notice: read from the syntax trees of the sources.

Every rule is a function from a repository root to a list of complaints `path:line: what`, so each is shown first on a
small tree that breaks it and then applied to this repository.
"""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Container, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import moejax

ROOT = Path(__file__).resolve().parents[1]

# From the bottom up: a file may import its own layer and those before it.
LAYERS = ("sharding", "convert", "moejax", "scripts", "tests")
PACKAGES = ("sharding", "convert", "moejax")
# Inside moejax, from the top down: a folder (or a file beside them) imports from itself and from those below it.
FLOORS = (
    *(
        "cli",
        "bulk",
        "compiling",
        "serving",
        "bench",
        "saving",
        "conversion",
        "measuring",
        "decoding",
        "loading",
        "planning",
    ),
    *("reading", "checkpoint", "hub"),
    *("model", "moe", "ops", "families", "weights", "text", "runtime"),
)
LINKED = re.compile(r"^moejax\._(sharding|convert)\b")
MAX_LINES = 400
# Needed by `moejax serve` alone: what these files import may be in the extra `serve`.
SERVING = Path("moejax/serving")
# torch and transformers are the reference in scripts and tests; a user's installation has neither.
REFERENCE_ONLY = {"torch", "transformers"}
# But for `moejax verify --reference`, the peers of `moejax bench compare` and the baseline of `moejax serve`, which do
# without where they are missing, or say what to install.
REFERENCE_FILES = (
    Path("moejax/measuring/reference.py"),
    Path("moejax/bench/peers"),
    Path("moejax/serving/baseline_transformers.py"),
)
# What extras bring, imported when it is asked for, after a check that it is there; absl comes with tokamax.
OPTIONAL = {
    "absl": ("moejax/ops/triton/grouped_tokamax.py",),
    "matplotlib": ("moejax/planning/plots.py", "moejax/planning/pareto_plot.py"),
    "pandas": ("moejax/planning/silicon.py", "moejax/planning/measured_times.py"),
    "yaml": ("moejax/planning/silicon.py",),
    "gguf": ("moejax/bench",),
    "llama_cpp": ("moejax/bench",),
    "vllm": ("moejax/bench",),
}
# What `import moejax` and the configs must not bring in: each of these costs between 0.1 and 2 seconds at start-up.
HEAVY = {"jax", "jaxlib", "flax", "orbax", "tensorstore", "optax", "safetensors", "torch", "transformers"}
HEAVY |= {"tokenizers", "sentencepiece", "huggingface_hub"}


def sources(root: Path, folders: tuple[str, ...]) -> list[Path]:
    """The Python files under `folders` of `root`, tracked or not."""
    return sorted(path for folder in folders for path in (root / folder).rglob("*.py"))


def imports(path: Path, nodes: Callable[[ast.AST], Iterator[ast.AST]] = ast.walk) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every absolute import among `nodes` of a file, `import_module("literal")` included.

    What moejax has as links to folders of this repository is called by the folder's name.
    """
    for line, module in _imports(path, nodes):
        yield line, LINKED.sub(r"\1", module)


def _imports(path: Path, nodes: Callable[[ast.AST], Iterator[ast.AST]]) -> Iterator[tuple[int, str]]:
    for node in nodes(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(level=0, module=str(module), names=names):
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in names)
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(module)), *_],
            ) if not module.startswith("."):
                yield node.lineno, module


def run_on_import(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that importing the file executes: no function bodies, nothing under `if TYPE_CHECKING`."""
    pending = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            pending.extend(node.orelse)
            continue
        yield node
        pending.extend(ast.iter_child_nodes(node))


def top_level(module: str) -> str:
    return module.partition(".")[0]


def back_edges(root: Path) -> list[str]:
    return [
        f"{path.relative_to(root)}:{line}: {layer}/ must not import {module}, a layer above it"
        for rank, layer in enumerate(LAYERS)
        for path in sources(root, (layer,))
        for line, module in imports(path)
        if top_level(module) in LAYERS[rank + 1 :]
    ]


def import_cycles(root: Path) -> list[str]:
    """A circle of module-level imports, which works or fails depending on which module is imported first."""
    paths = {dotted_name(path.relative_to(root)): path for path in sources(root, LAYERS)}
    graph = {
        name: {target for _, module in imports(path, run_on_import) if (target := owner(module, paths))} - {name}
        for name, path in paths.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [" is imported by ".join(error.args[1])]
    return []


def climbing_imports(root: Path) -> list[str]:
    """Imports from a folder above, in functions as well."""
    found = []
    for path in sources(root, ("moejax",)):
        floor = path.relative_to(root / "moejax").parts[0].removesuffix(".py")
        if floor not in FLOORS:
            if not floor.startswith("__"):
                found.append(f"{path.relative_to(root)}:1: {floor} has no place in FLOORS")
            continue
        for line, module in imports(path):
            target = module.split(".")[1] if module.startswith("moejax.") else floor
            if target in FLOORS and FLOORS.index(target) < FLOORS.index(floor):
                found.append(f"{path.relative_to(root)}:{line}: {floor} must not import {module}, which is above it")
    return found


def dotted_name(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def owner(name: str, modules: Container[str]) -> str | None:
    """The module of ours that `name` is or is defined in: the longest prefix of it that is one."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name or None


def optax_imports(root: Path) -> list[str]:
    return [
        f"{path.relative_to(root)}:{line}: imports {module}; optax is flax's dependency, not ours"
        for path in sources(root, LAYERS)
        for line, module in imports(path)
        if top_level(module) == "optax"
    ]


def reference_imports(root: Path) -> list[str]:
    return [
        f"{path.relative_to(root)}:{line}: imports {module}, which only scripts/ and tests/ may"
        for path in sources(root, PACKAGES)
        if not may_import_reference(path.relative_to(root))
        for line, module in imports(path)
        if top_level(module) in REFERENCE_ONLY
    ]


def may_import_reference(path: Path) -> bool:
    return any(path.is_relative_to(allowed) for allowed in REFERENCE_FILES)


def undeclared_imports(root: Path) -> list[str]:
    """Imports of third-party modules whose distribution pyproject does not name: an empty venv would lack them."""
    declared = {distribution(requirement) for requirement in project(root)["dependencies"]}
    extra = project(root).get("optional-dependencies", {}).get("serve", [])
    served = declared | {distribution(requirement) for requirement in extra}
    providers = importlib.metadata.packages_distributions()
    ours = {*PACKAGES, *sys.stdlib_module_names}
    return [
        f"{path.relative_to(root)}:{line}: imports {module}, which no entry of project.dependencies provides"
        for path in sources(root, PACKAGES)
        for line, module in imports(path)
        if (name := top_level(module)) not in ours
        and not (name in REFERENCE_ONLY and may_import_reference(path.relative_to(root)))
        and not any(path.relative_to(root).is_relative_to(place) for place in OPTIONAL.get(name, ()))
        and (served if SERVING in path.relative_to(root).parents else declared).isdisjoint(
            distribution(provider) for provider in providers.get(name, [])
        )
    ]


def long_files(root: Path) -> list[str]:
    return [
        f"{path.relative_to(root)}: {lines} lines, at most {MAX_LINES}: split it by what its parts do"
        for path in sources(root, LAYERS)
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MAX_LINES
    ]


def grab_bags(root: Path) -> list[str]:
    return [
        f"{path.relative_to(root)}: name the file after what it does"
        for path in sources(root, LAYERS)
        if path.stem in {"utils", "util", "helpers", "common", "misc"}
    ]


def project(root: Path) -> dict:
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def distribution(requirement: str) -> str:
    """The normalised name of a requirement: `jax[cuda12]>=0.10` -> `jax`, `Jinja2` -> `jinja2`."""
    name = re.match(r"[\w.-]+", requirement)
    assert name is not None, requirement
    return re.sub(r"[-_.]+", "-", name.group()).lower()


BROKEN: list[tuple[Callable[[Path], list[str]], str, str, str]] = [
    (back_edges, "sharding/a.py", "import numpy\nfrom moejax.families.config import ModelConfig", "sharding/a.py:2"),
    (back_edges, "convert/deep/a.py", "def f():\n    import moejax.model.model as m", "convert/deep/a.py:2"),
    (back_edges, "moejax/cli/a.py", "import importlib\nimportlib.import_module('scripts.train')", "moejax/cli/a.py:2"),
    (back_edges, "scripts/a.py", "from tests import oracle", "scripts/a.py:1"),
    (import_cycles, "sharding/mesh.py", "import moejax.cli.good", "moejax.cli.good is imported by sharding.mesh"),
    (climbing_imports, "moejax/ops/a.py", "def f():\n    from moejax.model import model", "moejax/ops/a.py:2"),
    (climbing_imports, "moejax/other/a.py", "", "moejax/other/a.py:1: other has no place"),
    (optax_imports, "tests/a.py", "import optax.losses", "tests/a.py:1"),
    (reference_imports, "moejax/cli/a.py", "def f():\n    from transformers import AutoModel", "moejax/cli/a.py:2"),
    (undeclared_imports, "convert/a.py", "import os\nimport pytest", "convert/a.py:2"),
    (undeclared_imports, "moejax/cli/a.py", "import fastapi", "moejax/cli/a.py:1"),
    (undeclared_imports, "moejax/cli/a.py", "import_module('matplotlib')", "moejax/cli/a.py:1"),
    (long_files, "scripts/a.py", "x = 1\n" * (MAX_LINES + 1), "scripts/a.py: 401 lines"),
    (grab_bags, "moejax/moe/utils.py", "", "moejax/moe/utils.py"),
]
RULES = list(dict.fromkeys(rule for rule, *_ in BROKEN))


@pytest.mark.parametrize(
    ("rule", "path", "source", "complaint"), BROKEN, ids=[f"{b[0].__name__}-{b[1]}" for b in BROKEN]
)
def test_rule_names_the_line_that_breaks_it(
    tmp_path: Path, rule: Callable[[Path], list[str]], path: str, source: str, complaint: str
) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\ndependencies = ["numpy>=2", "jax[cuda12]>=0.10"]\n')
    for name, text in {
        "moejax/cli/good.py": "from moejax import _convert\nimport jax\nfrom moejax._sharding import mesh",
        path: source,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (found,) = rule(tmp_path)
    assert found.startswith(complaint)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_repository_keeps_the_rule(rule: Callable[[Path], list[str]]) -> None:
    for package in PACKAGES:
        assert sources(ROOT, (package,)), f"no sources found in {package}/: the rule would hold of nothing"
    assert rule(ROOT) == []


def test_pyproject_does_not_list_optax() -> None:
    table = project(ROOT)
    extras = table["optional-dependencies"]
    listed = {distribution(r) for r in [*table["dependencies"], *(r for extra in extras.values() for r in extra)]}
    assert "jax" in listed
    assert "optax" not in listed


def test_torch_and_transformers_are_no_runtime_dependencies() -> None:
    runtime = {distribution(requirement) for requirement in project(ROOT)["dependencies"]}
    assert "jax" in runtime
    assert runtime.isdisjoint(REFERENCE_ONLY)


def loaded_by(statements: str) -> set[str]:
    """The top-level modules in sys.modules of a fresh interpreter after it ran `statements`."""
    report = "print('loaded:', *{name.partition('.')[0] for name in sys.modules})"
    code = f"import sys\n{statements}\n{report}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("loaded:")[2].split())


COMMAND = (
    "import moejax.cli\nsys.argv = {argv}\ntry: moejax.cli.main()\nexcept SystemExit as stop: assert not stop.code"
)
LIGHT = {
    "package": "import moejax; moejax.__version__; dir(moejax)",
    "config": "from moejax import ModelConfig",
    "sampling params": "import moejax; moejax.SamplingParams(max_tokens=1)",
    "results": "from moejax import CheckpointError, DecodeEvent, DecodeResult, Logprob, Output, Stats",
    "command line": "import moejax.cli",
    "help": COMMAND.format(argv=["moejax", "--help"]),
    "help of decode": COMMAND.format(argv=["moejax", "decode", "--help"]),
    "help of convert": COMMAND.format(argv=["moejax", "convert", "--help"]),
    "help of mesh compare": COMMAND.format(argv=["moejax", "mesh", "compare", "--help"]),
    "mesh compare": COMMAND.format(
        argv="moejax mesh compare --model mixtral-8x7b --devices 8 --hardware h200 -b 1".split()
    ),
    "mesh show": COMMAND.format(argv="moejax mesh show --model mixtral-8x7b --mesh tensor=8".split()),
    "comparison from Python": "import moejax; moejax.compare_meshes('mixtral-8x7b', 2, 'h200', batch_size=1)",
    "help of serve": COMMAND.format(argv=["moejax", "serve", "--help"]),
    "help of bench": COMMAND.format(argv=["moejax", "bench", "--help"]),
    "help of bench compare": COMMAND.format(argv=["moejax", "bench", "compare", "--help"]),
    "help of verify": COMMAND.format(argv=["moejax", "verify", "--help"]),
}


@pytest.mark.parametrize("statements", LIGHT.values(), ids=LIGHT.keys())
def test_light_entry_points_import_no_jax(statements: str) -> None:
    loaded = loaded_by(statements)
    assert "moejax" in loaded
    assert loaded.isdisjoint(HEAVY), f"{statements!r} imports {sorted(loaded & HEAVY)}"


def test_light_entry_points_would_notice_jax() -> None:
    assert {"jax", "jaxlib"} <= loaded_by("import jax") & HEAVY


def test_every_public_name_resolves_and_is_visible_to_type_checkers() -> None:
    path = ROOT / "moejax" / "__init__.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typed = {alias.asname for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    public = set(moejax.__all__) - {"__version__"}
    assert "load" in public
    assert public == typed - {None}
    for name in public:
        assert callable(getattr(moejax, name)), name


def test_names_of_tests_hold_no_memory_address(request: pytest.FixtureRequest) -> None:
    """pytest-xdist compares the names that its workers collect: an object's default repr differs in each."""
    assert [item.nodeid for item in request.session.items if re.search(r"0x[0-9a-f]{8,}", item.nodeid)] == []
