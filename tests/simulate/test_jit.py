"""The compiled kernel's cache on disk: what it is compiled from, all of it, decides whether it is fresh."""

import ast
import importlib.util
import sys
from pathlib import Path

import pytest

from qmeter.simulate import jit

FOLDER = Path(jit.__file__).parent


def compiled_in(path):
    """Modules of the simulator whose names the compiled functions of a module use."""
    tree = ast.parse(path.read_text())
    source = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "qmeter.simulate":
            source |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("qmeter.simulate."):
            module = node.module.removeprefix("qmeter.simulate.")
            source |= {alias.asname or alias.name: module for alias in node.names}
    functions = [f for f in tree.body if isinstance(f, ast.FunctionDef) and "jit" in map(ast.unparse, f.decorator_list)]
    used = {n.id for f in functions for statement in f.body for n in ast.walk(statement) if isinstance(n, ast.Name)}
    return {source[name] for name in used if name in source}


def test_every_module_that_others_compile_in_is_named():
    assert set(jit.PARTS) == set().union(*map(compiled_in, FOLDER.glob("*.py")))
    assert jit.digest(FOLDER / f"{name}.py" for name in jit.PARTS) == jit.SOURCES


@pytest.mark.skipif(not jit.COMPILED, reason="numba is not installed")
def test_code_inlined_from_another_file_is_compiled_again_when_that_was_edited(tmp_path, monkeypatch):
    """GIVEN a compiled function, in the cache, that calls one of another file WHEN that file alone changes THEN it is
    compiled anew; unchanged, it comes from the cache."""
    (tmp_path / "outer_part.py").write_text(
        "from inner_part import inner\nfrom qmeter.simulate.jit import jit\n\n\n"
        "@jit\ndef outer(x):\n    return inner(x) * 10\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))

    def fresh(adds):
        inner = tmp_path / "inner_part.py"
        text = f"from qmeter.simulate.jit import jit\n\n\n@jit\ndef inner(x):\n    return x + {adds}\n"
        if not inner.exists() or inner.read_text() != text:
            inner.write_text(text)
        monkeypatch.setattr(jit, "SOURCES", jit.digest([inner, tmp_path / "outer_part.py"]), raising=False)
        for name in ("inner_part", "outer_part"):
            spec = importlib.util.spec_from_file_location(name, tmp_path / f"{name}.py")
            module = importlib.util.module_from_spec(spec)
            monkeypatch.setitem(sys.modules, name, module)
            exec(compile((tmp_path / f"{name}.py").read_text(), str(tmp_path / f"{name}.py"), "exec"), vars(module))
        return module.outer(1), sum(module.outer.stats.cache_hits.values())

    assert fresh(1) == (20, 0)
    assert fresh(1) == (20, 1)
    assert fresh(22) == (230, 0)
