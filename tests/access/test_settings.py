"""`settings.toml` is read again when it changes, and an invalid file is refused with an explanation."""

import os

import pytest

from engine.access import settings
from engine.common.errors import ConfigError
from engine.system.files import write_atomically


@pytest.fixture
def write(store):
    def write(text):
        write_atomically(store.root / settings.FILE, text)
        return lambda: settings.load(store.root)

    return write


def test_without_the_file_the_store_has_one_user(store):
    assert not settings.load(store.root).is_team


def test_a_change_of_the_file_takes_effect_at_once(write):
    assert write("[limits]\npoints = 10")().limits.points == 10
    assert write("[limits]\npoints = 12")().limits.points == 12


def test_a_file_that_others_can_read_is_refused(store, write):
    load = write("[limits]\npoints = 10")
    (store.root / settings.FILE).chmod(0o640)
    with pytest.raises(ConfigError, match=r"mode 0640.*chmod 600"):
        load()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sign_in = 3", "sign_in: input should be a valid dictionary"),
        ("[sign_in", "is not TOML"),
        ("[sign_in]\nmethod = 'none'", "sign_in.method: input should be 'link', 'token', 'proxy' or 'oidc'"),
        ("[sing_in]\nmethod = 'token'", "sing_in is not a known setting"),
        ("[sign_in]\nmethod = 'token'\ntoken = 'short'", "has 5 characters; a shared token needs at least 20"),
        ("[sign_in]\nmethod = 'token'", "has 0 characters"),
        ("[sign_in]\nmethod = 'proxy'\nproxy_header = 'X-User'", "needs proxy_header and proxy_addresses"),
        ("[sign_in]\nmethod = 'proxy'\nproxy_addresses = ['10.0.0.5']", "needs proxy_header and proxy_addresses"),
        ("[sign_in]\nmethod = 'oidc'", "needs allowed"),
        ("[limits]\npoints = 0", "limits.points: input should be greater than 0"),
        ("[roles]\ndefault = 'root'", "roles.default: input should be 'viewer', 'runner' or 'admin'"),
    ],
)
def test_an_invalid_file_is_explained_in_one_sentence(write, text, words):
    with pytest.raises(ConfigError) as refused:
        write(text)()
    assert words in str(refused.value)
    assert refused.value.fix


def test_a_token_is_not_repeated_in_an_error(write):
    with pytest.raises(ConfigError) as refused:
        write("[sign_in]\nmethod = 'token'\ntoken = 'hunter2hunter2'")()
    assert "hunter2" not in str(refused.value)


def test_a_pipe_is_refused_without_waiting_for_it(store):
    os.mkfifo(store.root / settings.FILE, 0o600)
    with pytest.raises(ConfigError, match="not an ordinary file"):
        settings.load(store.root)
