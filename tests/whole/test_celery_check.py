"""`pgqueue celery-check` on small Celery programs: what it finds in them, and what it lets be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pgqueue.cli.celery_uses import Findings, check

PROGRAM = Path(sys.executable).with_name("pgqueue")

#: Programs of one file: their text, and of each line the words that are found with their verdicts.
FILES = {
    "an app and its arguments": (
        """
from celery import Celery
app = Celery("shop", broker="redis://localhost", include=["shop.tasks"], task_acks_late=True)
app.finalize()
app.something_of_ours = 1
""",
        ["2 celery.Celery changed", "3 celery.Celery changed", "3 Celery(broker=) changed", "3 Celery(include=) same",
         "3 conf.task_acks_late changed", "4 app.finalize unsupported"],
    ),
    "options of tasks": (
        """
import celery
app = celery.Celery()
@app.task(bind=True, acks_late=True, colour="red")
def one(self): ...
@celery.shared_task(serializer="pickle")
def two(): ...
@app.task
def three(): ...
four = app.task(name="four")(lambda: 4)
@some.other.task(bind=True)
def five(self): self.retry()
""",
        ["3 celery.Celery changed", "4 app.task same", "4 task(bind=) same", "4 task(acks_late=True) same",
         "4 task(colour=) unsupported", "6 celery.shared_task same", "6 task(serializer='pickle') unsupported",
         "8 app.task same", "10 app.task same", "10 task(name=) same"],
    ),
    "inside a bound task": (
        """
from celery import shared_task
@shared_task(bind=True)
def work(self, n):
    self.update_state(state="PROGRESS")
    if self.request.retries or self.request.tenant or self.request.get("tenant"):
        raise self.retry(countdown=2, link=None)
    other = self
    return other.request.chord
def plain(self):
    self.retry(), self.request.id
""",
        ["2 celery.shared_task same", "3 celery.shared_task same", "3 task(bind=) same", "5 task.update_state stronger",
         "6 request.get same", "6 request.retries same", "6 request.tenant changed", "6 task.request same",
         "7 retry(countdown=) stronger", "7 retry(link=) unsupported", "7 task.retry stronger",
         "9 request.chord unsupported", "9 task.request same"],
    ),
    "calls": (
        """
from celery import shared_task
@shared_task
def add(x, y): ...
def calls(pool, thing):
    add.delay(1, y=2)
    add.apply_async((1, 2), countdown=3, exchange="e", foo=1, serializer="yaml")
    add.s(1).set(queue="q").apply_async(eta=1)
    add.si(1) | add.s(2)
    ~add.s(1)
    pool.apply_async(add, callback=print)
    thing.executor.apply_async(add)
    thing.apply_async(queue="q")
    thing.delay()
    self.delay()
""",
        ["2 celery.shared_task same", "3 celery.shared_task same", "6 task.delay same",
         "7 apply_async(countdown=) stronger",
         "7 apply_async(exchange=) unsupported", "7 apply_async(foo=) unsupported",
         "7 apply_async(serializer='yaml') unsupported", "7 task.apply_async same", "8 apply_async(eta=) changed",
         "8 apply_async(queue=) same", "8 signature.apply_async same", "8 signature.set same", "8 task.s same",
         "9 signature.| same", "9 task.s same", "9 task.si same", "10 signature.~ same", "10 task.s same",
         "13 apply_async(queue=) same", "13 task.apply_async same", "14 task.delay same"],
    ),
    "errbacks": (
        """
from celery import shared_task
@shared_task
def new_style(request, exc, traceback): ...
@shared_task
def old_style(task_id): ...
@shared_task(bind=True)
def bound(self, task_id): ...
def go():
    old_style.apply_async(link_error=new_style.s())
    old_style.apply_async(link_error=[old_style.s(), bound.s()])
    old_style.s().on_error(new_style.s())
""",
        ["2 celery.shared_task same", "3 celery.shared_task same", "5 celery.shared_task same",
         "7 celery.shared_task same", "7 task(bind=) same", "10 link_error(request,exc,traceback) changed",
         "10 apply_async(link_error=) changed", "10 task.apply_async same", "10 task.s same",
         "11 apply_async(link_error=) changed", "11 task.apply_async same", "11 task.s same",
         "12 link_error(request,exc,traceback) changed", "12 signature.on_error same", "12 task.s same"],
    ),
    "results": (
        """
from celery.result import AsyncResult as Handle, GroupResult
from celery import states
def look(job: Handle):
    result = Handle("id")
    if result.state == "PENDING" or job.status in ("SUCCESS", "MINE") or result.state == states.RECEIVED:
        result.get(interval=1, timeout=3)
        result.revoke(terminate=True)
        return result.parent.then
""",
        ["2 celery.result.AsyncResult same", "2 celery.result.GroupResult same", "4 celery.result.AsyncResult same",
         "5 celery.result.AsyncResult same", "6 AsyncResult.state changed", "6 AsyncResult.status changed",
         "6 states.PENDING changed", "6 states.RECEIVED unsupported", "6 states.SUCCESS same",
         "7 AsyncResult.get changed",
         "7 AsyncResult.get(interval=) same", "7 AsyncResult.get(timeout=) same", "8 AsyncResult.revoke stronger",
         "8 AsyncResult.revoke(terminate=) later", "9 AsyncResult.parent stronger", "9 AsyncResult.then unsupported"],
    ),
    "signals": (
        """
from celery.signals import task_prerun, task_sent
from celery import signals
@task_prerun.connect
def told(sender, task, **kwargs):
    task.request.stamps
@signals.setup_logging.connect(weak=False)
def logs(**kwargs): ...
""",
        ["2 signals.task_prerun same", "2 signals.task_sent changed", "4 signal.connect same",
         "4 signals.task_prerun same",
         "6 request.stamps same", "6 task.request same", "7 signal.connect same",
         "7 signals.setup_logging same"],
    ),
    "classes of tasks": (
        """
import celery
class Base(celery.Task):
    abstract = True
    max_retries = 5
    colour = "red"
    def on_failure(self, exc, task_id, args, kwargs, einfo):
        return self.paint(), self.backend
    def paint(self): ...
class Own(Base):
    def run(self, x):
        self.paint()
        self.retry()
    def backend(self): return self.backend
class Stranger:
    def on_failure(self): self.retry()
""",
        ["3 celery.Task same", "4 task(abstract=) unsupported", "5 task(max_retries=) same",
         "7 Task.on_failure stronger",
         "8 task.backend unsupported", "11 task(run=) same", "13 task.retry stronger"],
    ),
    "canvas and schedules": (
        """
from celery import chain, group
from celery.schedules import crontab, solar
from .tasks import add
def go():
    chain(add.s(1), add.s(2))()
    group([]).apply_async().join_native()
every = crontab(minute=0)
""",
        ["2 chain stronger", "2 group stronger", "3 crontab later", "3 solar unsupported", "6 chain stronger",
         "7 ResultSet.join_native same", "7 group stronger", "7 signature.apply_async same", "8 crontab later"],
    ),
    "settings of the app": (
        """
from celery import Celery
app = Celery("x")
app.conf.task_serializer = "pickle"
app.conf.update(accept_content=["json"], timezone="UTC")
app.conf.update({"broker_url": "redis://x"})
app.conf["beat_schedule"] = {}
print(app.conf.task_always_eager)
app.config.from_mapping(CELERY=dict(task_ignore_result=True))
""",
        ["2 celery.Celery changed", "3 celery.Celery changed", "4 app.conf changed",
         "4 conf.task_serializer unsupported", "5 app.conf changed", "5 conf.accept_content same",
         "5 conf.timezone same",
         "6 app.conf changed", "6 conf.broker_url changed", "7 app.conf changed", "7 conf.beat_schedule later",
         "8 app.conf changed", "8 conf.task_always_eager same", "9 conf.task_ignore_result same"],
    ),
    "settings of Django": (
        """
import os
INSTALLED_APPS = ["django.contrib.admin", "django_celery_beat"]
CELERY_BROKER_URL = os.environ["BROKER"]
CELERY_TASK_SERIALIZER = "pickle"
if True:
    CELERYD_CONCURRENCY: int = 4
CELERY_OURS = 1
HAS_CELERY = True
@override_settings(CELERY_TASK_ALWAYS_EAGER=True, DEBUG=True)
def test(): ...
""",
        ["3 django_celery_beat later", "4 CELERY_BROKER_URL changed", "5 CELERY_TASK_SERIALIZER unsupported",
         "7 CELERYD_CONCURRENCY same", "10 CELERY_TASK_ALWAYS_EAGER same"],
    ),
    "a class of settings": (
        """
class CeleryConfig:
    broker_url = "redis://"
    task_acks_late = False
class Other:
    broker_url = "redis://"
""",
        ["3 conf.broker_url changed", "4 conf.task_acks_late changed"],
    ),
    "exceptions": (
        """
from celery.exceptions import Reject, TimeoutError
from billiard.exceptions import SoftTimeLimitExceeded
from kombu.exceptions import OperationalError
def f():
    raise Reject("no")
""",
        ["2 exceptions.Reject stronger", "2 exceptions.TimeoutError changed", "3 exceptions.SoftTimeLimitExceeded same",
         "4 exceptions.OperationalError changed", "6 exceptions.Reject stronger"],
    ),
    "inner parts, kombu and other packages": (
        """
from celery.utils.log import get_task_logger
from celery.contrib.abortable import AbortableTask
from kombu import Queue, Exchange, Connection
import celery_once
from celery import *
import celery.bin.worker
""",
        ["2 celery.utils.log.get_task_logger changed", "3 celery.contrib.abortable.AbortableTask later",
         "4 kombu.Connection unsupported", "4 kombu.Exchange unsupported", "4 kombu.Queue changed",
         "5 celery_once changed", "7 celery.bin.worker unsupported"],
    ),
    "control": (
        """
from celery import current_app
current_app.control.revoke("id", terminate=True)
current_app.control.inspect().active()
current_app.tasks["a"].delay()
""",
        ["2 celery.current_app changed", "3 app.control later", "3 celery.current_app changed",
         "3 control.revoke changed",
         "4 app.control later", "4 celery.current_app changed", "4 control.active later", "4 control.inspect later",
         "5 app.tasks same", "5 celery.current_app changed", "5 task.delay same"],
    ),
    "an app from a factory": (
        """
from celery import Celery, Task
def make(flask) -> Celery:
    class FlaskTask(Task):
        def __call__(self, *args): return self.run(*args)
    made = Celery(flask.name, task_cls=FlaskTask)
    return made
celery = make(object())
@celery.task()
def t(): ...
t.delay()
""",
        ["2 celery.Celery changed", "2 celery.Task same", "3 celery.Celery changed", "4 celery.Task same",
         "5 Task.__call__ same", "5 task(run=) same", "6 Celery(task_cls=) same", "6 celery.Celery changed",
         "9 app.task same", "11 task.delay same"],
    ),
    "what has nothing to do with Celery": (
        """
import inspect, time
from django.conf import settings
from multiprocessing import Pool
class View:
    def get(self, request):
        return request.id, self.request.user, inspect.signature(print).apply(1), time.delay(1)
def f(df): df.apply(len); df.retry(); Pool().apply_async(f)
chain = group = None
chain(1), group.s(2)
""",
        [],
    ),
}  # fmt: skip


def found(findings: Findings) -> list[str]:
    """Each use as `line word verdict`, in order."""
    return [f"{use.line} {use.word} {use.verdict}" for use in findings.uses]


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def run(*words: str, code: int, cwd: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [PROGRAM, "celery-check", *words], cwd=cwd, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


# -- what is found -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_the_words_of_a_file_are_found_and_no_others(name: str, tmp_path: Path) -> None:
    text, expected = FILES[name]
    write(tmp_path, {"shop.py": text})
    assert sorted(found(check([tmp_path]))) == sorted(expected)


def test_names_are_followed_through_the_files_of_a_program(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "shop/__init__.py": "from .celery import app as celery_app\n",
            "shop/celery.py": "from celery import Celery\napp = Celery('shop')\n",
            "shop/tasks.py": "from shop.celery import app\n@app.task(ignore_result=True)\ndef pay(n): ...\n",
            "shop/everything.py": "from .tasks import *\n",
            "shop/views/a.py": "from shop.tasks import pay\npay.si(1)\n",
            "shop/views/b.py": "from ..tasks import pay as later\nlater.apply(priority=1)\n",
            "shop/views/c.py": "from shop import tasks, celery_app\ntasks.pay.s(2)\ncelery_app.send_task('x')\n",
            "shop/views/d.py": "from shop.everything import pay\npay.signature()\n",
            "shop/views/e.py": "import shop.tasks\nshop.tasks.pay.apply(throw=True)\n",
            "hidden/celery.py": "app = import_string('somewhere')('x')\n",
            "hidden/tasks.py": "from hidden.celery import app\n@app.task\ndef pay(n): ...\n",
            "other/tasks.py": "def pay(n): ...\n",
            "other/views.py": "from other.tasks import pay\npay.s(1)\n",
        },
    )
    uses = [(str(Path(use.path).relative_to(tmp_path)), use.line, use.word) for use in check([tmp_path]).uses]
    assert uses == [
        ("hidden/tasks.py", 2, "app.task"),
        ("shop/celery.py", 1, "celery.Celery"),
        ("shop/celery.py", 2, "celery.Celery"),
        ("shop/tasks.py", 2, "app.task"),
        ("shop/tasks.py", 2, "task(ignore_result=)"),
        ("shop/views/a.py", 2, "task.si"),
        ("shop/views/b.py", 2, "task.apply"),
        ("shop/views/b.py", 2, "apply_async(priority=)"),
        ("shop/views/c.py", 2, "task.s"),
        ("shop/views/c.py", 3, "app.send_task"),
        ("shop/views/d.py", 2, "task.signature"),
        ("shop/views/e.py", 2, "task.apply"),
    ]


def test_the_settings_that_an_app_reads_are_found_where_they_stand(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "app.py": "from celery import Celery\napp = Celery('a')\n"
            "app.config_from_object('plain')\napp.config_from_object('named:Config', namespace='QUEUE')\n",
            "plain.py": "result_expires = 5\nimports = ('a',)\nsomething = 1\n",
            "named.py": "QUEUE_TASK_ACKS_LATE = True\nQUEUE_OURS = 1\n",
            "celeryconfig.py": "BROKER_URL = 'redis://'\nworker_pool = 'eventlet'\n",
            "unread.py": "result_expires = 5\nimports = ('a',)\n",
        },
    )
    uses = [(Path(use.path).name, use.line, use.word) for use in check([tmp_path]).uses]
    assert [use for use in uses if use[0] != "app.py"] == [
        ("celeryconfig.py", 1, "BROKER_URL"),
        ("celeryconfig.py", 2, "conf.worker_pool"),
        ("named.py", 1, "QUEUE_TASK_ACKS_LATE"),
        ("plain.py", 1, "conf.result_expires"),
        ("plain.py", 2, "conf.imports"),
    ]


def test_columns_are_those_of_the_words(tmp_path: Path) -> None:
    text = "from celery import shared_task\n@shared_task(  acks_late=True)\ndef é(): ...\nx = é  .delay()\n"
    write(tmp_path, {"a.py": text})
    lines = text.splitlines()
    for use in check([tmp_path]).uses:
        assert lines[use.line - 1][use.column - 1 :].startswith(use.word.split(".")[-1].removeprefix("task(")[:5])


def test_a_word_is_told_once_for_each_line(tmp_path: Path) -> None:
    write(tmp_path, {"a.py": "from celery import shared_task\nshared_task(shared_task(shared_task(print)))\n"})
    assert found(check([tmp_path])) == ["1 celery.shared_task same", "2 celery.shared_task same"]


def test_hidden_folders_caches_and_environments_are_left_out(tmp_path: Path) -> None:
    text = "import celery_once\n"
    names = ["a.py", "migrations/a.py", ".hidden/a.py", "__pycache__/a.py", "env/lib/a.py", "a.txt"]
    write(tmp_path, {**dict.fromkeys(names, text), "env/pyvenv.cfg": ""})
    findings = check([tmp_path, tmp_path / "a.py"])
    assert [str(Path(use.path).relative_to(tmp_path)) for use in findings.uses] == ["a.py", "migrations/a.py"]
    assert findings.files == 2


@pytest.mark.parametrize(
    ("source", "line"),
    [(b"import celery\ndef f(:\n", 2), (b"\x00", 1), (b"# coding: nonsense\n", 1), (b"x = '\xff'\n", 1)],
)
def test_a_file_that_cannot_be_parsed_is_told_and_does_not_stop_the_rest(
    source: bytes, line: int, tmp_path: Path
) -> None:
    write(tmp_path, {"good.py": "import celery_once\n"})
    (tmp_path / "bad.py").write_bytes(source)
    findings = check([tmp_path])
    assert [(Path(broken.path).name, broken.line) for broken in findings.unreadable] == [("bad.py", line)]
    assert len(findings.uses) == 1


def test_what_is_nested_too_deeply_is_told(tmp_path: Path) -> None:
    write(tmp_path, {"deep.py": "import celery\nx = " + "+".join(["1"] * 5000) + "\n", "good.py": "import flower\n"})
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)  # Python's own; other tests may have raised it
    try:
        findings = check([tmp_path])
    finally:
        sys.setrecursionlimit(limit)
    assert [Path(broken.path).name for broken in findings.unreadable] == ["deep.py"]
    assert len(findings.uses) == 1


@pytest.mark.parametrize(
    "text",
    [
        "import celery\nx = x\ny = z\nz = y\nx.delay()\n",
        "from a import b\nb.delay()\n",
        "import celery\ndef f(): return f()\nf().delay()\n",
        "import celery\nclass A(A): pass\nA().delay()\n",
        "import celery\nfrom . import a\na.a.a.delay()\n",
    ],
)
def test_names_that_lead_back_to_themselves_end(text: str, tmp_path: Path) -> None:
    write(tmp_path, {"a.py": text})
    assert check([tmp_path]).unreadable == []


@pytest.mark.parametrize("ending", ["\r", "\r\n", "\n\x0c"])
def test_lines_end_as_python_says(ending: str, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_bytes(ending.join(["import flower", "import celery_once", ""]).encode())
    assert [use.line for use in check([tmp_path]).uses] == [1, 2]


@pytest.mark.parametrize("name", FILES)
def test_programs_that_lack_lines_are_read_as_well(name: str, tmp_path: Path) -> None:
    lines = FILES[name][0].splitlines(keepends=True)
    write(tmp_path, {f"cut_{n}.py": "".join(lines[:n]) for n in range(len(lines))})
    write(tmp_path, {f"without_{n}.py": "".join(lines[:n] + lines[n + 1 :]) for n in range(len(lines))})
    assert check([tmp_path]).files == 2 * len(lines)


# -- the command -------------------------------------------------------------------------------------------------

SHOP = """from celery import shared_task, beat

@shared_task(exchange="e", acks_late=False)
def pay(): ...
"""


def test_each_use_is_a_line_and_the_counts_are_on_stderr(tmp_path: Path) -> None:
    write(tmp_path, {"shop.py": SHOP})
    done = run(".", code=1, cwd=tmp_path)
    assert [line.split(": ")[:3] for line in done.stdout.splitlines()] == [
        ["shop.py:1:20", "celery.shared_task", "same"],
        ["shop.py:1:33", "celery.beat", "later"],
        ["shop.py:3:2", "celery.shared_task", "same"],
        ["shop.py:3:14", "task(exchange=)", "unsupported"],
        ["shop.py:3:28", "task(acks_late=)", "changed"],
    ]
    assert done.stderr == "5 uses in 1 file: 2 same, 0 stronger, 1 changed, 1 later, 1 unsupported\n"


def test_only_some_verdicts_are_listed_and_all_are_counted(tmp_path: Path) -> None:
    write(tmp_path, {"shop.py": SHOP})
    done = run(".", "--only", "later", "--only", "changed", code=1, cwd=tmp_path)
    assert [line.split(": ")[1] for line in done.stdout.splitlines()] == ["celery.beat", "task(acks_late=)"]
    assert done.stderr.startswith("5 uses")


def test_a_summary_counts_words_the_worst_first(tmp_path: Path) -> None:
    write(tmp_path, {"shop.py": SHOP})
    lines = run(".", "--summary", code=1, cwd=tmp_path).stdout.splitlines()
    assert [line.split("\t")[:3] for line in lines] == [
        ["uses", "word", "verdict"],
        ["1", "task(exchange=)", "unsupported"],
        ["1", "celery.beat", "later"],
        ["1", "task(acks_late=)", "changed"],
        ["2", "celery.shared_task", "same"],
    ]


def test_json_has_everything(tmp_path: Path) -> None:
    write(tmp_path, {"shop.py": SHOP, "bad.py": "def"})
    done = json.loads(run(".", "--format", "json", code=1, cwd=tmp_path).stdout)
    assert done["files"] == 2
    assert done["counts"] == {"same": 2, "stronger": 0, "changed": 1, "later": 1, "unsupported": 1}
    assert done["unreadable"][0]["path"] == "bad.py"
    assert done["uses"][1] | {"note": ""} == {
        "path": "shop.py", "line": 1, "column": 33, "word": "celery.beat", "verdict": "later", "note": "",
    }  # fmt: skip
    assert done["uses"][1]["note"]


def test_github_shows_what_is_to_be_done(tmp_path: Path) -> None:
    write(tmp_path, {"a,b.py": SHOP, "bad.py": "def"})
    lines = run(".", "--format", "github", code=1, cwd=tmp_path).stdout.splitlines()
    assert [line.rpartition("::")[0] for line in lines] == [
        "::error file=bad.py,line=1,col=1",
        "::error file=a%2Cb.py,line=1,col=33,title=celery.beat",
        "::error file=a%2Cb.py,line=3,col=14,title=task(exchange=)",
        "::warning file=a%2Cb.py,line=3,col=28,title=task(acks_late=)",
    ]
    told = run(".", "--format", "github", "--only", "same", code=1, cwd=tmp_path).stdout
    assert told.count("::notice ") == 2


@pytest.mark.parametrize(
    ("text", "words", "code"),
    [
        ("import json\n", [], 0),
        ("from celery import shared_task\n", ["--strict"], 0),
        ("from kombu import Queue\n", [], 0),
        ("from kombu import Queue\n", ["--strict"], 1),
        ("from kombu import Exchange\n", [], 1),
        ("from kombu import Exchange\n", ["--only", "same"], 1),
        ("from celery import beat\n", [], 1),
        ("def", [], 1),
    ],
)
def test_the_exit_code_says_whether_all_is_here(text: str, words: list[str], code: int, tmp_path: Path) -> None:
    write(tmp_path, {"a.py": text})
    run("a.py", *words, code=code, cwd=tmp_path)


@pytest.mark.parametrize("words", [["absent.py"], [], [".", "--only", "best"], [".", "--format", "xml"]])
def test_wrong_usage_is_said(words: list[str], tmp_path: Path) -> None:
    assert "Error" in run(*words, code=2, cwd=tmp_path).stderr


def test_words_are_printed_as_markdown(tmp_path: Path) -> None:
    told = run("--words", code=0, cwd=tmp_path).stdout
    assert told.startswith(
        "### Modules and imports\n\n| word | verdict | |\n|---|---|---|\n| `celery.Celery` | changed |"
    )
