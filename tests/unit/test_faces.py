"""The asyncio face of the lock decides nothing: each method runs the flow that its blocking twin runs."""

import ast
import inspect

import pytest

from django_cluster_lock.lock import Lock

(CLASS,) = ast.parse(inspect.getsource(Lock)).body
BLOCKING = {node.name: node for node in CLASS.body if isinstance(node, ast.FunctionDef)}
ASYNC = {node.name: node for node in CLASS.body if isinstance(node, ast.AsyncFunctionDef)}
TWINS = {f"a{name}": name for name in BLOCKING if not name.startswith("_")} | {
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "_arun": "_run",
}


def code(function):
    """The statements of a function, without its docstring, and without what is for signals: no task gets any."""
    statements = []
    for node in function.body:
        if isinstance(node, ast.Try):
            (handler,) = node.handlers
            clean_up, raising = handler.body
            assert ast.unparse(clean_up.value.func) in {"self._take_back", "self._end_again"}
            assert ast.unparse(raising) == "raise"
            statements += node.body
        elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)) and (
            ast.unparse(node) != "before = self._leases.copy()"
        ):
            statements.append(node)
    return statements


class Blocking(ast.NodeTransformer):
    """Takes ``await self._arun(...)`` for ``self._run(...)``."""

    def visit_Await(self, node):
        call = self.generic_visit(node).value
        assert ast.unparse(call.func) == "self._arun"
        call.func.attr = "_run"
        return call


def blocking(statements):
    return [ast.dump(Blocking().visit(statement)) for statement in statements]


def test_every_method_has_a_twin():
    assert ASYNC.keys() == TWINS.keys()


@pytest.mark.parametrize("name", [name for name in ASYNC if name != "_arun"])
def test_it_runs_the_flow_of_its_twin(name):
    awaiting = code(ASYNC[name])
    assert [type(node) for statement in awaiting for node in ast.walk(statement)].count(ast.Await) == 1
    assert blocking(awaiting) == [ast.dump(statement) for statement in code(BLOCKING[TWINS[name]])]


@pytest.mark.parametrize("name", [name for name in ASYNC if name != "_arun"])
def test_its_twin_runs_one_flow_and_nothing_else(name):
    first, *rest = code(BLOCKING[TWINS[name]])
    call = first.value
    assert isinstance(first, ast.Return | ast.Expr)
    assert ast.unparse(call.func) == "self._run"
    assert [ast.unparse(statement) for statement in rest] == (["return self"] if name == "__aenter__" else [])


@pytest.mark.parametrize("name", [name for name in ASYNC if name != "_arun"])
def test_its_signature_is_that_of_its_twin(name):
    assert ast.dump(ASYNC[name].args) == ast.dump(BLOCKING[TWINS[name]].args)
    assert ast.dump(ASYNC[name].returns) == ast.dump(BLOCKING[TWINS[name]].returns)
