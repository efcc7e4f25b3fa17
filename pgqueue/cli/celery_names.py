"""What the names of a Celery program stand for, found out by reading its files; nothing is imported or run."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pgqueue.cli.celery_words import SECTIONS

#: Packages whose names are words of the table.
FOREIGN = {word.name.partition(".")[0] for word in SECTIONS["imports"].words()}

#: Options that only a decorator of Celery's has.
_TELLING = {"bind", "max_retries", "autoretry_for", "acks_late", "ignore_result", "soft_time_limit", "rate_limit"}

Function = ast.FunctionDef | ast.AsyncFunctionDef
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True, slots=True)
class Thing:
    """What an expression stands for.

    - `kind`: "path" for a name of Celery's (`name` is the dotted one), "module", "function", "class" for parts of the
      program, "unknown" for an import from elsewhere; else what it is in Celery's terms: "app", "task", "request",
      "result", "results", "signature", "signal", "conf", "control", "registry", "decorator", "taskclass", "method".
    - `node`: the function or class that it was made of; `scope`: where that stands.
    """

    kind: str
    name: str = ""
    node: ast.AST | None = None
    scope: Scope | None = None


#: What the attributes of things are, and what calls of their methods return.
_ATTRIBUTES = {
    ("app", "conf"): "conf",
    ("app", "control"): "control",
    ("app", "tasks"): "registry",
    ("app", "current_task"): "task",
    ("app", "current_worker_task"): "task",
    ("app", "on_configure"): "signal",
    ("app", "on_after_configure"): "signal",
    ("app", "on_after_finalize"): "signal",
    ("app", "on_after_fork"): "signal",
    ("task", "app"): "app",
    ("task", "request"): "request",
    ("result", "parent"): "result",
    ("result", "app"): "app",
}
_CALLS = {
    "app.send_task": "result", "app.signature": "signature", "app.task": "decorator", "app.register_task": "task",
    "app.ResultSet": "results", "app.GroupResult": "results", "app.AsyncResult": "result",
    "app.chain": "signature", "app.group": "group", "app.chord": "signature", "app.chunks": "group",
    "task.delay": "result", "task.apply_async": "result", "task.apply": "result", "task.AsyncResult": "result",
    "task.s": "signature", "task.si": "signature", "task.signature": "signature", "task.subtask": "signature",
    "task.map": "signature", "task.starmap": "signature", "task.chunks": "group",
    "signature.delay": "result", "signature.apply_async": "result", "signature.apply": "result",
    "signature.set": "signature", "signature.clone": "signature", "signature.on_error": "signature",
    "group.delay": "results", "group.apply_async": "results", "group.apply": "results",
    "control.inspect": "control",
}  # fmt: skip
#: What calls of Celery's own names return; for classes also what an annotation with them means.
_MADE_BY = {
    "celery.Celery": "app", "celery.app.Celery": "app", "celery.app.base.Celery": "app",
    "celery.Task": "task", "celery.app.task.Task": "task", "celery.Task.Task": "task",
    "celery.result.AsyncResult": "result", "celery.result.EagerResult": "result",
    "celery.result.ResultSet": "results", "celery.result.GroupResult": "results",
    "celery.shared_task": "decorator", "celery.task": "decorator", "celery.task.task": "decorator",
    "celery.task.periodic_task": "decorator", "celery.decorators.task": "decorator",
    "celery.decorators.periodic_task": "decorator", "celery.contrib.django.task.DjangoTask": "task",
    "celery.app.app_or_default": "app",
    "celery.app.control.Control": "control", "celery.app.control.Inspect": "control",
    "celery.group": "group", "celery.canvas.group": "group", "celery.chunks": "group",
}  # fmt: skip
_CANVAS = {
    "chain",
    "chord",
    "signature",
    "subtask",
    "Signature",
    "xmap",
    "xstarmap",
    "maybe_signature",
    "maybe_subtask",
}
_MADE_BY |= {f"{module}.{name}": "signature" for module in ("celery", "celery.canvas") for name in _CANVAS}
ARE = {"celery.current_app": "app", "celery._state.current_app": "app", "celery.current_task": "task",
        "celery._state.current_task": "task"}  # fmt: skip
_TASK_CLASSES = {path for path, kind in _MADE_BY.items() if kind == "task"} | {
    "celery.task.Task",
    "celery.task.base.Task",
}


@dataclass(slots=True)
class Module:
    """One file of the program; `dotted` is its path as a module name, as far up as it goes.

    - `source`: its text, as Python reads it.
    """

    path: Path
    tree: ast.Module
    dotted: tuple[str, ...]
    source: bytes
    scope: Scope = field(init=False)


@dataclass(slots=True, eq=False)
class Scope:
    """The names of a module, a class body or a function, each with what was bound to it.

    - `node`: what has the body; `outer`: where other names are looked for; `owner`: the class of a method.
    """

    module: Module
    node: ast.Module | ast.ClassDef | Function | ast.Lambda
    outer: Scope | None
    owner: ast.ClassDef | None = None
    bound: dict[str, list[Thing | ast.AST | None]] | None = None
    known: dict[str, Thing | None] = field(default_factory=dict)


class Program:
    """The files of a program, and what the names in them stand for."""

    def __init__(self, modules: Iterable[Module]) -> None:
        self.modules = list(modules)
        self._by_end: dict[tuple[str, ...], list[Module]] = defaultdict(list)
        for module in self.modules:
            module.scope = Scope(module, module.tree, None)
            for start in range(len(module.dotted)):
                self._by_end[module.dotted[start:]].append(module)

    # -- names -----------------------------------------------------------------------------------------------

    def lookup(self, name: str, scope: Scope | None) -> Thing | None:
        """Return what a name stands for where it is used."""
        while scope is not None:
            if name in scope.known:
                return scope.known[name]
            found = self._bound(scope).get(name) or self._bound(scope).get("*")
            if found:
                scope.known[name] = None  # meanwhile: a name may be bound to itself
                things = (self._of_binding(binding, name, scope) for binding in found)
                scope.known[name] = next((thing for thing in things if thing is not None), None)
                return scope.known[name]
            scope = scope.outer
        return None

    def _bound(self, scope: Scope) -> dict[str, list[Thing | ast.AST | None]]:
        if scope.bound is None:
            scope.bound = defaultdict(list)
            if not isinstance(scope.node, ast.Module | ast.ClassDef):
                self._bind_parameters(scope, scope.node, scope.bound)
            for name, binding in _bindings(scope.node):
                scope.bound[name].append(binding)
        return scope.bound

    def _bind_parameters(
        self, scope: Scope, node: Function | ast.Lambda, bound: dict[str, list[Thing | ast.AST | None]]
    ) -> None:
        arguments = node.args
        parameters = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        for number, parameter in enumerate(parameters):
            thing = None
            if parameter.annotation is not None:
                thing = self.of_annotation(parameter.annotation, scope.outer)
            if thing is None and number == 0 and not isinstance(node, ast.Lambda):
                thing = self._of_first(node, parameter, scope)
            if thing is None and parameter.arg == "task" and self._is_receiver(node, scope):
                thing = Thing("task")
            bound[parameter.arg].append(thing)
        for rest in filter(None, (arguments.vararg, arguments.kwarg)):
            bound[rest.arg].append(None)

    def _of_first(self, node: Function, parameter: ast.arg, scope: Scope) -> Thing | None:
        """Return what the first parameter of a function is: the task, if it is bound, or a method of a task class."""
        if scope.owner is not None:
            around = self.of_class(scope.owner, scope.outer)
            return Thing("task", node=scope.owner) if around.kind == "taskclass" else None
        made = any(self.decorates(mark, scope.outer) for mark in node.decorator_list)
        return Thing("task", node=node) if made and (is_bound(node) or parameter.arg == "self") else None

    def _is_receiver(self, node: Function | ast.Lambda, scope: Scope) -> bool:
        if isinstance(node, ast.Lambda):
            return False
        for mark in node.decorator_list:
            what = self.evaluate(mark.func if isinstance(mark, ast.Call) else mark, scope.outer)
            if what is not None and what.kind == "method" and what.name == "signal.connect":
                return True
        return False

    def _of_binding(self, binding: Thing | ast.AST | None, name: str, scope: Scope) -> Thing | None:
        match binding:
            case None | Thing():
                return binding
            case ast.Import():
                return self._of_import(binding, name)
            case ast.ImportFrom():
                return self._of_import_from(binding, name, scope.module)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                return self.of_function(binding, scope)
            case ast.ClassDef():
                return self.of_class(binding, scope)
            case ast.AnnAssign(annotation=annotation, value=value):
                found = self.evaluate(value, scope) if value is not None else None
                return found or self.of_annotation(annotation, scope)
            case ast.expr():
                return self.evaluate(binding, scope)
        return None

    def _of_import(self, node: ast.Import, name: str) -> Thing | None:
        for alias in node.names:
            if (alias.asname or alias.name.partition(".")[0]) == name:
                return self._of_dotted(alias.name if alias.asname else name, None)
        return None

    def _of_import_from(self, node: ast.ImportFrom, name: str, module: Module) -> Thing | None:
        dotted = from_module(node, module)
        for alias in node.names:
            if alias.name == "*":
                found = self._find(dotted, module)
                thing = self.lookup(name, found.scope) if found is not None and found is not module else None
                if thing is not None:
                    return thing
            elif (alias.asname or alias.name) == name:
                return self._of_dotted(f"{dotted}.{alias.name}", module)
        return None

    def _of_dotted(self, dotted: str, importer: Module | None) -> Thing | None:
        """Return what a dotted name stands for: Celery's, a module of the program, a name in one, or unknown."""
        if dotted.partition(".")[0] in FOREIGN and not dotted.startswith("."):
            return self._of_path(dotted)
        module = self._find(dotted, importer)
        inside, _, name = dotted.rpartition(".")
        holder = self._find(inside, importer) if inside else None
        if holder is not None and holder is not module:
            found = self.lookup(name, holder.scope)
            if found is not None:
                return found
            if name in self._bound(holder.scope):
                return _by_its_name(dotted)
        if module is not None:
            return Thing("module", scope=module.scope)
        return _by_its_name(dotted) or Thing("unknown", dotted)

    def _of_path(self, path: str) -> Thing:
        if path in ARE:
            return Thing(ARE[path], path)
        if path.startswith("celery.signals."):
            return Thing("signal", path)
        return Thing("path", path)

    def _find(self, dotted: str, importer: Module | None) -> Module | None:
        """Return the module of a dotted name: of several with this end, the one nearest to the file that imports it."""
        found = self._by_end.get(tuple(dotted.strip(".").split(".")), [])
        if importer is None or len(found) < 2:
            return found[0] if found else None
        return max(found, key=lambda module: (_common(module.dotted, importer.dotted), -len(module.dotted)))

    def find(self, dotted: str, importer: Module) -> Module | None:
        """Return the module of the program that has this dotted name, seen from one of its files."""
        return self._find(dotted, importer)

    # -- expressions -----------------------------------------------------------------------------------------

    def evaluate(self, node: ast.AST | None, scope: Scope | None) -> Thing | None:
        """Return what an expression stands for; None if that is nothing of Celery's, or cannot be known."""
        match node:
            case ast.Name(id=name):
                return self.lookup(name, scope)
            case ast.Attribute(value=value, attr=attribute):
                thing = self.evaluate(value, scope)
                return None if thing is None else self._of_attribute(thing, attribute)
            case ast.Call():
                return self._of_call(node, scope)
            case ast.Subscript(value=value):
                thing = self.evaluate(value, scope)
                return Thing("task") if thing is not None and thing.kind == "registry" else None
            case ast.Await(value=value) | ast.NamedExpr(value=value) | ast.Starred(value=value):
                return self.evaluate(value, scope)
            case ast.IfExp(body=body, orelse=other):
                return self.evaluate(body, scope) or self.evaluate(other, scope)
            case ast.BoolOp(values=values):
                return next(filter(None, (self.evaluate(value, scope) for value in values)), None)
            case ast.BinOp(left=left, op=ast.BitOr(), right=right):
                sides = (self.evaluate(left, scope), self.evaluate(right, scope))
                return next(
                    (Thing("signature") for side in sides if side and side.kind in ("signature", "group")), None
                )
        return None

    def _of_attribute(self, thing: Thing, attribute: str) -> Thing | None:
        match thing.kind:
            case "path":
                return self._of_path(f"{thing.name}.{attribute}")
            case "module":
                assert thing.scope is not None
                found = self.lookup(attribute, thing.scope)
                if found is None and attribute not in self._bound(thing.scope):
                    return self._of_dotted(".".join((*thing.scope.module.dotted, attribute)), None)
                return found
            case "unknown":
                return Thing("unknown", f"{thing.name}.{attribute}")
            case "function" | "class" | "method":
                return None
            case "app" if attribute == "Task":
                return Thing("taskclass")
        kind = _ATTRIBUTES.get((thing.kind, attribute))
        if kind is not None:
            return Thing(kind, attribute)
        return Thing("method", f"{thing.kind}.{attribute}", thing.node, thing.scope)

    def _of_call(self, call: ast.Call, scope: Scope | None) -> Thing | None:
        thing = self.evaluate(call.func, scope)
        match thing:
            case None:
                return None
            case Thing(kind="path", name=path):
                kind = _MADE_BY.get(path)
                if kind == "decorator" and call.args:
                    return self._made_task(call, scope)
                return None if kind is None else Thing(kind, path)
            case Thing(kind="method", name="app.task") if call.args:
                return self._made_task(call, scope)
            case Thing(kind="method", name="app.register_task") if call.args:
                return self.evaluate(call.args[0], scope)
            case Thing(kind="method", name=name) if name in _CALLS:
                return Thing(_CALLS[name], name, thing.node, thing.scope)
            case Thing(kind="taskclass"):
                return Thing("task", node=thing.node, scope=thing.scope)
            case Thing(kind="decorator") if call.args:
                return self._made_task(call, scope)
            case Thing(kind="function", node=ast.FunctionDef() as function) if thing.scope is not None:
                return self._of_returned(function, thing.scope)
        return None

    def _made_task(self, call: ast.Call, scope: Scope | None) -> Thing:
        made = self.evaluate(call.args[0], scope)
        return Thing("task", node=made.node, scope=made.scope) if made is not None else Thing("task")

    def _of_returned(self, function: ast.FunctionDef, scope: Scope) -> Thing | None:
        """Return what a function of the program gives back, such as the app that a factory makes."""
        if function.name in scope.known and scope.known[function.name] is None:
            return None
        inner = Scope(scope.module, function, scope)
        key = f"{function.name}()"
        if key not in scope.known:
            scope.known[key] = None  # meanwhile: it may call itself
            things = (
                self.evaluate(node.value, inner)
                for node in inside(function)
                if isinstance(node, ast.Return) and node.value
            )
            found = next((thing for thing in things if thing is not None), None)
            if found is None and function.returns is not None:
                found = self.of_annotation(function.returns, scope)
            scope.known[key] = found
        return scope.known[key]

    def of_annotation(self, node: ast.AST, scope: Scope | None) -> Thing | None:
        """Return what a value with this annotation is."""
        match node:
            case ast.Constant(value=str(text)):
                try:
                    return self.of_annotation(ast.parse(text, mode="eval").body, scope)
                except (SyntaxError, ValueError):
                    return None
            case ast.BinOp(left=left, op=ast.BitOr(), right=right):
                return self.of_annotation(left, scope) or self.of_annotation(right, scope)
            case ast.Subscript(value=value, slice=inner):
                return self.of_annotation(value, scope) or (
                    self.of_annotation(inner, scope) if ast.unparse(value).endswith("Optional") else None
                )
        thing = self.evaluate(node, scope)
        if thing is None:
            return None
        if thing.kind == "taskclass":
            return Thing("task", node=thing.node)
        kind = _MADE_BY.get(thing.name) if thing.kind == "path" else None
        return None if kind in (None, "decorator") else Thing(str(kind), thing.name)

    # -- definitions -----------------------------------------------------------------------------------------

    def of_function(self, node: Function, scope: Scope) -> Thing:
        """Return what a function is: a task, if something makes it one, or itself."""
        if any(self.decorates(mark, scope) for mark in node.decorator_list):
            return Thing("task", node=node, scope=scope)
        return Thing("function", node=node, scope=scope)

    def decorates(self, mark: ast.AST, scope: Scope | None) -> bool:
        """Return whether a decorator makes a task."""
        thing = self.evaluate(mark, scope)
        if thing is None:
            return isinstance(mark, ast.Call) and self.seems_to_decorate(mark, scope)
        if thing.kind == "path":
            return _MADE_BY.get(thing.name) == "decorator"
        return thing.kind == "decorator" or (thing.kind == "method" and thing.name == "app.task")

    def seems_to_decorate(self, mark: ast.Call, scope: Scope | None) -> bool:
        """Return whether a decorator of an app that is not part of the program has options that only tasks have."""
        thing = self.evaluate(mark.func, scope)
        return (
            thing is not None
            and thing.kind == "unknown"
            and thing.name.endswith(("task", "Task"))
            and not _TELLING.isdisjoint(word.arg for word in mark.keywords)
        )

    def of_class(self, node: ast.ClassDef, scope: Scope | None) -> Thing:
        """Return what a class is: one of tasks, if one of its bases is, or itself."""
        for base in node.bases:
            thing = self.evaluate(base, scope)
            if thing is not None and (
                thing.kind == "taskclass" or (thing.kind == "path" and thing.name in _TASK_CLASSES)
            ):
                return Thing("taskclass", node=node, scope=scope)
        return Thing("class", node=node, scope=scope)


def _by_its_name(dotted: str) -> Thing | None:
    """Return an app for what is called one, and is made in a way that cannot be followed."""
    names = ("app", "celery", "celery_app")
    return Thing("app") if "celery" in dotted and dotted.rpartition(".")[2] in names else None


def from_module(node: ast.ImportFrom, module: Module) -> str:
    """Return the dotted name of the module that a statement imports from."""
    if not node.level:
        return node.module or ""
    folder = module.dotted if module.path.name == "__init__.py" else module.dotted[:-1]
    folder = folder[: len(folder) - node.level + 1]
    return "." + ".".join((*folder, *filter(None, [node.module])))


def inside(node: ast.AST) -> Iterator[ast.AST]:
    """Walk what stands in a body, but not the bodies of functions, classes and lambdas in it."""
    todo = list(_body(node))
    while todo:
        found = todo.pop()
        yield found
        if not isinstance(found, (*FUNCTIONS, ast.ClassDef, ast.Lambda)):
            todo += ast.iter_child_nodes(found)


def _body(node: ast.AST) -> list[ast.AST]:
    body = getattr(node, "body", [])
    return list(body) if isinstance(body, list) else [body]


_BINDING = {
    ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign,
    ast.NamedExpr, ast.For, ast.AsyncFor, ast.comprehension, ast.withitem, ast.ExceptHandler,
}  # fmt: skip


def _bindings(node: ast.AST) -> Iterator[tuple[str, ast.AST | None]]:
    """Give each name that a body binds, in no order, with what is bound; None for what is not followed."""
    for found in inside(node):
        if type(found) not in _BINDING:
            continue
        match found:
            case ast.Import(names=names):
                for alias in names:
                    yield alias.asname or alias.name.partition(".")[0], found
            case ast.ImportFrom(names=names):
                for alias in names:
                    yield alias.asname or alias.name, found
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name, found
            case ast.Assign(targets=targets, value=value):
                for target in targets:
                    yield from _targets(target, value)
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name, found
            case ast.NamedExpr(target=ast.Name(id=name), value=value):
                yield name, value
            case ast.For(target=target) | ast.AsyncFor(target=target) | ast.comprehension(target=target):
                yield from _targets(target, None)
            case ast.withitem(optional_vars=ast.AST() as target, context_expr=value):
                yield from _targets(target, value)
            case ast.ExceptHandler(name=str(name)):
                yield name, None


def _targets(target: ast.AST, value: ast.AST | None) -> Iterator[tuple[str, ast.AST | None]]:
    if isinstance(target, ast.Name):
        yield target.id, value
    elif isinstance(target, ast.Tuple | ast.List):
        for part in target.elts:
            yield from _targets(part, None)


def is_bound(node: Function) -> bool:
    """Return whether a decorator says `bind=True`."""
    return any(
        word.arg == "bind" and isinstance(word.value, ast.Constant) and bool(word.value.value)
        for mark in node.decorator_list
        if isinstance(mark, ast.Call)
        for word in mark.keywords
    )


def _common(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    """Return how many folders two modules share, from the top."""
    return next(
        (number for number, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )
