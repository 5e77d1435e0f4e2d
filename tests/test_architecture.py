"""Architecture: the rules that keep the folders apart, read from the sources."""

import ast
import sys
from functools import cache

import pytest

from ptq_eval import plugins
from tests.support.imports import ROOTS, circles, for_type_checking, imported, nodes, sources, upward

HEAVY = {"torch", "transformers", "accelerate", "datasets", "quantizers"}


def below(*names):
    """The modules that are, or lie in, one of `names`."""
    return [m for m in sources() if any(m == name or m.startswith(name + ".") for name in names)]


@cache
def imports(module: str) -> set[str]:
    """Everything that a module imports anywhere, also within functions and for type checking."""
    return set().union(*map(imported, nodes(module)))


@cache
def on_import(module: str) -> set[str]:
    """What is imported when the module itself is: not within functions, not for type checking only."""
    names, queue = set(), [sources()[module]]
    while queue:
        for node in ast.iter_child_nodes(queue.pop()):
            function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            if isinstance(node, (ast.stmt, ast.excepthandler)) and not function and not for_type_checking(node):
                names |= imported(node)
                queue.append(node)
    return names


def closure(module: str) -> set[str]:
    """Every package that importing `module` loads, through any module of ours."""
    seen, queue = set(), [module]
    while queue:
        name = queue.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in sources():
            queue += on_import(name)
            queue += [name.rpartition(".")[0]] if "." in name else []
    return {name.partition(".")[0] for name in seen - {""}}


def roots_of(names):
    return {name.partition(".")[0] for name in names if name}


def calls(module: str):
    return [node for node in nodes(module) if isinstance(node, ast.Call)]


def dotted(node: ast.AST) -> str:
    """`a.b.c` as it is written; "" in place of an expression that is no name."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def test_no_room_imports_a_higher_one():
    assert upward(sources()) == []


def test_no_modules_import_each_other():
    assert circles(sources()) == []


def test_imports_are_found_wherever_they_are():
    """The rules above on made-up modules: an upward import within a function, and a circle of three through one."""
    made = {
        "ptq_eval.records": "def f():\n    from ptq_eval.laws import fit\n",
        "ptq_eval.laws": "if TYPE_CHECKING:\n    import ptq_eval.cli\n",
        "ptq_eval.laws.fit": "import ptq_eval.laws.base\nfrom ptq_eval import errors\n",
        "ptq_eval.laws.base": "class A:\n    from ptq_eval.laws.tables import reader\n",
        "ptq_eval.laws.tables": "",
        "ptq_eval.laws.tables.reader": "from ptq_eval.laws.fit import fit_all\n",
        "ptq_eval.errors": "",
        "ptq_eval.cli": "from ptq_eval import records\n",
    }
    modules = {name: ast.parse(text) for name, text in made.items()}
    assert upward(modules) == ["ptq_eval.records -> ptq_eval.laws.fit"]
    assert circles(modules) == [["ptq_eval.laws.fit", "ptq_eval.laws.base", "ptq_eval.laws.tables.reader"]]
    with pytest.raises(ValueError, match="no place"):
        upward({"ptq_eval.attic": ast.parse("import ptq_eval.errors"), "ptq_eval.errors": ast.parse("")})


def test_quantizers_know_nothing_of_ptq_eval_or_transformers():
    compiled = {"quantizers.kernels.cpu": {"numba", "numpy"}, "quantizers.kernels.cuda": {"triton"}}
    for module in below("quantizers"):
        known = {"torch", "quantizers"} | compiled.get(module, set())
        foreign = roots_of(imports(module)) - known - sys.stdlib_module_names
        assert not foreign, f"{module} imports {foreign}"


def test_records_are_of_the_standard_library_alone():
    assert roots_of(imports("ptq_eval.records")) <= sys.stdlib_module_names


def test_laws_know_neither_torch_nor_quantizers():
    for module in below("ptq_eval.laws"):
        assert not roots_of(imports(module)) & HEAVY, module
        assert not closure(module) & HEAVY, module


@pytest.mark.parametrize("folder", ["report", "results", "jobs.run", "plugins", "errors", "laws", "cli"])
def test_fitting_and_reporting_need_no_torch(folder):
    for module in below(f"ptq_eval.{folder}"):
        assert not closure(module) & HEAVY, f"importing {module} loads {closure(module) & HEAVY}"
        if folder in ("report", "results"):
            assert not roots_of(imports(module)) & HEAVY, module


def test_concrete_plug_ins_are_reached_through_entry_points_alone():
    """A quantizer may build on another: the rotated ones on the plain ones."""
    concrete = {point.module for kind in plugins.KINDS for point in plugins._points(kind).values()}
    ours = {name for name in concrete if name in sources()}
    assert len(ours) > 15
    for module in sources():
        depth = 1 if module in ours and module.startswith("quantizers.") else 2
        others = {name for name in imports(module) & ours if module.split(".")[:depth] != name.split(".")[:depth]}
        assert not others, f"{module} imports {others}"


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_every_plug_in_of_ours_loads(kind):
    for name, cls in plugins.load_all(kind).items():
        assert isinstance(cls, type), name
        assert cls.name.replace("-", "_") == name.replace("-", "_")
        assert cls.__doc__, name


WRITING = {"write_text", "write_bytes", "writelines", "savefig", "to_csv", "to_json", "dump", "save", "save_pretrained"}
WRITERS = ("ptq_eval.results.store", "ptq_eval.report", "ptq_eval.pretrain")
WRITERS += ("ptq_eval.backends", "ptq_eval.measure.foreign.handover", "ptq_eval.measure.foreign.conformance")
WRITERS += ("ptq_eval.packing.folder", "ptq_eval.jobs.export", "ptq_eval.models.weight_files")
WRITERS += ("ptq_eval.training.monitor", "ptq_eval.jobs.files", "ptq_eval.jobs.pool")
WRITERS += ("ptq_eval.jobs.slurm", "ptq_eval.jobs.submit", "ptq_eval.checkpoints.staging", "ptq_eval.measure.kept")
"""`pretrain` and `export` write checkpoints, `training.monitor` copies them, backends and jobs exchange folders with
their processes, checkpoints of other formats are staged as folders that transformers loads, parts of unfinished work
are kept until their records are written, and a state dict from within another dict is written into a folder that is
removed again: none of them are results."""


def writes(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name == "open":
        texts = [a.value for a in [*call.args, *(k.value for k in call.keywords)] if isinstance(a, ast.Constant)]
        modes = [t for t in texts if isinstance(t, str) and t and set(t) <= set("rwxabt+")]
        return any(set(mode) & set("wxa+") for mode in modes)
    return name in WRITING


def test_only_the_store_and_the_report_write_results():
    for module in set(sources()) - set(below(*WRITERS)):
        found = [ast.unparse(call) for call in calls(module) if writes(call)]
        assert not found, f"{module} writes: {found}"
    assert any(writes(call) for call in calls("ptq_eval.results.store")), "the rule recognises nothing"


def prints(call: ast.Call) -> bool:
    name = dotted(call.func)
    return name == "print" or name.endswith((".print", "click.echo", "click.secho", "stdout.write", "stderr.write"))


def test_only_the_command_line_prints():
    for module in sources():
        if not module.startswith("ptq_eval.cli."):
            found = [ast.unparse(call) for call in calls(module) if prints(call)]
            assert not found, f"{module} prints: {found}"
    assert any(prints(call) for call in calls("ptq_eval.cli.main")), "the rule recognises nothing"


PARSING = {
    "startswith",
    "endswith",
    "partition",
    "rpartition",
    "split",
    "removeprefix",
    "removesuffix",
    "replace",
    "find",
}
SENTENCES = {
    "verdict",
    "status",
    "message",
    "interval",
    "warning",
    "warnings",
    "why_not",
    "verdict_text",
    "reason_text",
}


def words_in(node: ast.AST) -> set[str]:
    """The names, attributes and keys that an expression is made of."""
    parts = list(ast.walk(node))
    names = {part.id for part in parts if isinstance(part, ast.Name)}
    names |= {part.attr for part in parts if isinstance(part, ast.Attribute)}
    return names | {part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)}


def parses_a_sentence(node: ast.AST, names: set[str] = SENTENCES) -> bool:
    """Whether an expression takes a sentence apart, or looks for words in it."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        texts = [node.func.value] if node.func.attr in PARSING else []
        texts += node.args if dotted(node.func.value) == "re" else []
        return any(words_in(text) & names for text in texts)
    if isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.In, ast.NotIn)):
        container = node.comparators[0]
        key = container.slice if isinstance(container, ast.Subscript) else container
        last = getattr(container, "attr", getattr(container, "id", getattr(key, "value", "")))
        return last in names - {"warnings"}  # a list of sentences may be asked for a whole one
    return False


def test_no_sentence_is_parsed():
    for module in below("ptq_eval.laws", "ptq_eval.report", "ptq_eval.jobs.compare_laws", "ptq_eval.jobs.fit_table"):
        found = [ast.unparse(node) for node in nodes(module) if parses_a_sentence(node)]
        assert not found, f"{module} parses: {found}"
    bad = ("entry['verdict'].startswith('x')", "str(entry.get('status')).partition(':')", "'B' in loss.status")
    bad += ("re.findall('a', entry['message'])", "why_not.replace('a', 'b')", "'B' in entry['status']")
    for text in bad:
        assert any(parses_a_sentence(node) for node in ast.walk(ast.parse(text))), f"the rule does not see {text}"


REFUSALS = {"message", "fault", "remedy", "failure", "why_not"}
"""What the texts of errors, problems and failed measurements are called (decision 20)."""


def test_no_refusal_is_parsed():
    for module in below("ptq_eval"):
        found = [ast.unparse(node) for node in nodes(module) if parses_a_sentence(node, REFUSALS)]
        assert not found or module == "ptq_eval.errors", f"{module} parses: {found}"  # an error is kept on one line
    assert parses_a_sentence(ast.parse("problem.message.partition(':')", mode="eval").body, REFUSALS)


def test_every_code_of_a_problem_is_documented():
    """Its place among the arguments is that in the functions which make problems."""
    places, found = {"noted": 1, "with_problem": 0, "Finding": 0, "Problem": 0}, set()
    for module in below("ptq_eval"):
        for call in calls(module):
            place = places.get(dotted(call.func).rpartition(".")[2], len(call.args))
            found |= {node.value for node in call.args[place : place + 1] if isinstance(node, ast.Constant)}
    assert len(found) > 30
    page = (ROOTS[0].parent / "docs" / "concepts.md").read_text(encoding="utf-8")
    assert not [code for code in sorted(found) if f"`{code}`" not in page]


def random_calls(tree: ast.AST, forked: bool = False):
    """Calls that seed or draw from a global generator, outside of `fork_rng`."""
    for node in ast.iter_child_nodes(tree):
        inside = forked
        if isinstance(node, ast.With):
            inside |= any("fork_rng" in ast.unparse(item.context_expr) for item in node.items)
        if isinstance(node, ast.Call) and not inside:
            name = dotted(node.func)
            seeds = name in ("torch.manual_seed", "random.seed", "torch.seed") or name.startswith("torch.cuda.manual")
            draws = name in {f"torch.{f}" for f in ("rand", "randn", "randint", "randperm", "normal", "multinomial")}
            draws &= not any(keyword.arg == "generator" for keyword in node.keywords)
            legacy = name.startswith("np.random.") and not name.startswith(
                ("np.random.default_rng", "np.random.Generator")
            )
            if seeds or draws or legacy:
                yield ast.unparse(node)
        yield from random_calls(node, inside)


def test_no_global_generator_is_seeded_or_drawn_from():
    process = "ptq_eval.backends.worker"  # the whole process is another package's, and its own numbers are seeded
    for module, tree in sources().items():
        found = list(random_calls(tree))
        assert not found or module == process, f"{module}: {found}"
    bad = "torch.manual_seed(0)\nwith torch.random.fork_rng():\n    torch.manual_seed(1)\nnp.random.rand(3)"
    assert list(random_calls(ast.parse(bad))) == ["torch.manual_seed(0)", "np.random.rand(3)"]


@pytest.mark.parametrize("root", ROOTS, ids=lambda root: root.name)
def test_files_and_functions_stay_small(root):
    for path in root.rglob("*.py"):
        lines = path.read_bytes().count(b"\n")
        assert lines <= 350, f"{path.name} has {lines} lines"
    for module in below(root.name):
        for node in nodes(module):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = (node.end_lineno or 0) - node.lineno + 1
                assert length < 60, f"{module}: {node.name} has {length} lines"


@pytest.mark.parametrize("root", ROOTS, ids=lambda root: root.name)
def test_the_packages_are_typed(root):
    assert (root / "py.typed").is_file()


LIGHT = """
import sys, click
import ptq_eval
from ptq_eval.cli.main import cli
assert ptq_eval.__version__
for command in ([], *([name] for name in cli.commands)):
    try:
        cli.main([*command, "--help"], standalone_mode=False)
    except click.exceptions.Exit:
        pass
print("loaded:", *({"torch", "transformers", "pandas", "scipy", "matplotlib"} & set(sys.modules)))
"""


def test_importing_and_help_load_nothing_heavy(python):
    done = python("-c", LIGHT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("loaded:"), done.stdout[-300:]
    assert "Usage:" in done.stdout
