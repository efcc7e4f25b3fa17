"""Find every use of Celery's words in the files of a program, with what becomes of each here."""

from __future__ import annotations

import ast
import gc
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pgqueue.cli.celery_names import (
    ARE,
    FOREIGN,
    FUNCTIONS,
    Function,
    Module,
    Program,
    Scope,
    from_module,
    inside,
    is_bound,
)
from pgqueue.cli.celery_words import CHANGED, SECTIONS, UNSUPPORTED, Word, find, setting, setting_named

#: In which tables the attributes of a thing stand; the first that has the word wins.
_TABLES = {
    "app": ("app",),
    "task": ("task", "options", "hooks"),
    "taskclass": ("task", "options", "hooks"),
    "request": ("request",),
    "result": ("result",),
    "results": ("results", "result"),
    "signature": ("signature",),
    "group": ("signature",),
    "signal": ("signal",),
    "control": ("control",),
}
#: Calls whose named arguments are options of a call. Of the last three others are let be.
_OPTION_CALLS = {
    "task.apply_async", "signature.apply_async", "group.apply_async", "app.send_task", "signature.set",
    "task.apply_async_on_commit", "unknown.apply_async", "task.apply", "signature.apply", "app.signature",
    "task.signature", "task.subtask", "celery.signature", "celery.canvas.signature", "celery.subtask",
}  # fmt: skip
_OPEN = {"task.apply", "signature.apply", "app.signature", "task.signature", "task.subtask"}
#: Names of modules and classes that hold settings under their own names.
_CONFIG_NAMES = re.compile(r"celery_?(conf|config|settings)$", re.IGNORECASE)
_CONFIG_DICTS = re.compile(r"CELERY(_CONF|_CONFIG|_SETTINGS)?$")
_OLD_SETTING = re.compile(rb"\b(CELERY|CELERYD|CELERYBEAT)_[A-Z]")
#: A file without any of these has nothing to look at: most files of most programs.
_MENTIONS = re.compile(
    "|".join((
        *sorted(FOREIGN), "(?i:celery)", "INSTALLED_APPS",
        r"class \w+\(.*Task", r"\.(delay|apply_async|send_task|task)\b",
        r"\.(apply|si?|signature|subtask)\(", r"\.control\.\w+\(", r"\.conf(\.\w+ *=|\.update|\[)",
    )).encode()
)  # fmt: skip
_STATES = {word.name for word in SECTIONS["states"].words() if word.name.isupper() and "_" not in word.name}
_NO_OPTION = (
    "There is no such option here, and an unknown one is an error: keep what is yours in a class or in `headers`."
)
_HEADER = "A header: `self.request.headers`, or `self.request.get(name)`."


class Use(NamedTuple):
    """One use of a word: where (lines and columns from 1), and what becomes of it."""

    path: str
    line: int
    column: int
    word: str
    verdict: str
    note: str


class Unreadable(NamedTuple):
    """A file that cannot be parsed, and what Python says of it."""

    path: str
    line: int
    sentence: str


@dataclass(slots=True)
class Findings:
    """What was found: the uses in order of their places, files that cannot be parsed, and how many were read."""

    uses: list[Use] = field(default_factory=list)
    unreadable: list[Unreadable] = field(default_factory=list)
    files: int = 0


def check(paths: Iterable[Path]) -> Findings:
    """Read the Python files of these files and folders; names are followed from one to the other.

    Left out are hidden folders, `__pycache__` and virtual environments.
    """
    findings = Findings()
    collecting = gc.isenabled()
    gc.disable()  # the trees are millions of objects that all stay: looking for garbage takes half of the time
    try:
        modules = list(_modules(paths, findings))
        program = Program(modules)
        configs = _Configs(program)
        readers = [_Reader(program, module, configs) for module in modules]
        for step in (_Reader.read, _Reader.read_config):
            for reader in readers:
                try:
                    step(reader)
                except RecursionError:
                    path = str(reader.module.path)
                    findings.unreadable.append(Unreadable(path, 1, "is nested too deeply to be read"))
        findings.uses = sorted(use for reader in readers for use in reader.uses.values())
    finally:
        if collecting:
            gc.enable()
    return findings


def _modules(paths: Iterable[Path], findings: Findings) -> Iterator[Module]:
    for path in dict.fromkeys(file for given in paths for file in python_files(given)):
        findings.files += 1
        try:
            source = path.read_bytes()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what Python thinks of their style is not asked
                tree = ast.parse(source, filename=str(path))
        except SyntaxError as error:
            findings.unreadable.append(Unreadable(str(path), error.lineno or 1, f"cannot be parsed: {error.msg}"))
        except (ValueError, RecursionError, MemoryError, OSError) as error:
            findings.unreadable.append(Unreadable(str(path), 1, f"cannot be read: {error}"))
        else:
            yield Module(path, tree, _dotted(path), source)


def python_files(path: Path) -> Iterator[Path]:
    """Give the file itself, or the Python files below a folder in the order of their names."""
    if not path.is_dir():
        yield path
        return
    for folder, folders, files in os.walk(path):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and name != "__pycache__" and not Path(folder, name, "pyvenv.cfg").exists()
        )
        yield from (Path(folder, name) for name in sorted(files) if name.endswith(".py"))


def _dotted(path: Path) -> tuple[str, ...]:
    parts = path.resolve().with_suffix("").parts[1:]
    return parts[:-1] if parts[-1] == "__init__" else parts


class _Configs:
    """Which modules and classes hold settings: by their names, or because the app is told to read them."""

    def __init__(self, program: Program) -> None:
        self.nodes: set[ast.AST] = {
            module.tree for module in program.modules if module.dotted and _CONFIG_NAMES.search(module.dotted[-1])
        }
        self.prefixes: set[str] = set()


class _Reader:
    """Reads one module; `uses` has each word once per line."""

    def __init__(self, program: Program, module: Module, configs: _Configs) -> None:
        self.program = program
        self.module = module
        self.configs = configs
        self.uses: dict[tuple[int, str], Use] = {}
        self._values: dict[ast.AST, ast.AST] = {}
        self._lines: list[bytes] = []

    def read(self) -> None:
        """Find all but the settings that stand under their own names."""
        if _MENTIONS.search(self.module.source) is not None:
            for node in self.module.tree.body:
                self._walk(node, self.module.scope)

    def read_config(self) -> None:
        """Find the settings in this module and its classes, once all modules were asked what they configure."""
        tree = self.module.tree
        prefixed = _OLD_SETTING.search(self.module.source) is not None or any(
            prefix.encode() in self.module.source for prefix in self.configs.prefixes
        )
        if not prefixed and not self.configs.nodes and _MENTIONS.search(self.module.source) is None:
            return
        classes = (node for node in inside(tree) if isinstance(node, ast.ClassDef))
        for node in (tree, *classes):
            whole = node in self.configs.nodes or (
                isinstance(node, ast.ClassDef) and _CONFIG_NAMES.search(node.name) is not None
            )
            if whole or prefixed:
                for name, target, value in _assigned(node):
                    self._setting_variable(name, target, value, whole)

    # -- telling ---------------------------------------------------------------------------------------------

    def _tell(self, shown: str, word: Word, line: int, column: int) -> None:
        self._lines = self._lines or self.module.source.splitlines()
        column = len(self._lines[line - 1][:column].decode("utf-8", "replace"))  # the tree counts bytes
        use = Use(str(self.module.path), line, column + 1, shown, word.verdict, word.note)
        self.uses.setdefault((line, shown), use)

    def _tell_of(self, section: str, name: str, node: ast.AST, value: ast.AST | None = None) -> bool:
        """Tell of a word where a node stands, of its value if the table has that; return whether it is one."""
        for constant in _constants(value):
            word = find(section, f"{name}={constant}")
            if word is not None:
                self._tell(f"{SECTIONS[section].show(name).removesuffix(')')}{constant!r})", word, *_place(node))
                return True
        word = find(section, name)
        if word is not None:
            self._tell(SECTIONS[section].show(name), word, *_place(node))
        return word is not None

    def _tell_path(self, path: str, node: ast.AST) -> None:
        found = _word_of_path(path)
        if found is not None:
            self._tell(*found, *_place(node))

    # -- walking ---------------------------------------------------------------------------------------------

    def _walk(self, node: ast.AST, scope: Scope) -> None:
        if isinstance(node, FUNCTIONS):
            self._walk_function(node, scope, None)
        elif isinstance(node, ast.ClassDef):
            self._walk_class(node, scope)
        elif isinstance(node, ast.Lambda):
            self._walk(node.body, Scope(self.module, node, scope))
        else:
            look = _LOOKS.get(type(node))
            if look is not None:
                look(self, node, scope)
            for child in ast.iter_child_nodes(node):
                self._walk(child, scope)

    def _walk_function(self, node: Function, scope: Scope, owner: ast.ClassDef | None) -> None:
        for mark in node.decorator_list:
            self._walk(mark, scope)
        self._walk(node.args, scope)
        if node.returns is not None:
            self._walk(node.returns, scope)
        inner = Scope(self.module, node, scope, owner)
        for child in node.body:
            self._walk(child, inner)

    def _walk_class(self, node: ast.ClassDef, scope: Scope) -> None:
        for part in (*node.decorator_list, *node.bases, *node.keywords):
            self._walk(part, scope)
        body = Scope(self.module, node, scope)
        if self.program.of_class(node, scope).kind == "taskclass":
            for name, target, value in _assigned(node):
                self._tell_of("options", name, target, value)
            for child in node.body:
                if (
                    isinstance(child, FUNCTIONS)
                    and not self._tell_of("hooks", child.name, child)
                    and child.name == "run"
                ):
                    self._tell_of("options", "run", child)
        for child in node.body:
            if isinstance(child, FUNCTIONS):
                self._walk_function(child, scope, node)
            else:
                self._walk(child, body)

    # -- looking at one node ---------------------------------------------------------------------------------

    def _look_at_import(self, node: ast.Import, scope: Scope) -> None:
        for alias in node.names:
            self._tell_path(alias.name, alias)

    def _look_at_import_from(self, node: ast.ImportFrom, scope: Scope) -> None:
        dotted = from_module(node, self.module)
        for alias in node.names:
            self._tell_path(dotted if alias.name == "*" else f"{dotted}.{alias.name}", alias)

    def _look_at_name(self, node: ast.Name, scope: Scope) -> None:
        thing = self.program.lookup(node.id, scope)
        if thing is not None and (thing.kind in ("path", "signal") or thing.name in ARE):
            self._tell_path(thing.name, node)

    def _look_at_attribute(self, node: ast.Attribute, scope: Scope) -> None:
        thing = self.program.evaluate(node.value, scope)
        if thing is None:
            return
        if thing.kind == "path":
            self._tell_path(f"{thing.name}.{node.attr}", node)
        elif thing.kind == "conf":
            self._tell_setting(node.attr, node, self._values.get(node))
        elif isinstance(thing.node, ast.ClassDef) and _defines(thing.node, node.attr):
            return
        else:
            tables = _TABLES.get(thing.kind, ())
            if not any(self._tell_of(table, node.attr, node) for table in tables) and thing.kind == "request":
                self._tell(f"request.{node.attr}", Word(node.attr, CHANGED, _HEADER), *_place(node))

    def _look_at_call(self, node: ast.Call, scope: Scope) -> None:
        if self._makes_task(node, scope):
            self._named(node, "options")
            return
        thing = self.program.evaluate(node.func, scope)
        what = "" if thing is None else thing.name
        if (thing is None or thing.kind == "unknown") and _like_a_task(node):
            assert isinstance(node.func, ast.Attribute)
            what = f"unknown.{node.func.attr}"
            self._tell_of("task", node.func.attr, node.func)
        if what in _OPTION_CALLS:
            self._named(node, "calls", what in _OPEN)
        elif what == "task.retry":
            self._named(node, "retry")
        elif what == "result.get":
            self._named_in_result(node, "get({}=)")
        elif what in ("result.revoke", "results.revoke"):
            self._named_in_result(node, "revoke({}=)")
        elif what in ("signature.link_error", "signature.on_error"):
            self._errback(node.args[0] if node.args else None, scope)
        elif what == "app.config_from_object" and node.args:
            self._configures(node, scope)
        elif what == "app.add_defaults" or self._is_conf_update(node, scope):
            self._settings_of(node)
            if len(node.args) == 2 and isinstance(node.args[0], ast.Constant):  # setdefault
                self._tell_setting(str(node.args[0].value), node.args[0], node.args[1])
        elif thing is not None and thing.kind == "path":
            made = self.program.evaluate(node, scope)
            if made is not None and made.kind == "app":
                self._constructor(node)
        for word in node.keywords:
            if word.arg is not None and _CONFIG_DICTS.match(word.arg):
                self._settings_of(word.value)
            elif word.arg is not None and word.arg.isupper():  # `override_settings`, and its like
                self._setting_variable(word.arg, word, word.value, False)
            if word.arg == "link_error" and what in _OPTION_CALLS:
                for part in word.value.elts if isinstance(word.value, ast.List | ast.Tuple) else [word.value]:
                    self._errback(part, scope)

    def _look_at_assign(self, node: ast.Assign, scope: Scope) -> None:
        for target in node.targets:
            name = _written_name(target)
            if isinstance(target, ast.Attribute | ast.Subscript):
                self._values[target] = node.value
            if name == "INSTALLED_APPS":
                self._installed(node.value)
            elif _CONFIG_DICTS.match(name):
                self._settings_of(node.value)

    def _look_at_subscript(self, node: ast.Subscript, scope: Scope) -> None:
        thing = self.program.evaluate(node.value, scope)
        if thing is not None and thing.kind == "conf" and isinstance(node.slice, ast.Constant):
            self._tell_setting(str(node.slice.value), node.slice, self._values.get(node))

    def _look_at_compare(self, node: ast.Compare, scope: Scope) -> None:
        left = node.left
        if isinstance(left, ast.Attribute) and left.attr in ("state", "status"):
            thing = self.program.evaluate(left.value, scope)
            if thing is not None and thing.kind in ("result", "results"):
                for part in node.comparators:
                    for text in _texts(part):
                        if text in _STATES:
                            self._tell_of("states", text, part)

    def _look_at_operator(self, node: ast.BinOp, scope: Scope) -> None:
        if isinstance(node.op, ast.BitOr) and self.program.evaluate(node, scope) is not None:
            self._tell_of("signature", "|", node)

    def _look_at_sign(self, node: ast.UnaryOp, scope: Scope) -> None:
        thing = self.program.evaluate(node.operand, scope) if isinstance(node.op, ast.Invert) else None
        if thing is not None and thing.kind in ("signature", "group"):
            self._tell_of("signature", "~", node)

    # -- parts of these --------------------------------------------------------------------------------------

    def _makes_task(self, call: ast.Call, scope: Scope) -> bool:
        return self.program.decorates(call.func, scope) or self.program.seems_to_decorate(call, scope)

    def _named(self, call: ast.Call, section: str, others: bool = False) -> None:
        """Tell of the named arguments of a call; `others`: whether there may be some that are no words."""
        for given in call.keywords:
            if given.arg is not None and not self._tell_of(section, given.arg, given, given.value) and not others:
                shown = SECTIONS[section].show(given.arg)
                self._tell(shown, Word(given.arg, UNSUPPORTED, _NO_OPTION), *_place(given))

    def _named_in_result(self, call: ast.Call, name: str) -> None:
        for given in call.keywords:
            if given.arg is not None:
                self._tell_of("result", name.format(given.arg), given)

    def _errback(self, node: ast.AST | None, scope: Scope) -> None:
        """Tell of an errback that Celery calls with (request, exc, traceback): one of several parameters, unbound."""
        thing = self.program.evaluate(node, scope)
        if node is None or thing is None or not isinstance(thing.node, FUNCTIONS):
            return
        parameters = [*thing.node.args.posonlyargs, *thing.node.args.args]
        if len(parameters) > 1 and parameters[0].arg != "self" and not is_bound(thing.node):
            self._tell_of("calls", "link_error(request,exc,traceback)", node)

    def _configures(self, call: ast.Call, scope: Scope) -> None:
        """Note what `config_from_object` reads."""
        source = call.args[0]
        prefix = next((_texts(given.value) for given in call.keywords if given.arg == "namespace"), [])
        prefix = prefix or (_texts(call.args[2]) if len(call.args) > 2 else [])
        if prefix and prefix[0]:
            self.configs.prefixes.add(prefix[0].rstrip("_").upper() + "_")
            return
        for text in _texts(source):
            module, _, name = text.partition(":")
            found = self.program.find(module, self.module)
            if found is not None:
                thing = self.program.lookup(name, found.scope) if name else None
                self.configs.nodes.add(found.tree if thing is None or thing.node is None else thing.node)
        thing = self.program.evaluate(source.func if isinstance(source, ast.Call) else source, scope)
        if thing is not None and thing.kind == "module" and thing.scope is not None:
            self.configs.nodes.add(thing.scope.node)
        elif thing is not None and thing.kind == "class" and thing.node is not None:
            self.configs.nodes.add(thing.node)

    def _constructor(self, call: ast.Call) -> None:
        for given in call.keywords:
            if given.arg is not None and not self._tell_of("arguments", given.arg, given):
                self._tell_setting(given.arg, given, given.value)

    def _is_conf_update(self, call: ast.Call, scope: Scope) -> bool:
        if not isinstance(call.func, ast.Attribute) or call.func.attr not in ("update", "setdefault"):
            return False
        thing = self.program.evaluate(call.func.value, scope)
        return thing is not None and thing.kind == "conf"

    def _settings_of(self, node: ast.AST) -> None:
        """Tell of the settings in a dictionary that is written out."""
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant):
                    self._tell_setting(str(key.value), key, value)
        elif isinstance(node, ast.Call):
            for given in node.keywords:
                if given.arg is not None:
                    self._tell_setting(given.arg, given, given.value)
            for argument in node.args:
                self._settings_of(argument)

    def _setting_variable(self, name: str, target: ast.AST, value: ast.AST | None, whole: bool) -> None:
        if whole and self._tell_setting(name, target, value):
            return
        prefix = next((prefix for prefix in self.configs.prefixes if name.startswith(prefix)), "")
        if whole or prefix or _OLD_SETTING.match(name.encode()):
            found = setting_named(name, prefix)
            if found is not None:
                self._tell_setting(found, target, value, name)

    def _tell_setting(self, name: str, node: ast.AST, value: ast.AST | None, shown: str = "") -> bool:
        try:
            word = setting(name) if value is None else setting(name, ast.literal_eval(value))
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):  # it is computed, so it is not known
            word = setting(name)
        if word is not None:
            self._tell(shown or SECTIONS["settings"].show(name), word, *_place(node))
        return word is not None

    def _installed(self, node: ast.AST) -> None:
        for part in ast.walk(node):
            if isinstance(part, ast.Constant) and str(part.value).startswith("django_celery_"):
                self._tell_path(str(part.value), part)


_LOOKS: dict[type[ast.AST], Callable[[_Reader, Any, Scope], None]] = {
    ast.Import: _Reader._look_at_import,
    ast.ImportFrom: _Reader._look_at_import_from,
    ast.Name: _Reader._look_at_name,
    ast.Attribute: _Reader._look_at_attribute,
    ast.Call: _Reader._look_at_call,
    ast.Assign: _Reader._look_at_assign,
    ast.Subscript: _Reader._look_at_subscript,
    ast.Compare: _Reader._look_at_compare,
    ast.BinOp: _Reader._look_at_operator,
    ast.UnaryOp: _Reader._look_at_sign,
}

#: Modules of Celery whose names stand in tables of their own.
_PLACES = {
    "celery": ("canvas",),
    "celery.canvas": ("canvas",),
    "celery.signals": ("signals",),
    "celery.exceptions": ("exceptions",),
    "billiard.exceptions": ("exceptions",),
    "kombu.exceptions": ("exceptions",),
    "celery.states": ("states",),
    "celery.schedules": ("schedules",),
}
_SILENT = {"celery", "celery.result", "celery.app.task", "celery.utils", "celery.app", *_PLACES}


def _word_of_path(path: str) -> tuple[str, Word] | None:
    """Return how a dotted name of Celery's is shown and what becomes of it; None for one that says nothing yet."""
    module, _, name = path.rpartition(".")
    for section in _PLACES.get(module, ()):
        word = find(section, name)
        if word is not None:
            return SECTIONS[section].show(name), word
    if path in _SILENT:
        return None
    longest = path
    while longest:
        word = find("imports", longest)
        if word is not None:
            return path, word
        longest = longest.rpartition(".")[0]
    return None


def _place(node: ast.AST) -> tuple[int, int]:
    """Return the line, from 1, and the column, from 0, of the word that a node brings."""
    if isinstance(node, ast.Attribute):
        return node.end_lineno or node.lineno, (node.end_col_offset or 0) - len(node.attr.encode())
    return getattr(node, "lineno", 1), getattr(node, "col_offset", 0)


def _constants(node: ast.AST | None) -> list[object]:
    """Return the constants that an expression is or lists."""
    if isinstance(node, ast.Constant):
        return [node.value]
    if isinstance(node, ast.List | ast.Tuple | ast.Set):
        return [constant for part in node.elts for constant in _constants(part)]
    return []


def _texts(node: ast.AST | None) -> list[str]:
    return [constant for constant in _constants(node) if isinstance(constant, str)]


def _written_name(target: ast.AST) -> str:
    """Return the name that an assignment writes to: a variable, or the key of a configuration."""
    if isinstance(target, ast.Subscript) and isinstance(target.slice, ast.Constant):
        return str(target.slice.value)
    return target.id if isinstance(target, ast.Name) else ""


def _assigned(node: ast.AST) -> Iterator[tuple[str, ast.AST, ast.AST | None]]:
    """Give the variables of a module or a class, those under `if` and `try` too, with where and what."""
    for found in inside(node):
        if isinstance(found, ast.Assign):
            for target in found.targets:
                if isinstance(target, ast.Name):
                    yield target.id, target, found.value
        elif isinstance(found, ast.AnnAssign) and isinstance(found.target, ast.Name):
            yield found.target.id, found.target, found.value


def _defines(node: ast.ClassDef, name: str) -> bool:
    return any(isinstance(child, FUNCTIONS) and child.name == name for child in node.body)


def _like_a_task(call: ast.Call) -> bool:
    """Return whether `x.delay()` and its like of something unknown are likely to be Celery's."""
    if not isinstance(call.func, ast.Attribute) or call.func.attr not in ("delay", "apply_async", "update_state"):
        return False
    receiver = call.func.value.func if isinstance(call.func.value, ast.Call) else call.func.value
    name = (receiver.id if isinstance(receiver, ast.Name) else getattr(receiver, "attr", "")).lower()
    if call.func.attr == "delay":
        return name not in ("self", "cls", "time", "dask")
    given = {word.arg for word in call.keywords}
    if call.func.attr == "update_state":
        return not given.isdisjoint({"state", "meta"})
    return "pool" not in name and "executor" not in name and given.isdisjoint({"callback", "error_callback", "kwds"})
