"""`settings.toml` in the store's folder: sign-in, roles, limits of runs and energy prices.

Without the file the store belongs to one user on one machine: only they can access it, with all rights.
"""

from __future__ import annotations

import functools
import os
import stat
import tomllib
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from engine.common.errors import ConfigError

FILE = "settings.toml"
Role = Literal["viewer", "runner", "admin"]
Method = Literal["link", "token", "proxy", "oidc"]
SHORTEST_TOKEN = 20


class _Section(BaseModel):
    # Not strict, because TOML has arrays, not tuples. Unknown keys are refused: a typo could weaken a restriction.
    model_config = ConfigDict(frozen=True, extra="forbid")


class SignIn(_Section):
    """How a user signs in. `link` is for one user on this machine; the other methods are for a team."""

    method: Method = "link"
    token: str = Field("", max_length=500)  # method="token": the secret that all users share
    proxy_header: str = Field(
        "", pattern=r"^[A-Za-z0-9-]{0,100}$"
    )  # method="proxy": the request header with the user's name
    proxy_addresses: tuple[str, ...] = ()  # only requests from these addresses are trusted
    allowed: tuple[str, ...] = ()  # names, e-mail addresses or @domains; empty allows every user of the proxy

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if self.method == "token" and len(self.token) < SHORTEST_TOKEN:
            raise ValueError(
                f"sign_in.token has {len(self.token)} characters; a shared token needs at least {SHORTEST_TOKEN} "
                "(`python -c 'import secrets; print(secrets.token_urlsafe(32))'` makes one)"
            )
        if self.method == "proxy" and not (self.proxy_header and self.proxy_addresses):
            raise ValueError("sign_in.method='proxy' needs proxy_header and proxy_addresses, the proxy's IP addresses")
        if self.method == "oidc" and not self.allowed:
            raise ValueError("sign_in.method='oidc' needs allowed, a list of e-mail addresses or @domains")
        return self


class Roles(_Section):
    """A viewer sees runs; a runner also starts runs, and changes their own; an admin can change all runs."""

    default: Role | None = None  # None: viewer, or runner with a shared token
    runner: tuple[str, ...] = ()
    admin: tuple[str, ...] = ()


class Limits(_Section):
    """What one run, or one user, can use; None is no limit."""

    wall_time_s: float | None = Field(24 * 3600.0, gt=0)
    memory_bytes: int | None = Field(None, gt=0)  # of the process of a CPU run; None: the free memory at its start
    disk_bytes: int | None = Field(4 << 30, gt=0)  # of a run's folder
    points: int | None = Field(50_000_000, gt=0)  # recorded optimizer steps
    queued: int = Field(1_000, gt=0)  # queued runs of all users
    queued_per_user: int = Field(100, gt=0)  # of one user who is not an admin; a race of 6 with 12 seeds is 72
    data_folders: tuple[str, ...] = ()  # with uploads, the only folders whose files users who are not admins can use


class Energy(_Section):
    """Local prices and emissions of energy. There are no defaults, because no value holds everywhere."""

    price_per_kwh: float | None = Field(None, gt=0, le=1e6)
    currency: str = Field("", max_length=8)
    gco2_per_kwh: float | None = Field(None, ge=0, le=1e5)  # grams of CO2 per kWh of your grid
    # Lowest and highest power under load, of the processor or of the board for a GPU run, W. It is used to estimate the
    # energy of a run without a counter.
    tdp_w: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _range_is_one(self) -> Self:
        if self.tdp_w and not 0 < self.tdp_w[0] <= self.tdp_w[1] <= 1e5:
            raise ValueError("energy.tdp_w needs two numbers of watts above 0, the smaller one first")
        return self


class Settings(_Section):
    """The whole file."""

    sign_in: SignIn = SignIn()
    energy: Energy = Energy()
    roles: Roles = Roles()
    limits: Limits = Limits()

    @property
    def is_team(self) -> bool:
        """Whether other users than the one of this machine can sign in."""
        return self.sign_in.method != "link"


def load(root: Path) -> Settings:
    """The settings of the store at `root`; the file is read again when it changes.

    Raises:
        ConfigError: the file is not valid, or other users can read it.
    """
    path = root / FILE
    try:
        status = path.stat()
    except FileNotFoundError:
        return Settings()
    except OSError as error:
        raise ConfigError(
            f"{FILE} cannot be read: {error.strerror}.", fix="Check the file's owner and permissions."
        ) from None
    if not stat.S_ISREG(status.st_mode):  # a pipe would block every request
        raise ConfigError(f"{FILE} is not an ordinary file.", fix="Remove or replace it.")
    if os.name == "posix" and stat.S_IMODE(status.st_mode) & 0o077:
        raise ConfigError(
            f"{FILE} can be read or written by others (mode {stat.S_IMODE(status.st_mode):04o}).",
            fix="It controls who can sign in, so `chmod 600` it.",
        )
    return _parsed(path, status.st_mtime_ns, status.st_size, status.st_ino)


@functools.lru_cache(maxsize=8)
def _parsed(path: Path, _mtime_ns: int, _size: int, _inode: int) -> Settings:
    try:
        return Settings.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(
            f"{FILE} cannot be read: {error.strerror}.", fix="Check the file's owner and permissions."
        ) from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{FILE} is not TOML: {error}.", fix="Correct the file, or remove it.") from None
    except ValidationError as error:
        raise _explained(error.errors(include_url=False)[0]) from None


def _explained(first: Any) -> ConfigError:
    """An error for the first problem. Values can be secrets, so none is repeated."""
    where = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        return ConfigError(f"{FILE}: {where} is not a known setting.", fix="The README lists them.")
    words = str(first["ctx"]["error"]) if first["type"] == "value_error" else f"{where}: {first['msg'].lower()}"
    return ConfigError(f"{FILE}: {words}.", fix="Correct the file; the README lists what is allowed.")
