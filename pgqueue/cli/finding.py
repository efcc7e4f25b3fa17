"""Find the app that `-A module[:attr]` names, or say in one sentence why not."""

from __future__ import annotations

import difflib
import importlib
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from pgqueue.app import PgQueue
from pgqueue.errors import PgQueueError, SettingsError

_ATTRIBUTE = "app"


class AppNotFound(SettingsError):
    """The app that was named cannot be found."""


class AppBroken(PgQueueError):
    """The module of the app raises an error; `details` is the traceback, from the user's own code on."""

    def __init__(self, message: str, details: str) -> None:
        self.details = details
        super().__init__(message)


def find_app(name: str | None) -> PgQueue:
    """Return the app that `module[:attr]` names; the working directory is searched first.

    Without `:attr` it is the attribute `app`, or else the only PgQueue of the module.
    Raises AppNotFound or AppBroken.

        find_app("shop.tasks:app")
    """
    if not name:
        found = _modules_with_an_app()
        hint = f"; this folder has one: -A {found[0]}" if found else ""
        raise AppNotFound(f"no app is named: give -A MODULE[:ATTR] or set PGQUEUE_APP{hint}")
    module_name, _, attribute = name.partition(":")
    _search_here()
    module = _import(module_name)
    return _attribute(module, attribute) if attribute else _only_app(module)


@contextmanager
def broken_code(name: str) -> Iterator[None]:
    """Turn what the user's modules raise while they are imported into AppBroken; `name` is that of the app."""
    try:
        yield
    except PgQueueError:
        raise
    except Exception as error:
        raise _broken(name, error) from error


def _search_here() -> None:
    here = str(Path.cwd())
    if sys.path[:1] != [here]:
        sys.path.insert(0, here)


def _import(name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        path = Path(name)
        hint = f"; for the file {name}: -A {'.'.join(path.with_suffix('').parts)}" if path.suffix == ".py" else ""
        raise AppNotFound(f"{name!r} is not the name of a module{hint}")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not f"{name}.".startswith(f"{error.name}."):
            raise _broken(name, error) from error
        hint = _attribute_meant(name) or _near_module(name)
        raise AppNotFound(f"there is no module {error.name!r} in {Path.cwd()} or installed{hint}") from None
    except Exception as error:
        raise _broken(name, error) from error


def _broken(name: str, error: Exception) -> AppBroken:
    """Cut our own frames and those of the import machinery off the top of the traceback."""
    frames = error.__traceback__
    while frames is not None and _is_machinery(frames.tb_frame.f_code.co_filename):
        frames = frames.tb_next
    details = "".join(traceback.format_exception(type(error), error, frames))
    return AppBroken(f"the module {name!r} cannot be imported: {type(error).__name__}: {error}", details)


def _is_machinery(filename: str) -> bool:
    return filename.startswith("<frozen importlib") or filename in (__file__, importlib.__file__)


def _attribute(module: ModuleType, attribute: str) -> PgQueue:
    value: object = module
    for part in attribute.split("."):
        if not hasattr(value, part):
            near = _near(part, [known for known, app in _apps(module)] + dir(value))
            raise AppNotFound(f"the module {module.__name__!r} has no attribute {attribute!r}{near}")
        value = getattr(value, part)
    if isinstance(value, PgQueue):
        return value
    names = [known for known, _ in _apps(module)]
    hint = f"; did you mean {module.__name__}:{names[0]}?" if names else ""
    raise AppNotFound(f"{module.__name__}:{attribute} is of type {type(value).__name__}, not PgQueue{hint}")


def _only_app(module: ModuleType) -> PgQueue:
    if isinstance(app := getattr(module, _ATTRIBUTE, None), PgQueue):
        return app
    apps = {id(app): (name, app) for name, app in _apps(module)}
    if len(apps) == 1:
        return next(iter(apps.values()))[1]
    if apps:
        names = ", ".join(f"{module.__name__}:{name}" for name, _ in apps.values())
        raise AppNotFound(f"the module {module.__name__!r} has {len(apps)} apps; say which: {names}")
    others = [name for name in _modules_with_an_app() if name != module.__name__]
    hint = f"; did you mean -A {others[0]}?" if others else ""
    raise AppNotFound(f"the module {module.__name__!r} has no PgQueue{hint}")


def _apps(module: ModuleType) -> Iterator[tuple[str, PgQueue]]:
    return ((name, value) for name, value in vars(module).items() if isinstance(value, PgQueue))


def _near(wrong: str, known: list[str]) -> str:
    near = difflib.get_close_matches(wrong, [name for name in known if not name.startswith("__")], 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _attribute_meant(name: str) -> str:
    """Return the hint for `shop.app` where `shop:app` was meant."""
    parent, _, attribute = name.rpartition(".")
    has_it = isinstance(getattr(sys.modules.get(parent), attribute, None), PgQueue)
    return f"; did you mean {parent}:{attribute}?" if has_it else ""


def _near_module(name: str) -> str:
    here = Path.cwd()
    files = [path.stem for path in here.glob("*.py")]
    folders = [path.name for path in here.iterdir() if path.is_dir() and path.name.isidentifier()]
    return _near(name, files + folders)


def _modules_with_an_app() -> list[str]:
    """Return the modules of the working directory whose text makes an app."""
    found = []
    for path in sorted(Path.cwd().glob("*.py")):
        try:
            if "PgQueue(" in path.read_text(encoding="utf-8"):
                found.append(path.stem)
        except (OSError, ValueError):
            continue
    return found
