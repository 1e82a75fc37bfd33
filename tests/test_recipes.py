"""Each recipe of docs/architecture.md is followed once, in a copy of the code: the toy works where the recipe says so.

`RECIPES` holds what a recipe adds: new files, and text inserted after a line that exists. One process then uses all of
them, and each test looks at what it found.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.process

NEW = ""  # a file that the recipe adds
Recipe = dict[str, list[tuple[str, str]]]  # file: (existing text, text to insert after it)

OPTIMIZER: Recipe = {
    "engine/config/training.py": [
        ("OptimizerName = Literal[", '"signs", '),
        (
            "OPTIMIZERS: Mapping[OptimizerName, OptimizerFacts] = {",
            '\n    "signs": OptimizerFacts("Signs", 1e-4, ("beta1", "beta2"), states_per_parameter=1, decoupled=True),',
        ),
    ],
    "engine/pytorch/training/optimizers.py": [
        (
            "AnyOptimizer = Optimizer | Reference",
            '''


class Signs(Optimizer):
    """The sign of a mean of gradients, as in Lion (Chen et al. 2023, arXiv:2302.06675)."""

    def __init__(self, spec: training.Optimizer, model: nn.Module) -> None:
        super().__init__(model.parameters(), **_shared(spec))
        self.betas, self.means = (spec.beta1, spec.beta2), self._new_state("mean")

    @torch.no_grad()
    def step(self) -> None:
        for p, mean, grad in zip(self.params, self.means, self._grads(), strict=True):
            p.mul_(1 - self.lr * self.weight_decay).sub_(self.lr * torch.lerp(grad, mean, self.betas[0]).sign())
            mean.lerp_(grad, 1 - self.betas[1])


class SignsReference(torch.optim.Optimizer):
    """The same rule as a plain torch optimizer, because torch.optim has none."""

    def __init__(self, spec: training.Optimizer, model: nn.Module) -> None:
        super().__init__(model.parameters(), {"lr": spec.lr, "spec": spec})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            spec = group["spec"]
            for p in group["params"]:
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                change = (spec.beta1 * mean + (1 - spec.beta1) * p.grad).sign()
                p.mul_(1 - group["lr"] * spec.weight_decay).sub_(group["lr"] * change)
                mean.mul_(spec.beta2).add_(p.grad, alpha=1 - spec.beta2)
''',
        ),
        (
            "IMPLEMENTATIONS: Mapping[training.OptimizerName, Implementation] = {",
            '\n    "signs": Implementation(lambda *a: Signs(*a), lambda *a: [SignsReference(*a)]),',
        ),
    ],
}

FAMILY: Recipe = {
    "engine/config/models.py": [
        (
            '    name: str = model.model_fields["family"].default\n    return name\n',
            '''

class LowRank(Model):
    """A linear map through a few units."""

    label = "Low rank"
    sizes: ClassVar[Sizes] = {"tiny": {"rank": 2}, "small": {"rank": 4}, "base": {"rank": 8}, "large": {"rank": 16}}

    family: Literal["low-rank"] = "low-rank"
    rank: int = field(4, "Rank", ge=1, le=1_000)
    """Units between input and classes."""

    def in_words(self, data: DataFacts) -> str:
        return f"rank {self.rank}"
''',
        ),
        ("ModelSpec = ", "LowRank | "),
    ],
    "engine/models/low_rank.py": [
        (
            NEW,
            '''"""Arithmetic of linear maps of low rank."""

from math import prod

from engine.config.models import LowRank
from engine.data.datasets import Dataset
from engine.models.arithmetic import Family, Product, Stage


class LowRankFamily(Family[LowRank]):
    def input_shape(self, model, data):
        return (prod(data.shape),)

    def products(self, model, data):
        first = Product("linear", prod(data.shape), model.rank, input_gradient_rows=0)
        return [first, Product("linear", model.rank, data.num_classes)]

    def stages(self, model, data, batch_size):
        return [Stage(model.rank + data.num_classes, data.num_classes)]
''',
        )
    ],
    "engine/models/__init__.py": [
        ("from engine.models.cnn import CNNFamily\n", "from engine.models.low_rank import LowRankFamily\n"),
        ("FAMILIES: Mapping[str, AnyFamily] = {", '\n    "low-rank": LowRankFamily(),'),
    ],
    "engine/pytorch/models.py": [
        (
            "FAMILIES: Mapping[str, TorchFamily] = {",
            '\n    "low-rank": TorchFamily(\n'
            "        lambda model, data: [\n"
            "            [nn.Linear(input_shape(model, data)[0], model.rank), nn.Linear(model.rank, data.num_classes)]\n"
            "        ]\n"
            "    ),",
        )
    ],
}

TASK: Recipe = {
    "engine/config/tasks.py": [
        ("TaskName = Literal[", '"coin", '),
        (
            "TASKS: Mapping[TaskName, TaskFacts] = {",
            '\n    "coin": TaskFacts("Coin", "A coin is tossed until the seed has spoken."),',
        ),
    ],
    "engine/pytorch/tasks/coin.py": [
        (
            NEW,
            '''"""Toss a coin."""

import random
import time

from engine.events.coin import Tossed
from engine.events.lifecycle import Progress, Started


def coin(config, folder):
    yield Started(
        at=time.time(), parameters=0, train_flops_per_example=0, train_examples=1, test_examples=0, total_steps=None,
        setup_s=0.0,
    )
    yield Progress(text="Tossing", done=1, total=2)
    yield Tossed(heads=sum(random.Random(config.seed).choices((0, 1), k=100)), side="the king")
''',
        )
    ],
    "engine/events/coin.py": [
        (
            NEW,
            '''"""What a coin shows."""

from typing import Literal

from engine.events.base import Count, Event


class Tossed(Event):
    """A hundred tosses."""

    kind: Literal["tossed"] = "tossed"
    heads: Count
    side: str
''',
        )
    ],
    "engine/pytorch/tasks/registry.py": [
        ("from engine.pytorch.tasks.calibrate import calibrate\n", "from engine.pytorch.tasks.coin import coin\n"),
        ("GENERATORS: dict[TaskName, Callable[..., Generator[AnyEvent, None, None]]] = {", '\n    "coin": coin,'),
    ],
}

DATA_SET: Recipe = {
    "engine/config/data.py": [
        ("DatasetName = Literal[", '\n    "stripes",'),
        ("DATA: Mapping[DatasetName, DataFacts] = {", '\n    "stripes": DataFacts("Stripes", "vector"),'),
    ],
    "engine/data/loading.py": [
        (
            "GENERATED: Mapping[DatasetName, Generated] = {",
            '\n    "stripes": Generated(lambda source: _STRIPES, lambda source: _stripes()),',
        ),
        (
            "_SYNTHETIC_SEED = 20_260_102\n",
            '''_STRIPES = Dataset("Stripes", "vector", (8,), 2, 64, 16)


def _stripes() -> Arrays:
    """Even and odd numbers in binary."""
    x, y = (np.arange(80)[:, None] >> np.arange(8) & 1).astype(np.float32), np.arange(80) % 2
    zero, one = np.zeros(8, np.float32), np.ones(8, np.float32)
    return Arrays(_STRIPES, x[:64], y[:64], x[64:], y[64:], zero, one, ("even", "odd"))


''',
        ),
    ],
}

CHART: Recipe = {
    "engine/charts/facts.py": [
        (
            "RUN_CHARTS = (",
            '\n    Chart("seen", "Samples seen", (Line("seen", "examples", "steps", "samples"),), ("Counted.",)),',
        )
    ]
}

PAGE: Recipe = {
    "pages/toy.py": [
        (
            NEW,
            '''"""A toy page."""

import streamlit as st

from dashboard import state

st.title("Toy", anchor=False)
st.caption(f"{len(state.store().rows())} runs")
''',
        )
    ],
    "dashboard/main.py": [
        (
            "page = st.navigation(\n    [\n",
            '        st.Page(pages / "toy.py", title="Toy", icon=":material/toys:", url_path="toy"),\n',
        )
    ],
}

COMMAND: Recipe = {
    "engine/cli/count.py": [
        (
            NEW,
            '''"""`python -m engine count`: how many runs the store has."""

from engine.cli import common
from engine.common.jsontext import json_text


def register(add):
    add("count", count_command, "count the runs")


def count_command(a):
    number = len(common.store_of(a).rows())
    print(json_text({"runs": number}) if a.json else f"{number} runs")
    return common.OK
''',
        )
    ],
    "engine/cli/main.py": [
        ("from engine import __version__\n", "from engine.cli import count\n"),
        ("    run.register(add, config)\n", "    count.register(add)\n"),
    ],
}

RECIPES = (OPTIMIZER, FAMILY, TASK, DATA_SET, CHART, PAGE, COMMAND)

USE = """
import contextlib, io, json, sys
from pathlib import Path

import torch

torch.set_num_threads(1)
from dashboard.api import run as run_api
from dashboard.widgets import config_form, run_parts
from engine.charts import training
from engine.cli import cards
from engine.cli.main import main
from engine.config.parsing import with_overrides
from engine.config.run import RunConfig
from engine.events.catalog import EVENT
from engine.planning import planner
from engine.reports.html.page import render
from engine.reports.report import Report
from engine.runtime import worker
from engine.store.store import Store
from streamlit.testing.v1 import AppTest

store, found = Store(), {}


def ran(*assignments):
    config = with_overrides(RunConfig(), ["data=stripes", *assignments])
    run_id = store.create(config)
    worker.run(store.folder(run_id))
    return store.run(run_id)


def printed(*arguments):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(list(arguments)) == 0
    return out.getvalue()


signs = ran("optimizer.name=signs", "optimizer.lr=0.01", "batch_size=8", "budget.epochs=20")
reference = ran("optimizer.name=signs", "optimizer.lr=0.01", "batch_size=8", "budget.epochs=20", "execution=dataloader")
plan = planner.plan(signs.config, free_bytes=2**34)
found["optimizer"] = {
    "status": signs.status, "why": signs.why(), "losses": signs.steps["loss"].tolist(), "reference": reference.steps["loss"].tolist(),
    "state_bytes": plan.optimizer_bytes, "weight_bytes": plan.weight_bytes,
    "measured_state_bytes": signs.memory.optimizer_bytes,
    "label": config_form.WORDS["optimizer.name"]["signs"],
}
low = ran("model.family=low-rank", "model.rank=3", "batch_size=8", "budget.epochs=1")
found["family"] = {
    "status": low.status, "why": low.why(), "parameters": low.started.parameters,
    "planned": planner.plan(low.config, free_bytes=2**34).parameters, "label": config_form.WORDS["family"]["low-rank"],
    "card": cards.card(low),
}
tossed = ran("task=coin", "batch_size=8")
found["task"] = {
    "status": tossed.status, "why": tossed.why(), "progress": tossed.progress(),
    "events": [event.model_dump() for kind in tossed.kinds if kind.__name__ == "Tossed" for event in tossed.all(kind)],
    "card": printed("show", tossed.run_id), "json": json.loads(printed("show", tossed.run_id, "--json"))["events"],
    "plan": printed("plan", "--set", "task=coin"), "page": run_parts.page_of(tossed),
    "report": render(Report.freeze("Coins", [tossed])),
}
found["data"] = {
    "title": config_form.WORDS["data"]["stripes"], "examples": signs.started.train_examples,
    "accuracy": signs.summary().test_accuracy,
}
found["chart"] = {
    "poll": run_api.points(signs)["traces"]["seen"]["y"][-1],
    "figures": [chart.key for chart in training.shown([signs])], "report": render(Report.freeze("Seen", [signs])),
}
found["command"] = {"text": printed("count"), "json": json.loads(printed("count", "--json"))}
app = AppTest.from_file("dashboard/main.py", default_timeout=60).run()
app.switch_page(str(Path("pages/toy.py").absolute())).run()
found["page"] = {
    "error": [error.value for error in app.exception], "title": [title.value for title in app.title],
    "caption": [caption.value for caption in app.caption],
}
print(json.dumps(found))
"""


def follow(recipe: Recipe, root: Path) -> None:
    """Do what a recipe says in the copy at `root`."""
    for name, additions in recipe.items():
        path = root / name
        for existing, text in additions:
            if existing == NEW:
                assert not path.exists()
                path.write_text(text)
                continue
            before = path.read_text()
            assert before.count(existing) == 1, f"{name} has {before.count(existing)} times {existing!r}"
            path.write_text(before.replace(existing, existing + text))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the process reports that used every toy."""
    root = tmp_path_factory.mktemp("copy")
    for tree in ("engine", "dashboard", "pages"):
        shutil.copytree(ROOT / tree, root / tree, ignore=shutil.ignore_patterns("__pycache__"))
    for recipe in RECIPES:
        follow(recipe, root)
    environment = os.environ | {
        "ISOFLOP_HOME": str(root / "store"),
        "PYTHONPATH": str(root),
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    used = subprocess.run(
        [sys.executable, "-c", USE], cwd=root, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert used.returncode == 0, used.stderr[-5_000:]
    answer: dict[str, Any] = json.loads(used.stdout.splitlines()[-1])
    return answer


def test_an_optimizer_is_in_two_files_and_trains(found):
    said = found["optimizer"]
    assert len(OPTIMIZER) == 2
    assert (said["status"], said["why"]) == ("finished", "")
    assert said["losses"][-1] < said["losses"][0] / 2
    assert said["losses"] == pytest.approx(said["reference"], abs=1e-4)
    assert said["state_bytes"] == said["measured_state_bytes"] == said["weight_bytes"]
    assert said["label"] == "Signs"


def test_a_model_family_is_in_four_files_and_trains_as_planned(found):
    said = found["family"]
    assert len(FAMILY) == 4
    assert (said["status"], said["why"]) == ("finished", "")
    assert said["parameters"] == said["planned"] == 8 * 3 + 3 + 3 * 2 + 2
    assert said["label"] == "Low rank"
    assert "rank 3 · stripes" in said["card"]


def test_a_task_is_its_facts_its_generator_and_its_event(found):
    said = found["task"]
    assert len(TASK) == 4  # with the line that registers the generator
    assert (said["status"], said["why"], said["progress"]) == ("finished", "", 1.0)
    [event] = said["events"]
    assert 30 < event["heads"] < 70
    assert said["json"] == {"tossed": {"heads": event["heads"], "side": "the king"}}


def test_a_task_without_views_of_its_own_has_a_card_a_plan_a_page_and_a_report(found):
    said = found["task"]
    heads = said["events"][0]["heads"]
    assert f"  heads             {heads} (tossed)\n  side              the king (tossed)" in said["card"]
    assert "coin · " in said["card"]
    assert said["plan"].startswith("coin · ")
    assert said["page"] == "../pages/train.py"
    assert "the king" in said["report"]


def test_a_data_set_is_in_two_files_and_can_be_learned(found):
    assert len(DATA_SET) == 2
    assert found["data"] == {"title": "Stripes", "examples": 64, "accuracy": 1.0}


def test_a_chart_is_a_row_and_reaches_the_poll_and_the_report(found):
    said = found["chart"]
    assert len(CHART) == 1
    assert said["poll"] == 20 * 64
    assert "seen" in said["figures"]
    assert "Samples seen" in said["report"]


def test_a_page_is_a_script_and_a_line_of_the_navigation(found):
    assert len(PAGE) == 2
    assert found["page"] == {"error": [], "title": ["Toy"], "caption": ["4 runs"]}


def test_a_command_is_a_file_and_its_registration(found):
    assert len(COMMAND) == 2
    assert found["command"] == {"text": "4 runs\n", "json": {"runs": 4}}


def test_every_recipe_names_the_files_it_touches():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("## Recipes")[2]
    toys = {"low_rank.py": "<family>.py", "coin.py": "<task>.py", "toy.py": "<page>.py", "count.py": "<group>.py"}
    titles = ("optimizer", "model family", "task", "data set", "chart to the page of a run", "page", "CLI command")
    for title, recipe in zip(titles, RECIPES, strict=True):
        part = text.partition(f"### Add a {title}\n" if title != "optimizer" else "### Add an optimizer\n")[2]
        part = part.partition("\n### ")[0]
        assert len(part.strip().splitlines()) <= 10, title
        for name in recipe:
            folder, _, file = name.rpartition("/")
            assert f"`{folder}/{toys.get(file, file)}`" in part, (title, name)
