"""Roles and ownership, checked by the client and again by the supervisor."""

import contextlib
import json
import os
import stat
import threading

import pytest

from engine.access import policy, settings
from engine.access.policy import LOCAL, TERMINAL, AccessError, Actor, may, role_of
from engine.access.settings import Limits, Roles, Settings, SignIn
from engine.common.errors import LimitReached
from engine.config.parsing import with_overrides
from engine.runtime.client import Client
from engine.runtime.executor import InlineExecutor
from engine.runtime.supervisor import Supervisor
from engine.system.files import write_atomically

PROXY = SignIn(method="proxy", proxy_header="X-User", proxy_addresses=("10.0.0.5",))
TEAM = Settings(sign_in=PROXY, roles=Roles(runner=("rob", "@lab.example"), admin=("ada",)))
ADA, ROB, EVE = (Actor("proxy", name) for name in ("ada", "rob", "eve"))
TOML = """
[sign_in]
method = "proxy"
proxy_header = "X-User"
proxy_addresses = ["10.0.0.5"]
[roles]
runner = ["rob", "ron"]
admin = ["ada"]
[limits]
queued_per_user = 2
"""


@pytest.fixture
def team(store):
    """A store with the settings of a team."""
    write_atomically(store.root / settings.FILE, TOML)
    return store


@pytest.fixture
def supervisor(team):
    made = Supervisor(team, InlineExecutor())
    yield made
    made.index.close()


def audited(store):
    return [json.loads(line) for line in (store.root / policy.AUDIT).read_text().splitlines()]


# --- roles ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("actor", "role"),
    [
        (ADA, "admin"),
        (ROB, "runner"),
        (EVE, "viewer"),
        (TERMINAL, "admin"),
        (LOCAL, None),
        (Actor("proxy", "ANN@LAB.example"), "runner"),
        (Actor("proxy", "x@evil@lab.example"), "viewer"),
        (Actor("proxy", "ann@sublab.example"), "viewer"),
        (Actor("proxy", "@lab.example"), "runner"),
        (Actor("oidc", "ada"), None),
        (Actor("token", "ada"), None),
    ],
)
def test_a_role_depends_on_name_and_sign_in_method(actor, role):
    assert role_of(actor, TEAM) == role


def test_the_only_user_of_a_machine_is_admin():
    assert role_of(LOCAL, Settings()) == role_of(TERMINAL, Settings()) == "admin"
    assert role_of(Actor("proxy", "ada"), Settings()) is None


def test_users_outside_the_list_have_no_access():
    listed = Settings(sign_in=PROXY.model_copy(update={"allowed": ("ada", "@lab.example")}), roles=TEAM.roles)
    assert [role_of(a, listed) for a in (ADA, ROB, Actor("proxy", "ann@lab.example"))] == ["admin", None, "runner"]


@pytest.mark.parametrize("name", ["\u212aate@lab.example", "Gro\u00df", "KATE@lab.examp\u017fe"])
def test_names_that_match_only_by_unicode_case_folding_are_different_users(name):
    """Their casefold() is the name of an admin, and an identity provider can have such users."""
    rules = TEAM.model_copy(update={"roles": Roles(admin=("kate@lab.example", "gross", "kate@lab.exampse"))})
    assert role_of(Actor("proxy", name), rules) == "viewer"
    assert role_of(Actor("proxy", "KATE@lab.example"), rules) == "admin"


def test_everyone_with_the_shared_token_is_the_same_runner():
    shared = Settings(sign_in=SignIn(method="token", token="x" * 20))
    team = Actor("token", "team")
    assert role_of(team, shared) == "runner"
    assert may(team, "delete", shared, owner=team.id)


@pytest.mark.parametrize("action", ["cancel", "delete", "rename"])
def test_a_runner_can_change_only_their_own_runs(action):
    assert may(ROB, action, TEAM, owner=ROB.id)
    assert not may(ROB, action, TEAM, owner="proxy:ron")
    assert not may(ROB, action, TEAM, owner="")
    assert not may(ROB, action, TEAM, owner="oidc:rob")
    assert may(ADA, action, TEAM, owner=ROB.id)
    assert not may(EVE, action, TEAM, owner=EVE.id)


@pytest.mark.parametrize("text", ["", "root", "proxy2:ada", "admin:ada", "proxy:" + "x" * 201])
def test_an_invalid_actor_id_is_refused(text):
    with pytest.raises(ValueError, match="is not an actor"):
        Actor.parse(text)


@pytest.mark.parametrize("actor", [TERMINAL, LOCAL, ADA, Actor("proxy", "a:b")])
def test_an_actor_survives_its_id(actor):
    assert Actor.parse(actor.id) == actor


# --- commands ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("actor", "words"), [(ROB, "rob may not cancel a run of ron"), (EVE, "As viewer eve may not")])
def test_the_client_refuses_actions_that_are_not_allowed(team, config, actor, words):
    run_id = team.create(config, owner="proxy:ron")
    with pytest.raises(AccessError, match=words):
        Client(team, actor).cancel(run_id)
    assert not any(team.inbox.iterdir())
    assert [(line["action"], line["run_id"], line["outcome"]) for line in audited(team)] == [
        ("cancel", run_id, "refused")
    ]


@pytest.mark.parametrize("command", ["cancel", "delete", "rename"])
def test_the_supervisor_refuses_commands_that_are_not_allowed(team, supervisor, config, command):
    run_id = team.create(config, owner="proxy:ron")
    asked = {"command": command, "actor": ROB.id, "run_id": run_id, "name": "mine"}
    write_atomically(team.inbox / "1.json", json.dumps(asked))
    supervisor._take_commands()
    run = team.run(run_id)
    assert (run.status, run.name) == ("queued", "")
    assert audited(team)[-1] | {"at": 0} == {
        "at": 0,
        "actor": "proxy:rob",
        "action": command,
        "run_id": run_id,
        "outcome": "refused",
    }


@pytest.mark.parametrize("actor", [None, "nobody", "proxy:ada2", 7])
def test_a_command_without_a_valid_actor_is_not_executed(team, supervisor, config, actor):
    run_id = team.create(config, owner="proxy:ron")
    command = {"command": "cancel", "run_id": run_id} | ({} if actor is None else {"actor": actor})
    write_atomically(team.inbox / "1.json", json.dumps(command))
    supervisor._take_commands()
    assert team.run(run_id).status == "queued"


def test_an_owner_cancels_renames_and_deletes_and_each_is_audited(team, supervisor, config, monkeypatch):
    monkeypatch.setattr(Client, "wake", lambda _: None)
    client = Client(team, ROB)
    run_id = client.submit(config)
    supervisor._find_new_runs()
    for ask in (lambda: client.rename(run_id, "first"), lambda: client.cancel(run_id)):
        ask()
        supervisor._take_commands()
    run = team.run(run_id)
    assert (run.name, run.status, run.owner) == ("first", "cancelled", "proxy:rob")
    assert supervisor.index.rows()[0].name == "first"
    client.delete(run_id)
    supervisor._take_commands()
    assert run_id not in team.ids()
    assert [(line["actor"], line["action"], line["outcome"]) for line in audited(team)] == [
        ("proxy:rob", action, "done") for action in ("submit", "rename", "cancel", "delete")
    ]


def a_folder(path):
    (path / "inside").mkdir(parents=True)


@pytest.mark.parametrize(
    "leave",
    [
        a_folder,
        os.mkfifo,
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.symlink_to("nowhere"),
        lambda path: path.write_text("[" * 60_000),
        lambda path: path.write_text("[" * 1_000_000),
        lambda path: path.write_text('{"command": "delete", "actor": "terminal", "run_id": "../keys"}'),
    ],
)
def test_invalid_files_in_the_inbox_are_removed_and_the_next_command_is_executed(team, supervisor, config, leave):
    run_id = team.create(config, owner=ROB.id)
    supervisor._find_new_runs()
    leave(team.inbox / "1.json")
    write_atomically(team.inbox / "2.json", json.dumps({"command": "cancel", "actor": ROB.id, "run_id": run_id}))
    supervisor._take_commands()
    assert list(team.inbox.iterdir()) == []
    assert team.run(run_id).status == "cancelled"


def test_a_removed_role_also_counts_for_commands_in_the_inbox(team, supervisor, config):
    run_id = team.create(config, owner=ROB.id)
    command = {"command": "cancel", "actor": ROB.id, "run_id": run_id}
    write_atomically(team.inbox / "1.json", json.dumps(command))
    write_atomically(team.root / settings.FILE, TOML.replace('"rob", ', ""))
    supervisor._take_commands()
    assert team.run(run_id).status == "queued"


def test_the_audit_log_is_private_and_has_whole_lines_from_many_threads(store):
    def write(name):
        for _ in range(50):
            policy.audit(store.root, Actor("proxy", name), "submit")

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(audited(store)) == 200
    assert stat.S_IMODE((store.root / policy.AUDIT).stat().st_mode) == 0o600


# --- submitting ----------------------------------------------------------------------------------------------------


def test_a_viewer_cannot_submit(team, config):
    with pytest.raises(AccessError, match="As viewer eve may not submit"):
        Client(team, EVE).submit(config)
    assert team.ids() == []
    assert [(line["actor"], line["action"], line["outcome"]) for line in audited(team)] == [
        ("proxy:eve", "submit", "refused")
    ]


def test_one_key_starts_one_run_for_many_concurrent_submissions(store, config, monkeypatch):
    monkeypatch.setattr(Client, "wake", lambda _: None)
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(Client(store).submit(config, key="k1"))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 8
    assert len(set(answers)) == len(store.ids()) == 1
    assert Client(store).submit(config, key="k2") not in answers
    assert [entry.name for entry in store.runs.iterdir() if entry.name.startswith(".")] == []


def test_a_user_can_queue_only_queued_per_user_runs(team, config, monkeypatch):
    monkeypatch.setattr(Client, "wake", lambda _: None)
    for _ in range(2):
        Client(team, ROB).submit(config)
    with pytest.raises(LimitReached, match=r"2 runs of rob are waiting.*limits\.queued_per_user"):
        Client(team, ROB).submit(config)
    Client(team, Actor("proxy", "ron")).submit(config)
    Client(team, ADA).submit(config)


def test_concurrent_submissions_do_not_exceed_queued_per_user(team, config, monkeypatch):
    monkeypatch.setattr(Client, "wake", lambda _: None)

    def submit():
        with contextlib.suppress(LimitReached):
            Client(team, ROB).submit(config)

    threads = [threading.Thread(target=submit) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(team.ids()) == 2


def test_the_limit_of_the_queue_holds_for_admins_too(store, config, monkeypatch):
    monkeypatch.setattr(Client, "wake", lambda _: None)
    write_atomically(store.root / settings.FILE, "[limits]\nqueued = 1")
    Client(store).submit(config)
    with pytest.raises(LimitReached, match=r"limits\.queued allows"):
        Client(store).submit(config)


# --- files of this machine -----------------------------------------------------------------------------------------


@pytest.fixture
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("ISOFLOP_DATA", str(tmp_path / "data"))
    for name in ("data/uploads", "data/uploads-private", "shared", "home"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "x.csv").write_text("a,b\n1,2\n")
    (tmp_path / "shared" / "link.csv").symlink_to(tmp_path / "home" / "x.csv")
    return tmp_path


@pytest.mark.parametrize(
    ("place", "allowed"),
    [
        ("data/uploads/x.csv", True),
        ("shared/x.csv", True),
        ("shared/missing.csv", True),
        ("home/x.csv", False),
        ("data/uploads/../../home/x.csv", False),
        ("data/uploads-private/x.csv", False),
        ("shared/link.csv", False),
    ],
)
def test_a_runner_can_use_only_uploads_and_listed_folders(places, place, allowed):
    rules = TEAM.model_copy(update={"limits": Limits(data_folders=(str(places / "shared"),))})
    assert policy.may_read(ROB, str(places / place), rules) == allowed
    assert policy.may_read(ADA, str(places / place), rules)


@pytest.mark.parametrize(
    "path", ["a\0b", "~nobody-of-this-name/x", "/" + "a/" * 5_000, "x" * 5_000, "file:///etc/passwd"]
)
def test_an_invalid_path_is_not_allowed_for_a_runner(places, path):
    assert not policy.may_read(ROB, path, TEAM)


@pytest.mark.parametrize("field", ["source.path", "infer.weights"])
def test_the_refusal_of_a_file_does_not_tell_whether_it_exists(team, config, places, field):
    said = set()
    for name in ("home/x.csv", "home/missing.csv"):
        kind = "data=csv" if field == "source.path" else "task=infer"
        chosen = with_overrides(config, [kind, f"{field}={places / name}"])
        with pytest.raises(AccessError) as refused:
            Client(team, ROB).submit(chosen)
        said.add(str(refused.value))
    assert len(said) == 1
